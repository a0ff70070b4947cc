"""Tickets as files that can be carried, masks of other programs, and how alike two masks are."""

from __future__ import annotations

from lth_scale.tickets.file import Ticket, is_ticket, load, pack
from lth_scale.tickets.foreign import READERS, Foreign
from lth_scale.tickets.naming import paired
from lth_scale.tickets.overlap import Overlap, compare, signs
from lth_scale.tickets.places import done_round, find, first_seed, of_run, theta_k
from lth_scale.tickets.streaming import stream
from lth_scale.tickets.units import matched

__all__ = [
    "READERS",
    "Foreign",
    "Overlap",
    "Ticket",
    "compare",
    "done_round",
    "find",
    "first_seed",
    "is_ticket",
    "load",
    "matched",
    "of_run",
    "pack",
    "paired",
    "signs",
    "stream",
    "theta_k",
]
