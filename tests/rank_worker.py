"""What each rank of a test runs: jobs, one after the other, in one process group.

A job: ``{"words": [...], "out": DIR}`` plays a whole run; with ``"masks": [folders]`` it selects masks from states;
``"losses": FILE`` records the training loss of each step; ``"stop": STEP`` leaves after that step's checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lth_scale import lottery, settings, world
from lth_scale.checkpoint import Stored
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.tasks import Task
from lth_scale.training import callbacks, environment
from lth_scale.training.module import Classifier


class Left(Exception):
    """The job was to end here."""


def play(experiment: Experiment, job: dict[str, Any]) -> None:
    losses: list[float] = []
    step, save = Classifier.training_step, callbacks.Checkpoints._publish

    def recording(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        loss = step(self, batch, index)
        losses.append(float(loss.detach()))
        return loss

    def leaving(self: callbacks.Checkpoints, module: Classifier, at: int) -> None:
        save(self, module, at)
        if at == job.get("stop") and str(self._folder).endswith(job.get("round", "")):
            raise Left

    Classifier.training_step, callbacks.Checkpoints._publish = recording, leaving  # type: ignore[method-assign]
    try:
        lottery.run(experiment, experiment.tasks)
    except Left:
        pass
    finally:
        Classifier.training_step, callbacks.Checkpoints._publish = step, save  # type: ignore[method-assign]
    every = world.gathered(losses)
    if world.first() and "losses" in job:
        Path(job["losses"]).write_text(json.dumps(every))


def masks(experiment: Experiment, job: dict[str, Any]) -> None:
    """The mask selected from each stored state, by all ranks together, under the mask of a file or none."""
    ones = Mask.ones({p.name: p.shape for p in experiment.prunable})
    task = Task(int("under" in job), 0, "ticket")
    for number, folder in enumerate(job["masks"]):
        under = Mask.load(Path(job["under"])) if "under" in job else ones
        mask = lottery.next_mask(experiment, task, under, Stored.open(Path(folder)))
        if world.first():
            mask.save(Path(job["into"]) / f"{number}.safetensors")
        world.wait()


def run(jobs: Sequence[dict[str, Any]]) -> None:
    """As one of several ranks."""
    torch.set_num_threads(1)
    environment.join(settings.parse(jobs[0]["words"]).hardware)
    try:
        for job in jobs:
            experiment = Experiment.at(settings.parse(job["words"]), Path(job["out"]))
            if "masks" in job:
                masks(experiment, job)
            else:
                play(experiment.established(), job)
    finally:
        environment.leave()
