"""MNIST and Fashion-MNIST: IDX files, plain or gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lth_scale.data.dataset import Description
from lth_scale.data.definition import Content, Definition, Images, Source, datasets, hold_out
from lth_scale.data.sources import download, locate
from lth_scale.errors import UserError

HELD_OUT = 5000
UBYTE = 8
MENDING = "download it again, or give another --source"


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); {MENDING}") from None


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzip or plain, as an array of its own shape; UserError naming a damaged one."""
    data = _unpacked(path)
    rank = data[3] if len(data) > 3 else 0
    if data[:3] != bytes([0, 0, UBYTE]) or not 1 <= rank <= 4 or len(data) < 4 + 4 * rank:
        raise UserError(f"{path} is not an IDX file of unsigned bytes (it starts with {data[:4].hex()}); {MENDING}")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    values = np.frombuffer(bytearray(data), np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} holds {values.size} values, its header says {shape}; {MENDING}")
    return values.reshape(shape)


def _part(source: Path, prefix: str) -> Images:
    paths = []
    for stem in (f"{prefix}-images", f"{prefix}-labels"):
        kind = "idx3" if stem.endswith("images") else "idx1"
        names = [f"{stem}{dot}{kind}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        paths.append(locate(source, names))
    images, labels = map(read_idx, paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(f"{paths[0]} {images.shape} and {paths[1]} {labels.shape} do not belong together; {MENDING}")
    return Images(images[:, None], labels.astype(np.int64))


def _reader(name: str, class_names: tuple[str, ...]) -> Callable[[Source], Content]:
    def read(source: Source) -> Content:
        train, validation = hold_out(_part(source.path, "train"), HELD_OUT, name)
        rule = f"validation: {HELD_OUT} images drawn from the standard training set by a fixed seed; test: as published"
        return Content(train, validation, _part(source.path, "t10k"), class_names, rule)

    return read


def _fetcher(name: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        from torchvision.datasets import MNIST, FashionMNIST

        kind = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[name]
        for file, md5 in kind.resources:
            download([mirror + file for mirror in kind.mirrors], folder, md5)

    return fetch


def _define(name: str, class_names: tuple[str, ...], places: tuple[Path, ...] = ()) -> None:
    datasets.register(name)(
        Definition(
            description=Description(name, 10, (1, 28, 28), 60_000 - HELD_OUT, HELD_OUT, 10_000),
            read=_reader(name, class_names),
            needs="the four IDX files (train-images-idx3-ubyte and so on), plain or .gz",
            places=places,
            fetch=_fetcher(name),
        )
    )


_define("mnist", tuple(map(str, range(10))))
_define(
    "fashion_mnist",
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    (Path("/usr/share/datasets/fashion-mnist"),),
)
