"""int8 ONNX: an ONNX file quantised statically, its ranges read off training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lth_scale import data, files
from lth_scale.export import images
from lth_scale.export.images import Floats
from lth_scale.export.network import Network
from lth_scale.export.programs import INPUT, missing, onnx_runner, quiet, write_onnx

AT_ONCE = 16  # images, as all activations of a large network are in memory at a time
CALIBRATION = 256  # training images, evenly spread over the split, that ranges of activations are read off


def calibration(dataset: data.AnyDataset) -> list[Floats]:
    """The training images that ranges are read off, normalised, in batches."""
    return [found for found, _ in images.batches(dataset, "train", CALIBRATION)]


def export_int8(found: Network, dataset: data.AnyDataset, path: Path) -> tuple[int, float]:
    """A network as int8 ONNX; (the file's bytes, largest difference of an output on the calibration images).

    Raises UserError as :func:`write_int8`, and as :func:`lth_scale.export.programs.write_onnx` of float32.
    """
    missing("--format=onnx_int8")
    seen = calibration(dataset)
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(found, Path(folder) / "float.onnx")
        size = write_int8(Path(folder) / "float.onnx", path, seen)
    run = onnx_runner(path, torch.get_num_threads())
    with torch.inference_mode():
        return size, max(float(np.abs(run(one) - found.model(torch.from_numpy(one)).numpy()).max()) for one in seen)


def write_int8(program: Path, path: Path, batches: Sequence[Floats]) -> int:
    """Quantise an ONNX file; the new file's bytes.

    Weights become int8, symmetric, one scale for each output, so that 0 stays 0; activations uint8 with one range each,
    from the smallest to the largest value seen. Static quantisation of ONNX Runtime in QDQ form (Jacob et al. 2018).

    Args:
        program: as :func:`lth_scale.export.programs.write_onnx` makes it; left as it is.
        path: appears whole or not at all.
        batches: float32 [N, channels, height, width], normalised as in training.

    Raises:
        UserError: the system refuses the write.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        content = _quantised(program, Path(folder), batches)
    with files.placing(path) as out, files.explained(path):
        out.write(content)
    return len(content)


def _quantised(program: Path, folder: Path, batches: Sequence[Floats]) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            few = (batch[i : i + AT_ONCE] for batch in batches for i in range(0, len(batch), AT_ONCE))
            self.rest: Iterator[Floats] = few

        def get_next(self) -> dict[str, Floats] | None:
            batch = next(self.rest, None)
            return None if batch is None else {INPUT: batch}

    fused, out = folder / "fused.onnx", folder / "int8.onnx"
    quant_pre_process(str(program), str(fused), skip_symbolic_shape=True)
    quantize_static(
        str(fused),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out.read_bytes()
