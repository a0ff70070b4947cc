"""``lth submit sweep ENTITY/PROJECT/SWEEP``: agents of W&B's as a job array, one of them and one point an element."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lth_scale import files
from lth_scale.config import Hardware
from lth_scale.errors import UserError
from lth_scale.resources import file
from lth_scale.slurm import cluster as sites
from lth_scale.slurm import queue
from lth_scale.words import following, parser


@dataclass(frozen=True)
class Agents:
    """What was asked.

    Args:
        sweep: ENTITY/PROJECT/SWEEP, as `wandb sweep` told it.
        count: how many; an agent beyond the last point of a grid ends at once.
        parallel: how many at once; None: as many as there is room for.
        folder: for their logs and what they begin with. Runs go where the sweep's command says, below the folder that
            this one was typed in.
    """

    sweep: str
    count: int
    parallel: int | None
    folder: Path


def named(words: Sequence[str]) -> bool:
    """Whether words begin with a sweep that W&B's service has, not with a file."""
    first = words[0] if words else ""
    return first.count("/") == 2 and Path(first).suffix not in (".yaml", ".yml") and not Path(first).exists()


def submit(words: Sequence[str]) -> int:
    """Submit agents. Raises UserError for what is lacking, and when Slurm refuses."""
    flags = _flags(words)
    site = sites.load(sites.find(flags.cluster))
    sweep = str(flags.sweep)
    folder = Path(flags.out) if flags.out else Path("runs") / f"sweep-{sweep.rpartition('/')[2]}"
    asked = Agents(sweep, flags.agents, flags.max_parallel, folder)
    hardware = Hardware(nodes=site.nodes or 1, devices=site.devices or 1)
    begin, call = site.site(hardware.threads, Path.cwd()), options(asked, site, hardware)
    if flags.dry_run:
        script = file("slurm", "sweep.sbatch")
        print(f"{queue.shown(call, 1)}\n\n### {folder / 'site.sh'}\n{begin}\n### {script}\n{script.read_text()}")
        return following("the same command without --dry-run")
    files.write_text(folder / "site.sh", begin)
    job = queue.submit(call)
    print(f"submitted {asked.count} agents of {sweep} as job {job}; they write to {folder}")
    return following(f"squeue --job {job}")


def options(asked: Agents, site: sites.Cluster, hardware: Hardware) -> list[str]:
    """sbatch's words. The warning before the time limit goes to the agent, which stands in the script's place."""
    folder = os.fspath(asked.folder.resolve())
    return [
        *site.round(hardware),
        *([f"--signal=B:USR1@{site.lead}"] if site.time else []),
        f"--job-name=sweep.{asked.sweep.rpartition('/')[2]}",
        f"--array=0-{asked.count - 1}" + (f"%{asked.parallel}" if asked.parallel else ""),
        f"--output={folder.replace('%', '%%')}/agent-%A_%a.log",
        os.fspath(file("slurm", "sweep.sbatch")),
        asked.sweep,
        f"{folder}/site.sh",
    ]


def _flags(words: Sequence[str]) -> Any:
    made = parser("submit sweep", "sweep")
    for option in ("--cluster", "--out"):
        made.add_argument(option)
    for option in ("--agents", "--max-parallel"):
        made.add_argument(option, type=int)
    made.add_argument("--dry-run", action="store_true")
    flags, fields = made.parse_known_args(words)
    if fields:
        raise UserError(
            f"submit sweep: {fields[0]!r} is not valid here; a sweep of W&B's has its fields in its command"
        )
    if not flags.cluster:
        raise UserError("submit needs a cluster: --cluster FILE.yaml, or one of those in configs/cluster by its name")
    for key in ("agents", "max_parallel"):
        value = getattr(flags, key)
        if value is None and key == "agents":
            raise UserError("submit sweep needs --agents N: as many as points are to be played")
        if value is not None and value < 1:
            raise UserError(f"--{key.replace('_', '-')}={value} is not valid; it must be 1 or more")
    return flags
