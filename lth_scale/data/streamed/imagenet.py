"""ImageNet-1k (ILSVRC 2012): class folders, or the published tar files, read in place."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from rich.progress import Progress

from lth_scale.data.dataset import Description
from lth_scale.data.definition import Definition, Preparation, datasets
from lth_scale.data.streamed.listing import NO_PLACES, Column, Listing, class_folders, is_image, list_folder
from lth_scale.data.streamed.parallel import bars
from lth_scale.data.streamed.scanning import StrictInfo
from lth_scale.data.streamed.writing import write
from lth_scale.errors import UserError

NAME = "imagenet"
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
NEEDS = f"train/ and val/ with a folder per class, or {TRAIN}, {VAL} and {DEVKIT}"
RULE = (
    "train: the published training images; validation: none, data.held_out sets some of train aside; "
    "test: the published validation images"
)
MENDING = "download it again"

Place = tuple[str, int, int]
"""Name, offset and size of a file in a tar file."""


def _places(stream: IO[bytes], path: Path) -> Iterator[Place]:
    """The files of the tar file that begins where the stream stands; the offsets count from the stream's beginning."""
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=StrictInfo) as tar:
            yield from ((member.name, member.offset_data, member.size) for member in tar if member.isfile())
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} is damaged ({error}); {MENDING}") from None


def _columns(found: list[Place]) -> tuple[list[str], Column]:
    """Names, and offsets and sizes int64 [N, 2]: a tenth of the memory that a million tuples take."""
    return [name for name, _, _ in found], np.array([place[1:] for place in found], np.int64).reshape(-1, 2)


def list_train(archive: Path, bar: Progress) -> tuple[tuple[str, ...], Listing]:
    """Class names and images of a tar file of one tar file per class, which is not unpacked."""
    names: list[str] = []
    places: list[Column] = [NO_PLACES]
    with archive.open("rb") as stream:
        inner = sorted(place for place in _places(stream, archive) if place[0].endswith(".tar"))
        classes = tuple(Path(name).stem for name, _, _ in inner)
        for wnid, (name, start, size) in zip(classes, bar.track(inner, description="listing train"), strict=True):
            stream.seek(start)
            found, place = _columns(sorted(place for place in _places(stream, archive) if is_image(place[0])))
            if (place.sum(axis=1) > start + size).any():
                raise UserError(f"{archive}: {name} is damaged (it has no end); {MENDING}")
            names += [f"{wnid}/{image}" for image in found]
            places.append(place)
    labels = np.repeat(np.arange(len(classes)), [len(place) for place in places[1:]])
    return classes, Listing(archive, names, labels.astype(np.int64), np.concatenate(places))


def ground_truth(devkit: Path) -> list[str]:
    """The class (WordNet id) of each validation image in the order of their names; UserError if it is damaged."""
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as tar:
            texts = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith((META, TRUTH))}  # type: ignore[union-attr]
        meta, truth = (next(text for name, text in texts.items() if name.endswith(end)) for end in (META, TRUTH))
        # Number, WordNet id, words, gloss, number of children: what has children is no class of the challenge.
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {int(synset[0]): str(synset[1]) for synset in synsets if synset[4] == 0}
        return [wnids[int(line)] for line in truth.split()]
    except Exception as error:  # damaged .mat files raise nearly anything
        if isinstance(error, OSError | EOFError | zlib.error | tarfile.TarError):
            raise UserError(f"{devkit} cannot be read ({error}); {MENDING}") from None
        raise UserError(f"{devkit}: {META} and {TRUTH} are missing or damaged ({error!r}); {MENDING}") from None


def list_val(archive: Path, devkit: Path, classes: tuple[str, ...], bar: Progress) -> Listing:
    """The validation images, by class as in a folder of class folders; raises UserError when labels do not fit."""
    if not devkit.is_file():
        raise UserError(f"{devkit} is missing; it holds the labels of {archive.name}")
    wnids = ground_truth(devkit)
    with archive.open("rb") as stream:
        images = sorted(p for p in bar.track(_places(stream, archive), description="listing val") if is_image(p[0]))
    if len(images) != len(wnids):
        raise UserError(f"{archive} holds {len(images)} images, {devkit.name} labels {len(wnids)}; {MENDING}")
    unknown = set(wnids) - set(classes)
    if unknown:
        raise UserError(f"{devkit}: class {min(unknown)} of the validation images is not in the training images")
    numbers = {wnid: label for label, wnid in enumerate(classes)}
    labelled = zip(wnids, images, strict=True)
    names, places = _columns(sorted((f"{wnid}/{name}", offset, size) for wnid, (name, offset, size) in labelled))
    labels = np.array([numbers[name.partition("/")[0]] for name in names], np.int64)
    return Listing(archive, names, labels, places)


def write_imagenet(order: Preparation) -> None:
    """Shards of ImageNet or of a part of it; raises UserError naming what is missing or damaged."""
    root = Path(order.sources[0])
    folders = (root / "train").is_dir() and (root / "val").is_dir()
    if not folders and not ((root / TRAIN).is_file() and (root / VAL).is_file()):
        raise UserError(f"--source {root} is not ImageNet; it must hold {NEEDS}")
    with bars(order.progress) as bar:
        if folders:
            classes = class_folders(root / "train")
            train, val = (list_folder(root / name, classes, bar) for name in ("train", "val"))
        else:
            classes, train = list_train(root / TRAIN, bar)
            val = list_val(root / VAL, root / DEVKIT, classes, bar)
    write(order, classes, {"train": train, "test": val}, RULE)


datasets.register(NAME)(
    Definition(
        description=Description(NAME, 1000, (3, 224, 224), 1_281_167, 0, 50_000),
        needs=NEEDS,
        write=write_imagenet,
    )
)
