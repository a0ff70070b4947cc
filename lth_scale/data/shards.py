"""WebDataset shards: POSIX tar files of ``KEY.png`` and ``KEY.cls``, the same bytes each time they are made."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lth_scale.data.dataset import SplitName
from lth_scale.data.definition import Images
from lth_scale.data.index import Shard
from lth_scale.errors import UserError
from lth_scale.files import sha256_bytes, write_bytes

MAX_SAMPLES = 5000
MAX_PIXEL_BYTES = 256 << 20
MENDING = "remove the folder's index.json and prepare the data anew"


class Sample(NamedTuple):
    """One entry of a shard: its key, and the bytes of its label and image."""

    key: str
    label: bytes
    image: bytes


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """uint8 [C, H, W] with 1 or 3 channels -> PNG."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def decode(data: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """PNG -> uint8 [C, H, W]; raises ValueError when it is damaged or not of that shape."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"the image is damaged: {error}") from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"the image is {pixels.dtype} {pixels.shape}, not uint8 {shape}")
    return pixels


def shard_sizes(samples: int, pixels: int) -> list[int]:
    """How many samples each shard of a split holds, for images of ``pixels`` bytes."""
    most = max(1, min(MAX_SAMPLES, MAX_PIXEL_BYTES // pixels))
    return [min(most, samples - start) for start in range(0, samples, most)]


def write_shard(folder: Path, split: SplitName, number: int, samples: Images, first: int) -> Shard:
    """Write one shard of a split, whose first sample has the position ``first`` in the split."""
    from webdataset import TarWriter

    buffer = io.BytesIO()
    with TarWriter(buffer, encoder=False, mtime=0) as writer:
        for position, (pixels, label) in enumerate(zip(samples.images, samples.labels, strict=True), first):
            key = f"{split}-{position:08d}"
            writer.write({"__key__": key, "png": encode(pixels), "cls": str(label).encode()})
    data = buffer.getvalue()
    file = f"{split}-{number:06d}.tar"
    write_bytes(folder / file, data)
    return Shard(file, len(samples), len(data), sha256_bytes(data))


def _entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            content = data[member.offset_data : member.offset_data + member.size]
            if len(content) < member.size:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            yield member.name, content


def _samples(data: bytes) -> Iterator[Sample]:
    entries = _entries(data)
    for name, label in entries:
        other, image = next(entries, ("nothing", b""))
        key = name.removesuffix(".cls")
        if (name, other) != (f"{key}.cls", f"{key}.png"):
            raise tarfile.ReadError(f"{name} is followed by {other}, not by an image of the same sample")
        yield Sample(key, label, image)


def _label(text: bytes, classes: int) -> int:
    label = int(text)
    if not 0 <= label < classes:
        raise ValueError(f"the label {label} is not in 0..{classes - 1}")
    return label


def _decoded(path: Path, data: bytes, shard: Shard, shape: tuple[int, int, int], classes: int) -> Images:
    images = np.empty((shard.samples, *shape), np.uint8)
    labels = np.empty(shard.samples, np.int64)
    count, key = 0, "none"
    try:
        for sample in _samples(data):
            key = sample.key
            if count < shard.samples:
                images[count] = decode(sample.image, shape)
                labels[count] = _label(sample.label, classes)
            count += 1
    except ValueError as error:
        raise UserError(f"{path}: sample {key}: {error}; {MENDING}") from None
    except tarfile.TarError as error:
        raise UserError(f"{path} is damaged after sample {key} ({error}); {MENDING}") from None
    if count != shard.samples:
        raise UserError(f"{path} holds {count} samples (last: {key}), the index says {shard.samples}; {MENDING}")
    return Images(images, labels)


def read_shard(folder: Path, shard: Shard, shape: tuple[int, int, int], classes: int) -> Images:
    """Check and decode one shard.

    Raises UserError naming the shard, and the sample where there is one: missing, truncated, checksum differs,
    label not in 0..classes-1, image damaged or of another shape.
    """
    path = folder / shard.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {MENDING}") from None
    samples = _decoded(path, data, shard, shape, classes)
    if sha256_bytes(data) != shard.sha256:
        raise UserError(f"{path} is damaged (its checksum differs from the index); {MENDING}")
    return samples
