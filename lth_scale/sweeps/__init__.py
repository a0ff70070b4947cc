"""W&B's sweep files, played without its service: every point is an ordinary run."""

from __future__ import annotations

from lth_scale.sweeps.commands import as_runs as as_runs
from lth_scale.sweeps.commands import sweep as sweep
