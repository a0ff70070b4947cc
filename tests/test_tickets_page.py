"""What docs/tickets.md says can be typed, can be typed."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path

import pytest
import torch
from tiny_runs import play, tiny
from torch import nn
from torch.nn.utils import prune

from lth_scale import cli

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "tickets.md").read_text()


@pytest.mark.slow
def test_the_commands_of_the_page_work(tmp_path: Path) -> None:
    """All of docs/tickets.md, in its order, where its files are."""
    made = tiny(prune={"rounds": 3}, train={"duration": "6it", "eval_every": "6it"}, run={"seeds": (0, 1)})
    play(made, tmp_path / "runs" / "digits")
    torch.save(openlth(), tmp_path / "mask.pth")
    torch.save(pruned().state_dict(), tmp_path / "pruned.pt")
    shown = [line.removeprefix("$ ") for line in DOCS.splitlines() if line.startswith("$ lth ")]
    said = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        codes = {line: cli.main(shlex.split(line)[1:]) for line in shown}
    assert codes == dict.fromkeys(shown, 0), said.getvalue()
    actions = {line.split()[2] for line in shown}
    assert actions == {"pack", "show", "import", "diff"} and len(shown) == 6


def openlth() -> dict[str, torch.Tensor]:
    shapes = {"fc_layers.0.weight": (300, 64), "fc_layers.1.weight": (100, 300), "fc.weight": (10, 100)}
    return {name: torch.randint(0, 2, shape, dtype=torch.int32) for name, shape in shapes.items()}


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model
