"""Image folders of any kind become shards, or are refused by the name of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lth_scale import config
from lth_scale.data import describe, load, prepare
from lth_scale.errors import UserError


def write_classes(folder: Path, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20 + number, 15), (100 * label, number, 7)).save(folder / name / f"{number}.png")


def test_one_level_of_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "source", 10)
    prepare("image_folder", tmp_path / "out", tmp_path / "source", progress=False, size=8)
    data = config.Data(name="image_folder", dir=str(tmp_path / "out"))
    dataset, told = load(data), describe(data)
    assert (told.classes, told.shape, told.train, told.validation, told.test) == (2, (3, 8, 8), 17, 1, 2)
    splits = (dataset.train, dataset.validation, dataset.test)
    colours = sorted(tuple(image[:, 0, 0].tolist()) for split in splits for image in split.images)
    assert colours == sorted((100 * label, number, 7) for label in range(2) for number in range(10))
    assert all(
        int(image[0, 0, 0]) == 100 * int(label)
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert len(set(dataset.train.labels[:8].tolist())) == 2, "classes are mixed within a shard"


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_splits(validation: str, tmp_path: Path) -> None:
    for split, count in (("train", 5), (validation, 3), ("test", 2)):
        write_classes(tmp_path / "source" / split, count)
    summary = prepare("image_folder", tmp_path / "out", tmp_path / "source", progress=False)
    told = summary.index.description
    assert (told.train, told.validation, told.test, told.shape) == (10, 6, 4, (3, 64, 64))
    assert f"validation: the folder {validation}" in summary.index.split_rule


def test_bad_image_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_folder needs --source"):
        prepare("image_folder", tmp_path / "out", progress=False)
    write_classes(tmp_path / "one", 5, ("cat",))
    with pytest.raises(UserError, match="5 images of 1 classes"):
        prepare("image_folder", tmp_path / "out", tmp_path / "one", progress=False)
    write_classes(tmp_path / "two" / "train", 5)
    write_classes(tmp_path / "two" / "val", 5, ("cat", "cow"))
    with pytest.raises(UserError, match=r"cow: no such class.*cat, dog"):
        prepare("image_folder", tmp_path / "out", tmp_path / "two", progress=False)
    (tmp_path / "one" / "dog").mkdir()
    (tmp_path / "one" / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    with pytest.raises(UserError, match=r"broken\.jpg is not a readable image"):
        prepare("image_folder", tmp_path / "out", tmp_path / "one", progress=False)
    with pytest.raises(UserError, match="size=32"):
        prepare("digits", tmp_path / "out", progress=False, size=32)
