"""Small made-up data sets as folders of shards, for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lth_scale import config
from lth_scale.data import Dataset, load, loading
from lth_scale.data.definition import Content, Images, hold_out
from lth_scale.data.preparing import write_content


def content(channels: int = 3, count: int = 30) -> Content:
    rng = np.random.default_rng(channels)
    images = Images(rng.integers(0, 256, (count, channels, 6, 5), np.uint8), rng.integers(0, 4, count))
    rest, test = hold_out(images, 8, "made")
    train, validation = hold_out(rest, 5, "made")
    return Content(train, validation, test, ("a", "b", "c", "d"), "by hand")


def made(folder: Path, channels: int = 3) -> Path:
    write_content("image_folder", content(channels), folder)
    return folder


def data(folder: Path, name: str = "image_folder") -> config.Data:
    return config.Data(name=name, dir=str(folder))


def reload(folder: Path) -> Dataset:
    loading._load.cache_clear()
    return load(data(folder))
