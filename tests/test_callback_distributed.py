"""PruningCallback on two processes with DDP, under both of Lightning's names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import foreign
import pytest

from lth_scale import pruning
from lth_scale.config import Prune
from lth_scale.masks import Mask

SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch, foreign
from lth_scale import PruningCallback
from tiny_runs import captured
torch.set_num_threads(1)
told = []
for namespace, number in [(namespace, number) for namespace in foreign.NAMESPACES for number in range(3)]:
    folder = Path({folder!r}, namespace)
    callback = PruningCallback(folder / "t", 0.3, "4it")
    make = lambda: foreign.module(namespace, foreign.adamw, seed=number)
    module = foreign.fit(namespace, folder, [callback], make, strategy="ddp", devices=2)
    end = captured(module, module.trainer.optimizers, 0)
    wrong = sum(int(end.weights[n][~kept].count_nonzero()) for n, kept in callback.mask.items())
    masks = callback._tickets.mask(number + 1, callback.mask.shapes).sha256()
    total = sum(weight.double().sum().item() for weight in end.weights.values())
    trainer = module.trainer
    this = callback.mask.sha256()
    told.append([number, this, masks, wrong, total, module.seen, trainer.global_step, trainer.world_size])
    if number == 2:
        (folder / f"rank_{{module.global_rank}}.json").write_text(json.dumps(told))
        told = []
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's script, which Lightning starts a second time as the other process."""
    folder = tmp_path_factory.mktemp("trained")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("namespace", foreign.NAMESPACES)
def test_three_rounds_on_two_processes(namespace: str, trained: Path) -> None:
    folder = trained / namespace
    first, second = (told(folder, rank) for rank in (0, 1))
    for (_, *one), (_, *other) in zip(first, second, strict=True):
        assert one[:4] == other[:4]  # this mask, the next one, no weight back, the same weights
        assert one[2] == 0
        assert one[6] == other[6] == 2
    assert [len(seen) for *_, seen, _, _ in first] == [9, 5, 5]  # 3 steps an epoch; the later rounds begin at step 4
    assert first[0][5][4:] == first[1][5] == first[2][5]
    assert not set(first[0][5][:3]) & set(second[0][5][:3])
    masks = [Mask.load(folder / f"t/round_0{number}/mask.safetensors") for number in (1, 2, 3)]
    planned = pruning.plan(
        [pruning.Tensor(n, shape, "fc") for n, shape in masks[0].shapes.items()], Prune(rate=0.3, rounds=3)
    )
    assert [mask.kept for mask in masks] == [plan.kept for plan in planned[1:]]
    assert masks[2].within(masks[1]) and masks[1].within(masks[0])
    assert [mask.sha256() for mask in masks] == [entry[2] for entry in first]


def told(folder: Path, rank: int) -> Any:
    return json.loads((folder / f"rank_{rank}.json").read_text())
