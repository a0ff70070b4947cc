"""The small network that a channel ticket is, trained from scratch: does the search pay (Liu et al. 2019)?"""

from lth_scale.arms.base import Arm, Sources, Start, arms
from lth_scale.rewinding import Clock


def equal_epochs(sources: Sources) -> Start:
    """An initialisation drawn for the small network's own layer sizes, for all T steps ("Scratch-E")."""
    return Start(sources.mask, sources.small(), "fresh initialisation of the small network", sources.whole())


def equal_flops(sources: Sources) -> Start:
    """The same for as many steps as cost what the dense network's T do ("Scratch-B"); its schedule is stretched."""
    whole = sources.whole()
    clock = Clock(0, round(whole.stop / sources.cost()), 0, whole.noise)
    return Start(sources.mask, sources.small(), "fresh initialisation of the small network", clock)


arms.register("small")(Arm(equal_epochs, structured=True))
arms.register("small_flops")(Arm(equal_flops, structured=True))
