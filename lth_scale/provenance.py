"""Where and with what something ran, and on which data."""

from __future__ import annotations

import platform
import socket
import time
from pathlib import Path

import torch

from lth_scale import files
from lth_scale.errors import UserError


def machine() -> dict[str, str | int | float]:
    """Where and with what an attempt runs."""
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def record(path: Path, checksum: str) -> None:
    """Write a run's provenance, or refuse other images than it was made with."""
    if not path.exists():
        files.write_json(path, {"data": checksum, **machine()})
        return
    held = files.read_json(path)
    if not isinstance(held, dict) or not isinstance(there := held.get("data"), str):
        raise UserError(f"{path} is damaged (it lacks data); remove it to have it made anew")
    if there != checksum:
        raise UserError(
            f"data.dir holds other images (checksum {checksum[:12]}) than the run was made with ({there[:12]})"
        )
