"""The ticket: its weights rewound as the recipe says (Frankle & Carbin 2019, section 1; Frankle et al. 2020)."""

from lth_scale.arms.base import Arm, Sources, Start, arms


def start(sources: Sources) -> Start:
    """theta_k (or what the recipe names) under the ticket's mask."""
    recipe = sources.recipe
    names = {"k": f"theta_{sources.theta_k().step}", "T": f"theta_T of round {sources.number - 1}"}
    return Start(sources.mask, sources.restored(recipe), names[recipe.weights], sources.clock(recipe))


arms.register("ticket")(Arm(start))
