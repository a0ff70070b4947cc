"""``python -m lth_scale.tracking.linking FILE...``: declare to the service what the runs of these logs start from.

The client logs offline what a run makes, but not what it uses, as only the service knows which version has a name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lth_scale.tracking import segments
from lth_scale.tracking.uploading import linked


def main(paths: Sequence[Path]) -> None:
    """Mark the logs of which all is declared; of the others say what is not there (yet)."""
    import wandb

    service = wandb.Api()
    for path in paths:
        run = segments.begun(path)
        where = f"{run.entity or service.default_entity}/{run.project}"
        wanted = [name if "/" in name else f"{where}/{name}" for name in segments.uses(path)]
        there = [name for name in wanted if service.artifact_exists(name)]
        found = service.run(f"{where}/{run.run_id}")
        for name in there:
            found.use_artifact(service.artifact(name))
        if there == wanted:
            linked(path).touch()
        else:
            print(f"W&B has no {' and no '.join(name for name in wanted if name not in there)}")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
