"""Shards on disk -> a data set in memory, decoded once and kept decoded beside the shards."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lth_scale import config, resources
from lth_scale.data import index as indexing
from lth_scale.data.adapting import adapted, described
from lth_scale.data.dataset import SPLITS, Dataset, Description, Split
from lth_scale.data.definition import datasets
from lth_scale.data.index import Index
from lth_scale.data.preparing import prepare, read_all
from lth_scale.data.streamed.loading import Streamed, open_streamed
from lth_scale.errors import UserError
from lth_scale.files import load_tensors, remove_folder, save_tensors, sha256_tensors, temporary


def default_dir(name: str) -> Path:
    """Where a data set is looked for when ``data.dir`` is empty: ``$XDG_CACHE_HOME/lth_scale/NAME``."""
    return resources.cache() / name


def folder_of(data: config.Data) -> Path:
    """The data set's folder of shards, whether it exists or not."""
    return Path(data.dir).expanduser() if data.dir else default_dir(data.name)


def make_in_place(name: str, folder: Path) -> None:
    """Prepare a data set that makes itself; any number of processes may do so at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = temporary(folder)
    prepare(name, scratch, progress=False)
    # Whoever comes second finds a full folder there, which a rename refuses to replace.
    with contextlib.suppress(OSError):
        os.rename(scratch, folder)
    remove_folder(scratch)


def _index(data: config.Data) -> Index:
    definition, folder = datasets[data.name], folder_of(data)
    found = (folder / indexing.NAME).exists()
    if not found and definition.makes_itself and not data.dir and not folder.exists():
        make_in_place(data.name, folder)
    elif not found:
        known = definition.makes_itself or any(place.is_dir() for place in definition.places)
        source = "" if known else " --source FILES"
        hint = "" if known else f" (FILES: {definition.needs})"
        raise UserError(
            f"data.dir={str(folder)!r} holds no {data.name}; make it with: "
            f"lth data prepare {data.name} --out {folder}{source}{hint}"
        )
    index = indexing.read(folder)
    if index.name != data.name:
        raise UserError(f"data.dir={str(folder)!r} holds {index.name}, not data.name={data.name!r}")
    return index


def describe(data: config.Data) -> Description:
    """Classes, shape and sizes, without the data at hand; those that only an index knows are read from it.

    A streamed set that is at hand tells its own sizes: it may be a part of what its name promises.
    """
    definition = datasets[data.name]
    known = definition.description
    if not definition.streamed:
        if data.classes:
            return _counted(load(data))
        return described(_index(data).description if known is None else known, data)
    at_hand = known is None or (folder_of(data) / indexing.NAME).exists()
    found = _index(data).description if at_hand else known
    assert found is not None
    return replace(
        found,
        shape=(3, data.crop, data.crop),
        train=found.train - data.held_out,
        validation=found.validation + data.held_out,
    )


def _counted(dataset: Dataset | Streamed) -> Description:
    train, validation, test = (dataset.length(split) for split in SPLITS)
    return Description(dataset.name, dataset.classes, dataset.shape, train, validation, test)


def _cached(path: Path, checksum: str) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    with contextlib.suppress(UserError):
        tensors, _ = load_tensors(path)
        if sha256_tensors(tensors) == checksum:
            return tensors
    return None


def _decoded(folder: Path, index: Index) -> dict[str, Tensor]:
    path = folder / f"decoded-{index.checksum[:16]}.safetensors"
    tensors = _cached(path, index.checksum)
    if tensors is None:
        tensors = {}
        for split, part in read_all(folder, index).items():
            tensors[f"{split}.images"] = torch.from_numpy(part.images)
            tensors[f"{split}.labels"] = torch.from_numpy(part.labels)
        # A cache only: a folder that is read-only, or full, serves as well, if more slowly.
        with contextlib.suppress(UserError):
            save_tensors(path, tensors, {"checksum": index.checksum})
    return tensors


@lru_cache(maxsize=2)
def _load(folder: Path, checksum: str, data: config.Data) -> Dataset | Streamed:
    index = indexing.read(folder)
    assert index.checksum == checksum
    if index.storage == "encoded":
        return open_streamed(folder, index, data)
    tensors = _decoded(folder, index)
    splits = {split: Split(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in SPLITS}
    whole = Dataset(
        name=index.name,
        classes=len(index.class_names),
        shape=index.shape,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        mean=index.mean,
        std=index.std,
        checksum=checksum,
    )
    return adapted(whole, data)


def load(data: config.Data) -> Dataset | Streamed:
    """The data set, in memory or opened for streaming, the same object each time in one process.

    The first load of one in memory checks and decodes the shards and leaves the result beside them; later ones map
    that file and check it. Raises UserError naming what is missing or damaged, with the command that makes it.
    """
    alone = config.Data(data.name, classes=data.classes, shape=data.shape)
    key = data if datasets[data.name].streamed else alone  # how it is augmented is no matter here
    return _load(folder_of(data).absolute(), _index(data).checksum, key)
