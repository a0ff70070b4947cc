"""A miniature of ImageNet: the same few real JPEGs as class folders, and as the published tar files."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from lth_scale.data.streamed.imagenet import DEVKIT, TRAIN, VAL

# Numbers of the challenge, which do not follow the sorted names; 4 is a parent, no class.
NUMBERS = {"n01440764": 3, "n01443537": 1, "n02102040": 2}
PARENT = 4
WNIDS = tuple(NUMBERS)
PER_CLASS, TEST = 9, 7

Images = list[tuple[str, str, bytes]]
"""Class, file name, content."""


def picture(number: int, size: tuple[int, int] = (20, 16), mode: str = "RGB", kind: str = "jpeg") -> bytes:
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind)
    return buffer.getvalue()


@lru_cache
def images() -> dict[str, Images]:
    """Train and validation images in the order of their names; among them grey ones, CMYK and a PNG named JPEG."""
    train = []
    for label, wnid in enumerate(WNIDS):
        for number in range(PER_CLASS):
            mode, kind = {3: ("L", "jpeg"), 4: ("CMYK", "jpeg"), 5: ("RGB", "png")}.get(number, ("RGB", "jpeg"))
            data = picture(100 * label + number, (20 + number, 16 + label), mode, kind)
            train.append((wnid, f"{wnid}_{number}.JPEG", data))
    val = [(WNIDS[k * k % 3], f"ILSVRC2012_val_{k:08d}.JPEG", picture(1000 + k)) for k in range(TEST)]
    return {"train": train, "val": val}


def write_folders(root: Path) -> Path:
    for split, found in images().items():
        for wnid, name, data in found:
            (root / split / wnid).mkdir(parents=True, exist_ok=True)
            (root / split / wnid / name).write_bytes(data)
    return root


def tar(found: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in found:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def devkit(truth: list[str]) -> list[tuple[str, bytes]]:
    """Members of the development kit, with a real meta.mat."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.zeros((len(NUMBERS) + 1, 1), [(field, object) for field in fields])
    rows = [*((number, wnid, 0) for wnid, number in NUMBERS.items()), (PARENT, "n00001740", 2)]
    for place, (number, wnid, children) in enumerate(sorted(rows)):
        synsets[place, 0] = (float(number), wnid, f"words of {wnid}", "gloss", float(children), np.zeros(0), 0.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    root = "ILSVRC2012_devkit_t12"
    lines = "".join(f"{number}\n" for number in truth).encode()
    return [
        (f"{root}/readme.txt", b"read me"),
        (f"{root}/data/meta.mat", buffer.getvalue()),
        (f"{root}/data/ILSVRC2012_validation_ground_truth.txt", lines),
    ]


def write_archives(root: Path) -> Path:
    """The published files: classes and members in no particular order, as they came off a disk."""
    root.mkdir(parents=True, exist_ok=True)
    classes = defaultdict(list)
    for wnid, name, data in reversed(images()["train"]):
        classes[wnid].append((name, data))
    (root / TRAIN).write_bytes(tar([(f"{wnid}.tar", tar(found)) for wnid, found in classes.items()]))
    val = images()["val"]
    (root / VAL).write_bytes(tar([(name, data) for _, name, data in [*val[3:], *val[:3]]]))
    with tarfile.open(root / DEVKIT, "w:gz") as archive:
        for name, data in devkit([str(NUMBERS[wnid]) for wnid, _, _ in val]):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return root
