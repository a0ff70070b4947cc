"""Where every sample of a split lies: what makes a sequential tar file a random-access one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lth_scale.data.dataset import SPLITS, SplitName
from lth_scale.errors import UserError
from lth_scale.files import load_tensors, save_tensors, sha256_bytes, sha256_file

NAME = "samples.safetensors"

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Samples:
    """One split, a row per sample in the order of the shards; every column int64 [N].

    Args:
        shard: position of its shard in the index's list of the split.
        offset: where the image's bytes begin in the (uncompressed) tar file.
        size: how many bytes it has.
        label: its class.
        crc: CRC-32 of those bytes.
        sound: 1 if they are a JPEG that decoded whole without a warning when the table was made, else 0.
    """

    shard: Column
    offset: Column
    size: Column
    label: Column
    crc: Column
    sound: Column

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Column) -> Samples:
        """Those rows."""
        return Samples(*(getattr(self, column.name)[rows] for column in fields(self)))


def write(folder: Path, splits: dict[SplitName, Samples]) -> str:
    """Write the table beside the index; its hex SHA-256, which the index records."""
    columns = {
        f"{split}.{column.name}": torch.from_numpy(np.ascontiguousarray(getattr(part, column.name), np.int64))
        for split, part in splits.items()
        for column in fields(part)
    }
    return sha256_bytes(save_tensors(folder / NAME, columns, {}))


def read(folder: Path, sha256: str) -> dict[SplitName, Samples]:
    """Read the table; raises UserError when it is missing, damaged or not the one that the index names."""
    path = folder / NAME
    if not path.is_file() or sha256_file(path) != sha256:
        raise UserError(f"{path} is missing or damaged (its checksum differs from the index); prepare the data anew")
    columns, _ = load_tensors(path)
    for split in SPLITS:  # a table of before there was that column: its images are decoded whole, to the same pixels
        columns.setdefault(f"{split}.sound", torch.zeros_like(columns[f"{split}.label"]))
    return {
        split: Samples(*(columns[f"{split}.{column.name}"].numpy() for column in fields(Samples))) for split in SPLITS
    }
