"""A module of this room in a process of its own: the client reads the environment once, and here it may have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

PATIENCE = 120.0  # seconds


def aside(module: str, words: Sequence[str], lacking: str) -> None:
    """Run ``lth_scale.tracking.MODULE WORDS...`` to its end. Whatever it meets is one warning, with what is lacking."""
    command = [sys.executable, "-m", f"lth_scale.tracking.{module}", *words]
    try:
        subprocess.run(command, check=True, timeout=PATIENCE, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [str(error)]
        _warn(said[-1], lacking)
    except (subprocess.TimeoutExpired, OSError) as error:
        _warn(str(error), lacking)


def _warn(why: str, lacking: str) -> None:
    print(f"warning: W&B: {why}; {lacking}", file=sys.stderr)
