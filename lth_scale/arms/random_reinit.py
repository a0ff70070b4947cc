"""A random mask and a new initialisation: what the per-layer densities alone achieve."""

from lth_scale.arms.base import Arm, Sources, Start, arms


def start(sources: Sources) -> Start:
    """A fresh initialisation under a random mask, for all T steps."""
    return Start(sources.permuted(), sources.fresh(), "fresh initialisation", sources.whole())


arms.register("random_reinit")(Arm(start))
