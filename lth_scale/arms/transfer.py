"""Tickets of another data set, optimizer or choice of classes, and their controls (Morcos et al. 2019, section 3).

The layers that ``transfer.layers`` leaves behind are fresh and whole in every one of these arms, the same fresh ones in
all that keep the ticket's weights, and all T steps are trained, with no optimizer state.
"""

from lth_scale.arms import reinit
from lth_scale.arms.base import Arm, Place, Sources, Start, arms


def ticket(sources: Sources) -> Start:
    """The source's mask and theta_k."""
    return Start(sources.mask, sources.carried(), f"theta_k of {sources.origin}", sources.whole())


def random(sources: Sources) -> Start:
    """The source's theta_k under a random mask of the same densities per layer."""
    return Start(sources.permuted(), sources.carried(), f"theta_k of {sources.origin}", sources.whole())


def dense(sources: Sources) -> Start:
    """The source's theta_k under no mask at all."""
    return Start(sources.unmasked(), sources.carried(), f"theta_k of {sources.origin}", sources.whole())


def after_dense(folder: str, number: int) -> tuple[Place, ...]:
    """The dense round alone: they are compared with it, and have its fresh layers; the mask comes from elsewhere."""
    return (("ticket", 0),)


arms.register("own")(Arm(ticket))  # the run's own ticket, treated as if it came from elsewhere
arms.register("transfer")(Arm(ticket, needs=after_dense, foreign=True))
arms.register("transfer_reinit")(Arm(reinit.start, needs=after_dense, foreign=True))
arms.register("transfer_random")(Arm(random, needs=after_dense, foreign=True))
arms.register("transfer_dense")(Arm(dense, rounds="one", needs=after_dense, foreign=True))
