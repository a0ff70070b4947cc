"""Only the signs of theta_k are kept, all of a layer's magnitudes equal (Zhou et al. 2019, section 4)."""

from dataclasses import replace

import torch

from lth_scale.arms.base import Arm, Sources, Start, arms


def start(sources: Sources) -> Start:
    """sign(theta_k) times the layer's standard deviation under the ticket's mask, fresh optimizer, steps k to T."""
    recipe = replace(sources.from_theta_k(), optimizer="fresh")
    state = sources.restored(recipe).whole()
    signs = {name: torch.sign(state.weights[name]) * state.weights[name].std() for name in sources.mask}
    state = replace(state, weights=state.weights | signs)
    return Start(sources.mask, state, f"sign of theta_{sources.theta_k().step}", sources.clock(recipe))


arms.register("sign")(Arm(start))
