"""What a run found, in the W&B run of the agent that started it.

An agent names its own run, the point of its sweep, to everything below it. Rounds are runs of their own and must not
take it; the whole experiment does, once it is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lth_scale.experiment import Experiment
from lth_scale.tracking.aside import aside
from lth_scale.tracking.identity import mode

VARIABLES = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID", "WANDB_SERVICE")
"""The agent's own run, and the process that speaks to the service for whoever set it, and ends with them."""


@contextmanager
def apart() -> Iterator[None]:
    """What uses W&B's client inside sees nothing of the agent."""
    held = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def tell(experiment: Experiment) -> None:
    """Log what is done in the agent's run, if there is one. Whatever W&B meets is one warning."""
    how = mode(experiment.config.tracking)
    if not how.log or "WANDB_SWEEP_ID" not in os.environ:
        return
    words = [str(experiment.paths.root), "online" if how.upload else "offline"]
    seeds = map(str, experiment.config.run.replicates)
    aside("telling", [*words, *seeds], "the agent's run lacks the results")
