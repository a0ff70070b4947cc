"""What a run keeps on disk: the plan's bytes are those of a real folder, and a big experiment stays in its budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import RESNET, play, tiny

from lth_scale import settings
from lth_scale.costs import Cost, Sizes, by_arm
from lth_scale.experiment import Experiment

BUDGET = 15e9  # bytes, as docs/slurm.md states it


def planned(experiment: Experiment) -> tuple[Cost, Sizes]:
    sizes = Sizes.of(experiment)
    return sum(by_arm(experiment, sizes).values(), Cost()), sizes


def held(root: Path) -> int:
    """Bytes of tensors: of files' headers, curves and records a small network has more."""
    return sum(path.stat().st_size for path in root.rglob("*.safetensors"))


@pytest.mark.parametrize("recipe", ["continue", "lr_rewinding"])
def test_a_folder_is_as_large_as_planned(recipe: str, tmp_path: Path) -> None:
    """Of each round the final state and the mask stay, and nothing of what training saved on its way."""
    train = {"duration": "6it", "eval_every": "6it", "checkpoint_every": "2it", "batch_size": 20, "optimizer": "adam"}
    config = tiny(model=RESNET | {"width": 8}, train=train, rewind={"at": "2it", "recipe": recipe})
    experiment = play(config, tmp_path)
    cost, _ = planned(experiment)
    assert cost.stored < held(tmp_path) < 1.1 * cost.stored


def test_twenty_rounds_of_five_seeds_of_resnet50(tmp_path: Path) -> None:
    words = ["imagenet_resnet50", "--run.seeds=0-4", "--prune.rounds=20"]
    cost, sizes = planned(Experiment.at(settings.parse(words), tmp_path))
    assert cost.rounds == 5 * 21
    assert cost.stored + 5 * sizes.peak < BUDGET
