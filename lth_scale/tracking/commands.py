"""``lth sync RUN``."""

from __future__ import annotations

from pathlib import Path

from lth_scale.errors import UserError
from lth_scale.paths import RunPaths
from lth_scale.tracking.summary import summarise
from lth_scale.tracking.uploading import sync as send
from lth_scale.words import following, parser


def sync(words: list[str]) -> int:
    """Upload what W&B has not got yet of a run, in order; again, it sends nothing twice."""
    made = parser("sync", "run")
    made.add_argument("--limit", type=float)
    flags = made.parse_args(words)
    if not flags.run:
        raise UserError("sync needs a run folder: lth sync RUN")
    if not (paths := RunPaths(Path(flags.run))).config.exists():
        raise UserError(f"{flags.run} is not a run folder: config.yaml is missing")
    summarise(paths.root, syncing=True)
    print(f"sent {send(paths, flags.limit)} logs to W&B")
    return following(f"lth status {flags.run}")
