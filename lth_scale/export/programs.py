"""Files that run without this project: ONNX, and torch.export's. Both take any number of images at once."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lth_scale import files
from lth_scale.errors import UserError
from lth_scale.export.network import Network

INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # of outputs, against the largest of them or 1
BATCHES = (1, 3)  # that a file is tried with

Runner = Callable[[torch.Tensor], torch.Tensor]


def write_onnx(found: Network, path: Path) -> tuple[int, float]:
    """An ONNX file in torch's current opset, tried in ONNX Runtime; (its bytes, largest difference of an output).

    Raises UserError when onnx, onnxscript or onnxruntime are not there, or when outputs differ; then there is no file.
    """
    missing("--format=onnx")
    with quiet():
        program = torch.onnx.export(_program(found), (), input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert program is not None
        content = program.model_proto.SerializeToString()
    run = onnx_runner(content, torch.get_num_threads())
    return _placed(found, path, content, lambda images: torch.from_numpy(run(images.numpy())))


def missing(what: str) -> None:
    """Raise UserError naming the packages that ONNX needs and that are not there."""
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if absent:
        raise UserError(f"{what} needs {', '.join(absent)}: pip install 'lth_scale[export]'")


def write_torch_export(found: Network, path: Path) -> tuple[int, float]:
    """A program for torch.export.load; (its bytes, largest difference of an output). Raises UserError as write_onnx."""
    held = io.BytesIO()
    with quiet():
        torch.export.save(_program(found), held)
        loaded = torch.export.load(io.BytesIO(held.getvalue())).module()
    return _placed(found, path, held.getvalue(), loaded)


def _program(found: Network) -> torch.export.ExportedProgram:
    example = torch.zeros(2, *found.shape)
    return torch.export.export(found.small, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def onnx_runner(program: bytes | Path, threads: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Images float32 [N, channels, height, width] -> logits float32 [N, classes], by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    held = str(program) if isinstance(program, Path) else program
    session = onnxruntime.InferenceSession(held, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _placed(found: Network, path: Path, content: bytes, run: Runner) -> tuple[int, float]:
    difference = _difference(found, run)
    with files.placing(path) as out, files.explained(path):
        out.write(content)
    return len(content), difference


@torch.no_grad()
def _difference(found: Network, run: Runner) -> float:
    """Of the file's outputs from the whole network's. Raises UserError where it is no rounding error."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for count in BATCHES:
        images = torch.randn(count, *found.shape, generator=generator)
        expected = found.model(images)
        largest = max(largest, float((run(images) - expected).abs().max()))
        if not largest <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"the exported program's outputs differ by {largest:.3g} for {count} images; nothing is written"
            )
    return largest


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notes on their progress and on deprecations of their own."""
    below = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(below)
