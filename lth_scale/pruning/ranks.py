"""The processes that together hold one copy of the model, and the only thing they exchange: sums of counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranks:
    """The shard group.

    Args:
        group: its process group; None means that this process holds everything.
        device: where the group's backend takes its tensors from.
    """

    group: dist.ProcessGroup | None
    device: torch.device

    @property
    def size(self) -> int:
        """How many processes hold a part."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's number within the group."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def sum(self, counts: Counts) -> Counts:
        """Elementwise sum over the group of an int64 array of any shape."""
        if self.group is None:
            return counts
        total = torch.from_numpy(counts.astype(np.int64)).to(self.device)
        dist.all_reduce(total, group=self.group)
        return total.cpu().numpy()

    def gather(self, counts: Counts) -> Counts:
        """Every process's array (all of one shape), stacked in order of rank."""
        table = np.zeros((self.size, *counts.shape), np.int64)
        table[self.rank] = counts
        return self.sum(table)
