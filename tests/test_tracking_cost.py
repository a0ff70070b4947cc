"""What W&B's client costs at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kill]  # starts the client's own service

LEAN = """
import sys
from pathlib import Path
import wandb
from tiny_runs import play, tiny
from lth_scale.tracking import opening
play(tiny(prune={"rounds": 0}, tracking={"wandb": "offline"}), Path(sys.argv[1]) / "run")
print(opening.LAUNCH in sys.modules)
wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
print(opening.LAUNCH in sys.modules)
"""


def test_the_client_starts_without_what_a_round_has_no_use_for(tmp_path: Path) -> None:
    """Two thirds of its start, otherwise: the control is the same client, asked plainly."""
    command = [sys.executable, "-c", LEAN, str(tmp_path)]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, env=outside(), capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines() == ["False", "True"], done.stderr


def outside() -> dict[str, str]:
    """The environment without the tests' WANDB_MODE."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
