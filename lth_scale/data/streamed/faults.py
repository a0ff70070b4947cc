"""What to do about samples that cannot be read: stop at the first, or replace, count, and stop at too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from lth_scale.data.dataset import SplitName
from lth_scale.errors import UserError

LOG = logging.getLogger("lth_scale.data")


class BadSample(Exception):
    """One sample cannot be served; the message says why."""


class BadShard(Exception):
    """No sample of a shard can be served: it is missing, or what was fetched is not what the index names."""


@dataclass(frozen=True)
class Fault:
    """A sample that could not be served.

    Args:
        shard: where the shard lies.
        split: the index's split.
        row: the sample's row in that split.
        offset: where its image begins in the shard, in bytes.
        reason: what is wrong.
    """

    shard: str
    split: SplitName
    row: int
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.row} of {self.split} (at byte {self.offset}): {self.reason}"


class Ledger:
    """The distinct bad samples seen in this process, by split.

    Args:
        share: data.faults, the share of a split's samples that may be bad.
        lengths: how many samples each split has.
    """

    def __init__(self, share: float, lengths: dict[SplitName, int]) -> None:
        self.share, self.lengths = share, lengths
        self.seen: dict[SplitName, set[tuple[str, int]]] = {split: set() for split in lengths}

    def note(self, split: SplitName, faults: Iterable[Fault]) -> None:
        """Log each sample that was not known to be bad; raises UserError when they are more than the share allows."""
        for fault in faults:
            where = fault.shard, fault.offset
            if where not in self.seen[split]:
                self.seen[split].add(where)
                self._count(split, fault)

    def _count(self, split: SplitName, fault: Fault) -> None:
        bad, most = len(self.seen[split]), self.share * self.lengths[split]
        mending = "restore the shard (lth data verify DIR checks them all)"
        if not self.share:
            raise UserError(f"{fault}; {mending}, or set data.faults to the share of samples that may be replaced")
        if bad > most:
            raise UserError(
                f"{fault}; with it {bad} of the {self.lengths[split]} samples of {split} are bad, more than "
                f"data.faults={self.share} allows; {mending}, or set data.faults higher"
            )
        LOG.warning("%s; replaced by the next that can be read (%d of at most %d)", fault, bad, int(most))
