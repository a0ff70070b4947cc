"""``python -m lth_scale.tracking.telling RUN SEED...``: a run's results as one W&B run, by the agent's variables."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

from lth_scale.report.reading import read_run


def rows(root: Path, seeds: Collection[int]) -> dict[int, dict[str, float]]:
    """By round: density, and accuracies at the end, each arm's mean over those of ``seeds`` that are done."""
    found: dict[int, dict[str, list[float]]] = {}
    for result in read_run(root).results:
        if result["seed"] in seeds:
            row = found.setdefault(result["round"], {"density": []})
            row["density"].append(result["density"])
            for split, measure in result["end"].items():
                if isinstance(measure, dict):
                    row.setdefault(f"{result['arm']}/{split}_accuracy", []).append(measure["accuracy"])
    return {number: {key: fmean(values) for key, values in row.items()} for number, row in sorted(found.items())}


def main(root: Path, seeds: Collection[int]) -> None:
    """Which run it is, and the point's fields, the client takes from the agent's variables."""
    import wandb

    quiet: Any = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
    run = wandb.init(dir=str(root), settings=quiet)
    for number, row in rows(root, seeds).items():
        run.log(row, step=number)
    run.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
