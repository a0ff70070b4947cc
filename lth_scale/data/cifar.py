"""CIFAR-10 and CIFAR-100: the authors' Python batches, as the published tar.gz or unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lth_scale.data.dataset import Description
from lth_scale.data.definition import Content, Definition, Images, Source, datasets, hold_out
from lth_scale.data.sources import download
from lth_scale.errors import UserError

HELD_OUT = 5000
SHAPE = (3, 32, 32)
RULE = f"validation: {HELD_OUT} images drawn from the published training batches by a fixed seed; test: as published"
MENDING = "download it again, or give another --source"

# All that a pickled array of numbers needs; NumPy has renamed its modules over the years.
SAFE = {
    (module, name)
    for root in ("numpy.core", "numpy._core")
    for module, name in (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        (f"{root}.multiarray", "_reconstruct"),
        (f"{root}.multiarray", "scalar"),
        (f"{root}.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    )
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of arrays needs")
        return super().find_class(module, name)


def unpickle(data: bytes, path: str) -> dict[bytes, Any]:
    """A batch's dictionary; nothing but arrays, numbers, text, lists and dictionaries is ever built.

    Raises UserError naming ``path`` when it is damaged or asks for anything else.
    """
    try:
        value = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path} is damaged or not a batch of images ({error}); {MENDING}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a batch's dictionary; {MENDING}")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


@dataclass(frozen=True)
class Layout:
    """Where one of the two data sets keeps what."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes

    def files(self) -> tuple[str, ...]:
        """All files, the test batch and the class names last."""
        return (*self.train, self.test, self.meta)


CIFAR10 = Layout(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels=b"labels",
    names=b"label_names",
)
CIFAR100 = Layout(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    meta="meta",
    labels=b"fine_labels",
    names=b"fine_label_names",
)


def _from_archive(path: Path, layout: Layout) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as tar:
            streams = {name: tar.extractfile(f"{layout.folder}/{name}") for name in layout.files()}
            return {name: stream.read() for name, stream in streams.items() if stream is not None}
    except KeyError as error:
        raise UserError(f"{path} is not {layout.archive} ({error.args[0]}); {MENDING}") from None
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} is damaged ({error}); {MENDING}") from None


def _files(source: Path, layout: Layout) -> dict[str, bytes]:
    for archive in (source, source / layout.archive):
        if archive.is_file():
            return _from_archive(archive, layout)
    for folder in (source, source / layout.folder):
        if (folder / layout.test).is_file():
            missing = [name for name in layout.files() if not (folder / name).is_file()]
            if missing:
                raise UserError(f"--source {folder} lacks {', '.join(missing)}")
            return {name: (folder / name).read_bytes() for name in layout.files()}
    raise UserError(f"--source {source} holds neither {layout.archive} nor {layout.folder}/{layout.test}")


def _images(batches: Sequence[tuple[str, dict[bytes, Any]]], key: bytes, classes: int) -> Images:
    images, labels = [], []
    for path, batch in batches:
        data, truth = np.asarray(batch.get(b"data", ())), np.asarray(batch.get(key, ()))
        if data.dtype != np.uint8 or data.shape != (len(truth), 3072) or truth.dtype.kind not in "iu":
            raise UserError(f"{path}: its images are {data.dtype} {data.shape}, its labels {truth.shape}; {MENDING}")
        if not ((truth >= 0) & (truth < classes)).all():
            raise UserError(f"{path}: a label is not in 0..{classes - 1}; {MENDING}")
        images.append(data.reshape(-1, *SHAPE))
        labels.append(truth.astype(np.int64))
    return Images(np.concatenate(images), np.concatenate(labels))


def read_parts(source: Path, layout: Layout) -> tuple[Images, Images, tuple[str, ...]]:
    """(train, test, class names) as published, of any number of images; UserError naming a missing or damaged file."""
    batches = {name: unpickle(data, f"{source}: {name}") for name, data in _files(source, layout).items()}
    meta = batches[layout.meta].get(layout.names, ())
    names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in meta)
    if not names:
        raise UserError(f"{source}: {layout.meta} holds no {layout.names.decode()}; {MENDING}")
    train = _images([(f"{source}: {name}", batches[name]) for name in layout.train], layout.labels, len(names))
    test = _images([(f"{source}: {layout.test}", batches[layout.test])], layout.labels, len(names))
    return train, test, names


def _define(name: str, classes: int, layout: Layout) -> None:
    def read(source: Source) -> Content:
        train, test, names = read_parts(source.path, layout)
        rest, validation = hold_out(train, HELD_OUT, name)
        return Content(rest, validation, test, names, RULE)

    def fetch(folder: Path) -> None:
        from torchvision.datasets import CIFAR10 as Ten
        from torchvision.datasets import CIFAR100 as Hundred

        published = Ten if layout is CIFAR10 else Hundred
        download([published.url], folder, published.tgz_md5)

    datasets.register(name)(
        Definition(
            description=Description(name, classes, SHAPE, 50_000 - HELD_OUT, HELD_OUT, 10_000),
            read=read,
            needs=f"{layout.archive}, or the folder {layout.folder} from it",
            fetch=fetch,
        )
    )


_define("cifar10", 10, CIFAR10)
_define("cifar100", 100, CIFAR100)
