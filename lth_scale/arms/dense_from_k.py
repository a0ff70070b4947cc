"""The dense network trained from theta_k as a ticket would be: what the rewind itself costs or gains."""

from lth_scale.arms.base import Arm, Sources, Start, arms


def start(sources: Sources) -> Start:
    """theta_k under an all-ones mask; with the recipe ``continue`` it repeats the dense round bit for bit."""
    recipe = sources.from_theta_k()
    return Start(sources.unmasked(), sources.restored(recipe), f"theta_{sources.theta_k().step}", sources.clock(recipe))


arms.register("dense_from_k")(Arm(start, rounds="one"))
