"""The same weights under a mask permuted within each layer: does structure matter? (Frankle et al. 2020, section 4)."""

from lth_scale.arms.base import Arm, Sources, Start, arms


def start(sources: Sources) -> Start:
    """theta_k under a random mask of the ticket's per-layer densities, steps k to T."""
    recipe = sources.from_theta_k()
    source = f"theta_{sources.theta_k().step}"
    return Start(sources.permuted(), sources.restored(recipe), source, sources.clock(recipe))


arms.register("random")(Arm(start))
