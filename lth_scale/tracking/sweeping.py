"""What a run found, in the W&B run of the agent that started it, once the whole experiment is done."""

from __future__ import annotations

import os

from lth_scale.experiment import Experiment
from lth_scale.tracking.aside import aside
from lth_scale.tracking.identity import mode


def tell(experiment: Experiment) -> None:
    """Log what is done in the agent's run, if there is one. Whatever W&B meets is one warning."""
    how = mode(experiment.config.tracking)
    if not how.log or "WANDB_SWEEP_ID" not in os.environ:
        return
    words = [str(experiment.paths.root), "online" if how.upload else "offline"]
    seeds = map(str, experiment.config.run.replicates)
    aside("telling", [*words, *seeds], "the agent's run lacks the results")
