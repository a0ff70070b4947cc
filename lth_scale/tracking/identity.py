"""Which W&B run a round is, for good; and whether anything is logged or uploaded."""

from __future__ import annotations

import netrc
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lth_scale import files
from lth_scale.arms import split_draw
from lth_scale.config import Tracking
from lth_scale.paths import RunPaths
from lth_scale.tasks import Task

PROJECT = "lth_scale"
WANDB_MODES = {"disabled": "off", "offline": "offline", "dryrun": "offline"}


@dataclass(frozen=True)
class Mode:
    """What is done with measures.

    Args:
        log: whether they are logged at all.
        upload: whether they are sent while training goes on.
        why: a line for people; empty where nothing needs to be said.
    """

    log: bool
    upload: bool
    why: str = ""


def mode(tracking: Tracking) -> Mode:
    """``tracking.wandb``; where that is auto, ``WANDB_MODE``; where that is unset, online if W&B has a key."""
    asked: str = tracking.wandb
    if asked == "auto":
        asked = WANDB_MODES.get(os.environ.get("WANDB_MODE", ""), "auto")
    if asked in ("off", "offline"):
        return Mode(asked == "offline", False)
    if not _key():
        return Mode(
            True,
            False,
            "W&B has no key here: rounds are logged offline, and `lth sync RUN` uploads them once it has one",
        )
    return Mode(True, True)


def _key() -> bool:
    """Whether the environment, or what ``wandb login`` has written, holds a key; it is not looked at further."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class Identity:
    """The names of a W&B run, of a round or of all, the same whenever and wherever it goes on.

    Args:
        id: the run's, unique in its project.
        group: the experiment's.
        name: for people.
        job_type: dense, or the arm, whatever its draw or source; summary.
    """

    id: str
    group: str
    name: str
    job_type: str

    @staticmethod
    def of(task: Task, paths: RunPaths) -> Identity:
        """Made from the run folder's own id, which is drawn once, and the round's place in it."""
        experiment = group(paths)
        place = f"s{task.seed}-{task.arm}-r{task.round:02d}"
        kind = "dense" if task.dense else split_draw(task.arm)[0]
        return Identity(f"{experiment.rpartition('-')[2]}-{place}", experiment, f"{place} {kind}", kind)

    @staticmethod
    def whole(paths: RunPaths) -> Identity:
        """That of the one run which sums the experiment up."""
        experiment = group(paths)
        return Identity(f"{experiment.rpartition('-')[2]}-summary", experiment, "summary", "summary")


def group(paths: RunPaths) -> str:
    """The experiment's name and its eight letters, which are drawn by whoever asks first."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", paths.root.resolve().name)[:60]
    if not paths.tracking.exists():
        files.create_json(paths.tracking, {"experiment": f"{name}-{secrets.token_hex(4)}"})
    return str(files.read_json(paths.tracking)["experiment"])


def project(tracking: Tracking) -> str:
    """``tracking.project``; where that is unset, ``WANDB_PROJECT``; where that is unset too, this program's name."""
    return tracking.project or os.environ.get("WANDB_PROJECT", PROJECT)
