"""Any folder of images, one subfolder per class, kept as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lth_scale.data.dataset import SplitName
from lth_scale.data.definition import Definition, Preparation, datasets, shuffled
from lth_scale.data.streamed.listing import Listing, class_folders, list_folder
from lth_scale.data.streamed.parallel import bars
from lth_scale.data.streamed.writing import write
from lth_scale.errors import UserError

NAME = "jpeg_folder"
NEEDS = "a folder of class folders of images, or train/ and test/ (or val/, or both) of such"
TEST_PARTS = 10


def _folders(root: Path) -> dict[SplitName, Path]:
    """The folder of each split that the source has; the only one besides train is the test split."""
    train = root / "train"
    if not train.is_dir():
        return {"train": root}
    others = [root / name for name in ("val", "validation", "test") if (root / name).is_dir()]
    if len(others) == 2 and others[1].name == "test":
        return {"train": train, "validation": others[0], "test": others[1]}
    if len(others) > 1:
        raise UserError(f"--source {root} holds {', '.join(path.name for path in others)}; one of them is too many")
    return {"train": train, "test": others[0]} if others else {"train": train}


def _cut(listing: Listing) -> tuple[Listing, Listing]:
    rows = shuffled(len(listing.names), f"{NAME} held out")
    count = max(1, len(rows) // TEST_PARTS)
    return listing.take(np.sort(rows[count:])), listing.take(np.sort(rows[:count]))


def write_folder(order: Preparation) -> None:
    """Shards of a folder of class folders; raises UserError when it is none, or an image is not readable."""
    root = Path(order.sources[0])
    if not root.is_dir():
        raise UserError(f"--source {root} is not a folder; it must be {NEEDS}")
    folders = _folders(root)
    classes = class_folders(folders["train"])
    with bars(order.progress) as bar:
        splits = {split: list_folder(folder, classes, bar) for split, folder in folders.items()}
    if len(classes) < 2 or len(splits["train"].names) < 2:
        count = len(splits["train"].names)
        raise UserError(f"--source {root} gives {count} images of {len(classes)} classes; it must be {NEEDS}")
    made = {split: f"{split}: the folder {folder.name}" for split, folder in folders.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = _cut(splits["train"])
        made["test"] = "test: a tenth of the images, by a fixed seed"
    write(order, classes, splits, "; ".join(made.values()))


datasets.register(NAME)(Definition(description=None, needs=NEEDS, write=write_folder))
