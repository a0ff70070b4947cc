"""What ``lth ticket bench`` compares: each makes a file of a ticket, and a program from that file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lth_scale import data, files
from lth_scale.errors import UserError
from lth_scale.export import images
from lth_scale.export.images import Floats
from lth_scale.export.multiplying import described, description, load_sparse
from lth_scale.export.network import Network, fill, network
from lth_scale.export.programs import onnx_runner, write_onnx, write_torch_export
from lth_scale.export.quantising import calibration, write_int8
from lth_scale.export.semi_structured import load_semi_structured, write_semi_structured
from lth_scale.export.sources import Chosen
from lth_scale.export.sparse import write_sparse

Run = Callable[[Floats], Floats]
"""Images [N, channels, height, width], normalised as in training -> logits [N, classes]."""


@dataclass(frozen=True)
class Given:
    """What contenders are made of.

    Args:
        chosen: the ticket.
        found: its network, whole and without dead units.
        dataset: the run's images.
        folder: for the files; empty at first.
    """

    chosen: Chosen
    found: Network
    dataset: data.AnyDataset
    folder: Path

    @classmethod
    def of(cls, chosen: Chosen, folder: Path, data_dir: str = "") -> Given:
        """Of a ticket, with its data in a folder or where its config says.

        Raises UserError where no mask or no config comes with the state, or the data are not there.
        """
        chosen.needed("ticket bench")
        here = images.moved(chosen, data_dir)
        return cls(here, network(here), images.load(here), folder)

    def batches(self, split: data.SplitName, samples: int) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """As :func:`lth_scale.export.images.batches`."""
        return images.batches(self.dataset, split, samples)

    @cached_property
    def whole(self) -> Path:
        """The ONNX file of the whole network."""
        return self._program("whole.onnx", replace(self.found, small=self.found.model))

    @cached_property
    def small(self) -> Path:
        """The ONNX file of the network without dead units."""
        return self._program("small.onnx", self.found)

    def _program(self, name: str, found: Network) -> Path:
        write_onnx(found, self.folder / name)
        return self.folder / name


@dataclass(frozen=True)
class Contender:
    """One way to store and to run a ticket.

    Args:
        make: writes the file. Raises UserError with the reason where that cannot be done here.
        load: (file, threads) -> the program; needs nothing else, so that another process can do it.
        runtime: module that is there before memory is measured.
    """

    make: Callable[[Given], Path]
    load: Callable[[Path, int], Run]
    runtime: str


def torch_runner(model: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    """Of a network in eval mode."""

    def run(batch: Floats) -> Floats:
        with torch.inference_mode():
            logits: Floats = model(torch.from_numpy(batch)).numpy()
        return logits

    return run


def _int8(whole: bool) -> Callable[[Given], Path]:
    def make(given: Given) -> Path:
        program = given.whole if whole else given.small
        path = given.folder / f"{program.stem}.int8.onnx"
        write_int8(program, path, calibration(given.dataset))
        return path

    return make


def _weights(given: Given) -> Path:
    """All weights under their names, with what a network is built from."""
    path = given.folder / "weights.safetensors"
    files.save_tensors(path, given.chosen.tensors(), description(given.chosen.config))
    return path


def _eager(path: Path, threads: int) -> Run:
    return torch_runner(_eager_model(path))


def _eager_model(path: Path) -> nn.Module:
    tensors, about = files.load_tensors(path)
    model, _ = described(about, path)
    fill(model, tensors)
    return model


def _sparse(given: Given) -> Path:
    path, chosen = given.folder / "sparse", given.chosen
    write_sparse(chosen.tensors(), chosen.needed("a sparse file"), path, description(chosen.config), "fp32")
    return path


def _exported(given: Given) -> Path:
    path = given.folder / "small.pt2"
    write_torch_export(given.found, path)
    return path


def _program(path: Path, threads: int) -> Run:
    return torch_runner(torch.export.load(path).module())


def _semi_structured(given: Given) -> Path:
    path, chosen = given.folder / "semi_structured", given.chosen
    write_semi_structured(chosen.tensors(), chosen.needed("a 2:4 file"), path, description(chosen.config), "fp16")
    return path


def _gpu_dense(path: Path, threads: int) -> Run:
    if not torch.cuda.is_available():
        raise UserError("needs an NVIDIA GPU, and a torch that is built for CUDA and finds it")
    return _gpu_runner(_eager_model(path).to("cuda", torch.float16))


def _gpu_sparse(path: Path, threads: int) -> Run:
    model, _ = described(files.load_tensors(path)[1], path)
    return _gpu_runner(load_semi_structured(path, model))


def _gpu_runner(model: nn.Module) -> Run:
    """From NumPy to NumPy, so the way to the GPU and back counts."""
    return torch_runner(lambda images: model(images.to("cuda", torch.float16)).float().cpu())


BASELINE = "onnx dense"

# One line each. What is made of the whole network is "dense": pruned weights are zeros there, stored and multiplied.
CONTENDERS: dict[str, Contender] = {
    BASELINE: Contender(lambda given: given.whole, onnx_runner, "onnxruntime"),
    "onnx": Contender(lambda given: given.small, onnx_runner, "onnxruntime"),
    "onnx int8 dense": Contender(_int8(whole=True), onnx_runner, "onnxruntime"),
    "onnx int8": Contender(_int8(whole=False), onnx_runner, "onnxruntime"),
    "sparse": Contender(_sparse, lambda path, threads: load_sparse(path), "llvmlite.binding"),
    "torch dense": Contender(_weights, _eager, "torch"),
    "torch.export": Contender(_exported, _program, "torch"),
    "GPU fp16 dense": Contender(_weights, _gpu_dense, "torch"),
    "GPU fp16 2:4": Contender(_semi_structured, _gpu_sparse, "torch"),
}
