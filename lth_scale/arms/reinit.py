"""The ticket's mask with a new initialisation, trained from position 0 (Frankle & Carbin 2019, section 2)."""

from lth_scale.arms.base import Arm, Sources, Start, arms


def start(sources: Sources) -> Start:
    """A fresh initialisation of this (replicate, round, draw) under the ticket's mask, for all T steps."""
    return Start(sources.mask, sources.fresh(), "fresh initialisation", sources.whole())


arms.register("reinit")(Arm(start, draws=True))
