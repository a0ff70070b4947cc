"""``index.json``: what a folder of shards holds. It is written last, so its presence means that the folder is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from lth_scale.data.dataset import SPLITS, Description, SplitName
from lth_scale.errors import UserError
from lth_scale.files import read_json, sha256_bytes, write_json

NAME = "index.json"
SCHEMA = 1

Storage = Literal["pixels", "encoded"]


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        file: its name in the folder; of shards that lie elsewhere, an absolute path, or what WebDataset opens
            (a URL, ``pipe:`` and a command).
        samples: how many it holds.
        bytes: its size as it is read there, compressed if it is.
        sha256: hex SHA-256 of those bytes.
    """

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A folder of shards in words and numbers.

    Args:
        name: of the data set.
        shape: (C, H, W); of encoded images, which keep their own sizes, (3, 0, 0).
        class_names: by label.
        split_rule: in words, how the splits came about and what was changed.
        mean: per channel, in units of 1/255.
        std: per channel, in units of 1/255.
        checksum: hex SHA-256; of pixels over images and labels, whatever their encoding, of encoded images over
            the shards (:func:`encoded_checksum`).
        splits: their shards, in order.
        storage: pixels are small enough to be held in memory, encoded images are read one by one from the shards.
        samples: of encoded images, the hex SHA-256 of the table that says where each lies.
    """

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    split_rule: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    splits: dict[SplitName, tuple[Shard, ...]]
    storage: Storage = "pixels"
    samples: str = ""

    def count(self, split: SplitName) -> int:
        """The number of samples of a split."""
        return sum(shard.samples for shard in self.splits[split])

    @property
    def description(self) -> Description:
        """Classes, shape and sizes."""
        return Description(self.name, len(self.class_names), self.shape, *(self.count(split) for split in SPLITS))


def encoded_checksum(splits: Mapping[SplitName, tuple[Shard, ...]]) -> str:
    """Hex SHA-256 over (split, SHA-256, samples) of all shards in order: equal exactly when all bytes are."""
    lines = [f"{split} {shard.sha256} {shard.samples}\n" for split in SPLITS for shard in splits[split]]
    return sha256_bytes("".join(lines).encode())


def write(folder: Path, index: Index) -> None:
    """Write the index of a folder whose shards are all in place."""
    value = {"schema": SCHEMA, "classes": len(index.class_names)} | asdict(index)
    value["splits"] = {
        split: {"samples": index.count(split), "shards": [asdict(shard) for shard in shards]}
        for split, shards in index.splits.items()
    }
    write_json(folder / NAME, value)


def remove_strays(folder: Path, index: Index) -> None:
    """Delete what an earlier preparation has left in the folder: shards that the index does not name, decoded data."""
    known = {shard.file for shards in index.splits.values() for shard in shards}
    for split in SPLITS:
        for path in folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
            if path.name not in known:
                path.unlink()
    for path in folder.glob("decoded-*.safetensors"):
        path.unlink()


def _storage(value: str) -> Storage:
    for storage in get_args(Storage):
        if value == storage:
            return storage
    raise ValueError(f"storage {value!r}")


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
            storage=_storage(value.get("storage", "pixels")),
            samples=value.get("samples", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove it and prepare the data anew") from None
