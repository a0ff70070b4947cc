"""SVHN, street view house numbers: the cropped digits' .mat files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lth_scale.data.dataset import Description
from lth_scale.data.definition import Content, Definition, Images, Source, datasets, hold_out
from lth_scale.data.sources import download, locate
from lth_scale.errors import UserError

TRAIN, HELD_OUT, TEST = 73_257, 5000, 26_032
SHAPE = (3, 32, 32)
RULE = f"validation: {HELD_OUT} images drawn from train_32x32.mat by a fixed seed; test: test_32x32.mat"


def read_mat(path: Path) -> Images:
    """One .mat file: X uint8 [32, 32, 3, N] and y [N, 1], where 10 stands for 0; UserError naming a damaged one."""
    from scipy.io import loadmat

    try:
        value = loadmat(path, variable_names=["X", "y"])
        x, y = np.asarray(value["X"]), np.asarray(value["y"]).reshape(-1)
    except Exception as error:  # damaged .mat files raise nearly anything
        raise UserError(f"{path} is damaged ({error!r}); download it again, or give another --source") from None
    if x.dtype != np.uint8 or x.shape != (32, 32, 3, len(y)) or not ((y >= 0) & (y <= 10)).all():
        raise UserError(f"{path} is not a file of cropped digits: X {x.dtype} {x.shape}, y {y.shape}")
    return Images(np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.astype(np.int64) % 10)


def _read(source: Source) -> Content:
    train, validation = hold_out(read_mat(locate(source.path, ["train_32x32.mat"])), HELD_OUT, "svhn")
    test = read_mat(locate(source.path, ["test_32x32.mat"]))
    return Content(train, validation, test, tuple(map(str, range(10))), RULE)


def _fetch(folder: Path) -> None:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        url, _, md5 = SVHN.split_list[split]
        download([url], folder, md5)


datasets.register("svhn")(
    Definition(
        description=Description("svhn", 10, SHAPE, TRAIN - HELD_OUT, HELD_OUT, TEST),
        read=_read,
        needs="train_32x32.mat and test_32x32.mat",
        fetch=_fetch,
    )
)
