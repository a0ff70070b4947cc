"""Where a round's W&B run is to be seen, as far as the run folder tells: nothing is asked of the service."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lth_scale.files import read_json
from lth_scale.paths import RunPaths
from lth_scale.report.reading import RunResults

SITE = "https://wandb.ai"
SAID = re.compile(r"View run .* at (https?://\S+)/runs/\S+")  # by W&B's client, while it sends


@dataclass(frozen=True)
class Links:
    """Addresses of one experiment's runs with W&B.

    Args:
        paths: the run folder.
        project: the address of its W&B project; empty where it is not known, and then there are no links.
        experiment: its group, whose last eight letters begin the ids of its runs.
    """

    paths: RunPaths
    project: str = ""
    experiment: str = ""

    @classmethod
    def of(cls, run: RunResults) -> Links:
        """What W&B's client said when it sent the runs; else what the config says of entity and project."""
        paths = RunPaths(run.root)
        if not paths.tracking.exists():
            return cls(paths)
        logs = sorted(run.root.glob("seed_*/*/round_*/attempts/*/upload.log"))
        said = next((found[1] for log in logs if (found := SAID.search(log.read_text(errors="replace")))), "")
        tracking = run.config.tracking
        if not said and tracking.entity and tracking.project:
            said = f"{_site()}/{tracking.entity}/{tracking.project}"
        return cls(paths, said, str(read_json(paths.tracking)["experiment"]))

    def group(self) -> str | None:
        """Of all runs of the experiment; None where nothing was sent."""
        sent = self.project and any(self.paths.root.glob("seed_*/*/round_*/attempts/*/wandb/*/*.synced"))
        return f"{self.project}/groups/{self.experiment}/workspace" if sent else None

    def round(self, seed: int, arm: str, number: int) -> str | None:
        """Of one round; None where it was not sent."""
        if not self.project or not _sent(self.paths.round(seed, arm, number).folder):
            return None
        return f"{self.project}/runs/{self.experiment.rpartition('-')[2]}-s{seed}-{arm}-r{number:02d}"


def _sent(folder: Path) -> bool:
    return any(folder.glob("attempts/*/wandb/*/*.synced"))  # W&B's own marker


def _site() -> str:
    base = os.environ.get("WANDB_BASE_URL", "").rstrip("/")
    return SITE if base in ("", "https://api.wandb.ai") else base
