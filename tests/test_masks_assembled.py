"""A mask from the ranges that processes hold: the file of the whole, byte for byte."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from proofs import DONE
from states import spawned

from lth_scale import masks
from lth_scale.masks import Bits, Mask

pytestmark = pytest.mark.distributed

SHAPES = {"b.weight": (37, 11), "a.weight": (5, 3, 3, 3), "empty": (0, 4), "c.weight": (1,), "d.weight": (1003,)}


def whole() -> Mask:
    generator = torch.Generator().manual_seed(3)
    return Mask({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in SHAPES.items()})


def parts(rank: int, world: int) -> dict[str, tuple[int, Bits]]:
    """Ragged ranges, cut inside bytes, some of them empty; each read at a bit offset of its own."""
    made = {}
    for index, (name, kept) in enumerate(whole().items()):
        cuts = np.sort(np.random.default_rng(index).integers(0, kept.numel() + 1, world - 1))
        start, stop = list(pairwise([0, *cuts.tolist(), kept.numel()]))[rank]
        around = np.random.default_rng(rank).random(3 * rank + stop - start + 9) < 0.5
        around[3 * rank : 3 * rank + stop - start] = kept.flatten().numpy()[start:stop]
        made[name] = (start, Bits.pack(around).range(3 * rank, 3 * rank + stop - start))
    return made


def _work(rank: int, world: int, folder: Path) -> None:
    for piece in (16, 1 << 20):
        masks.PIECE = piece
        mask = Mask.assembled(SHAPES, parts(rank, world))
        assert (rank == 0) == (len(mask) > 0)
        if rank == 0:
            mask.save(folder / f"assembled_{piece}")
    mine = parts(rank, world) if rank else {}
    with pytest.raises(AssertionError, match="the processes hold"):
        Mask.assembled(SHAPES, mine)
    owned = {name: (0, Bits.pack(kept.flatten().numpy())) for name, kept in whole().items()} if rank == 1 else {}
    assert Mask.assembled(SHAPES, owned) == (whole() if rank == 0 else Mask({}))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_processes_give_the_file_of_one(world: int, tmp_path: Path) -> None:
    """Also: the weights that nobody holds are noticed on all of them, and one may hold everything for the first."""
    assert spawned(world, tmp_path / "group", lambda rank: _work(rank, world, tmp_path)) == [DONE] * world
    whole().save(tmp_path / "whole")
    for piece in (16, 1 << 20):
        assert (tmp_path / f"assembled_{piece}").read_bytes() == (tmp_path / "whole").read_bytes()


def test_alone(tmp_path: Path) -> None:
    mask = Mask.assembled(SHAPES, parts(0, 1))
    assert mask == whole() and mask.sha256() == whole().sha256() and list(mask) == list(SHAPES)
    mask.save(tmp_path / "assembled")
    whole().save(tmp_path / "whole")
    assert (tmp_path / "assembled").read_bytes() == (tmp_path / "whole").read_bytes()
