"""Any folder of images, one subfolder per class, made square and small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from lth_scale.data.definition import Content, Definition, Images, Source, datasets, hold_out, shuffled
from lth_scale.errors import UserError

NAME = "image_folder"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}
NEEDS = "a folder of class folders of images, or train/ (and val/ or validation/, and test/) of such"
HELD_OUT_PARTS = 10
LEAST = 3
"""One image for each split."""


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _listed(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    unknown = [path.name for path in _subfolders(folder) if path.name not in classes]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: no such class in the training images; it has {', '.join(classes)}")
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _square(path: Path, side: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}); remove or replace it") from None
    return np.asarray(fitted).transpose(2, 0, 1)


def _images(folder: Path, classes: tuple[str, ...], source: Source) -> Images:
    """All images of a split's folder, in a fixed shuffled order, so that every shard holds all classes."""
    files = _listed(folder, classes)
    images = np.empty((len(files), 3, source.size, source.size), np.uint8)
    labels = np.empty(len(files), np.int64)
    rows = shuffled(len(files), NAME)
    for row, file in enumerate(track(rows, f"{folder.name:10}", disable=not source.progress)):
        path, labels[row] = files[file]
        images[row] = _square(path, source.size)
    return Images(images, labels)


def _part(
    name: str, folder: Path | None, train: Images, classes: tuple[str, ...], source: Source
) -> tuple[Images, ...]:
    """(what is left of train, the split): read from its folder, or else cut from train."""
    if folder is None:
        return hold_out(train, max(1, len(train) // HELD_OUT_PARTS), f"{NAME} {name}")
    return train, _images(folder, classes, source)


def _read(source: Source) -> Content:
    root = source.path
    if not root.is_dir():
        raise UserError(f"--source {root} is not a folder; it must be {NEEDS}")
    top = root / "train" if (root / "train").is_dir() else root
    classes = tuple(path.name for path in _subfolders(top))
    train = _images(top, classes, source)
    if len(classes) < 2 or len(train) < LEAST:
        raise UserError(f"--source {root} gives {len(train)} images of {len(classes)} classes; it must be {NEEDS}")
    folders = {
        split: root / name
        for split, name in (("test", "test"), ("validation", "validation"), ("validation", "val"))
        if top != root and (root / name).is_dir()
    }
    train, test = _part("test", folders.get("test"), train, classes, source)
    train, validation = _part("validation", folders.get("validation"), train, classes, source)
    made = [
        f"{split}: "
        + (f"the folder {folders[split].name}" if split in folders else "a tenth of train, by a fixed seed")
        for split in ("test", "validation")
    ]
    rule = f"{'; '.join(made)}; images cropped to a square and resized to {source.size} x {source.size}"
    return Content(train, validation, test, classes, rule)


datasets.register(NAME)(Definition(description=None, read=_read, needs=NEEDS))
