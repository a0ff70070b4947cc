"""``index.json``: what a folder of shards holds. It is written last, so its presence means that the folder is whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from lth_scale.data.dataset import SPLITS, Description, SplitName
from lth_scale.errors import UserError
from lth_scale.files import read_json, write_json

NAME = "index.json"
SCHEMA = 1


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many samples it holds, its size in bytes and its hex SHA-256."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A folder of shards in words and numbers; ``checksum`` is over images and labels, not over their encoding."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    split_rule: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    splits: dict[SplitName, tuple[Shard, ...]]

    def samples(self, split: SplitName) -> int:
        """The number of samples of a split."""
        return sum(shard.samples for shard in self.splits[split])

    @property
    def description(self) -> Description:
        """Classes, shape and sizes."""
        return Description(self.name, len(self.class_names), self.shape, *(self.samples(split) for split in SPLITS))


def write(folder: Path, index: Index) -> None:
    """Write the index of a folder whose shards are all in place."""
    value = {"schema": SCHEMA, "classes": len(index.class_names)} | asdict(index)
    value["splits"] = {
        split: {"samples": index.samples(split), "shards": [asdict(shard) for shard in shards]}
        for split, shards in index.splits.items()
    }
    write_json(folder / NAME, value)


def read(folder: Path) -> Index:
    """Read a folder's index; raises UserError when it is missing, damaged or of another schema."""
    path = folder / NAME
    if not path.exists():
        raise UserError(f"{folder} holds no data set (no {NAME}); make one with: lth data prepare NAME --out {folder}")
    value = read_json(path)
    try:
        if value["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {value['schema']}, this version reads {SCHEMA}; prepare the data anew")
        splits = {split: tuple(Shard(**shard) for shard in value["splits"][split]["shards"]) for split in SPLITS}
        channels, height, width = value["shape"]
        return Index(
            name=value["name"],
            shape=(channels, height, width),
            class_names=tuple(value["class_names"]),
            split_rule=value["split_rule"],
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
            checksum=value["checksum"],
            splits=splits,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove it and prepare the data anew") from None
