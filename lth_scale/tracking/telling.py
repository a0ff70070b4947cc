"""``python -m lth_scale.tracking.telling RUN MODE SEED...``: a run's results as the agent's own W&B run.

Which run that is, and the point's fields, the client takes from the agent's variables.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

from lth_scale.report.reading import SAME, RunResults, family, read_run


def rows(run: RunResults, seeds: Collection[int]) -> Iterator[dict[str, float]]:
    """By density, densest first: accuracies at the end, each arm's mean over those of ``seeds`` that are done."""
    mine = sorted((result for result in run.results if result["seed"] in seeds), key=lambda r: -r["density"])
    while mine:
        same = [result for result in mine if isclose(result["density"], mine[0]["density"], rel_tol=SAME)]
        mine = mine[len(same) :]
        found: dict[str, list[float]] = {"density": [result["density"] for result in same]}
        for result in same:
            for split, measure in result["end"].items():
                if isinstance(measure, dict):
                    found.setdefault(f"{family(result['arm'])}/{split}_accuracy", []).append(measure["accuracy"])
        yield {key: fmean(values) for key, values in found.items()}


def by_density(run: Any, results: RunResults) -> None:
    """Have all accuracies of :func:`rows` drawn against density."""
    for arm in {family(result["arm"]) for result in results.results}:
        run.define_metric(f"{arm}/*", step_metric="density")


def main(root: Path, mode: str, seeds: Collection[int]) -> None:
    """Log a row for each density."""
    import wandb

    results = read_run(root)
    quiet: Any = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
    run = wandb.init(dir=str(root), mode=cast("Literal['online', 'offline']", mode), settings=quiet)
    by_density(run, results)
    for step, row in enumerate(rows(results, seeds)):
        run.log(row, step=step)
    run.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]])
