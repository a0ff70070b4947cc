"""W&B's client apart from an agent, and in processes of its own: it reads the environment once, and here it may have.

An agent names its own run, the point of its sweep, to everything below it. Rounds are runs of their own and must not
take it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lth_scale.processes import heard, program

PATIENCE = 120.0  # seconds
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


def aside(module: str, words: Sequence[str], lacking: str) -> None:
    """Run ``lth_scale.tracking.MODULE WORDS...`` to its end. Whatever it meets is one warning, with what is lacking."""
    try:
        code, said = heard([*program(f"tracking.{module}"), *words], PATIENCE)
    except (subprocess.TimeoutExpired, OSError) as error:
        code, said = 1, str(error)
    if code:
        print(f"warning: W&B: {said}; {lacking}", file=sys.stderr)
