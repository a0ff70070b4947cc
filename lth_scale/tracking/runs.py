"""One round as a W&B run: logged offline from what is safe on disk, so that no row comes twice and none is missing.

Training never waits for the service: what is logged lies in the attempt's folder, and another process uploads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale import files
from lth_scale.experiment import Experiment
from lth_scale.paths import RoundPaths
from lth_scale.tasks import Task
from lth_scale.tracking import artifacts, opening, segments, uploading
from lth_scale.tracking.aside import apart
from lth_scale.tracking.identity import Identity, mode

if TYPE_CHECKING:
    from lth_scale.training.evaluation import Measure


CONTINUE = 75  # exit code of a run that goes on later


class Tracked:
    """A round that nobody tracks; :class:`_Run` is one that W&B knows."""

    def rows(self, measures: Sequence[Measure]) -> None:
        """Log measures that a checkpoint makes final, given all so far; those logged before are passed over."""

    def finish(self, result: dict[str, Any]) -> None:
        """Log what the done marker is going to say, and put everything on disk."""

    def measured(self, line: dict[str, Any]) -> None:
        """The same of what trains nothing."""


@contextmanager
def tracked(experiment: Experiment, task: Task, attempt: int, first: bool) -> Iterator[Tracked]:
    """A round under way; only the first rank speaks. Whatever W&B meets, the round goes on."""
    how = mode(experiment.config.tracking) if first else None
    if how is None or not how.log:
        yield Tracked()
        return
    run = _Run(experiment, task, attempt, how.upload)
    try:
        yield run
    except Exception:
        run.close(1)
        raise
    except BaseException:  # asked to stop
        run.close(CONTINUE)
        raise


class _Run(Tracked):
    def __init__(self, experiment: Experiment, task: Task, attempt: int, upload: bool) -> None:
        self._run: Any = None
        self._logged, self._last = -1, dict[int, dict[str, float]]()
        paths = task.paths(experiment.paths)
        self._place = experiment, task, paths.attempt(attempt)
        with apart():
            self._safely(lambda: self._begin(experiment, task, paths, paths.attempt(attempt)))
        if upload:
            with apart():  # from the process that the client has just started as well
                self._safely(lambda: uploading.follow(paths.attempt(attempt)))

    def _safely(self, action: Callable[[], object]) -> None:
        """What goes wrong with W&B is said once, and ends the tracking of this round; files have everything."""
        try:
            action()
        except Exception as error:
            print(f"warning: W&B: {type(error).__name__}: {error}; this attempt is not tracked", file=sys.stderr)
            self._run = None

    def _begin(self, experiment: Experiment, task: Task, paths: RoundPaths, folder: Path) -> None:
        self._logged = segments.last_step(uploading.logs(paths))
        place = {"seed": task.seed, "arm": task.arm, "round": task.round}
        place |= {"density": experiment.plan[task.round].density, segments.USES: artifacts.uses(experiment, task)}
        identity = Identity.of(task, experiment.paths)
        self._run = opening.begin(folder, experiment.config, identity, task.arm, place, system=True)
        self._run.define_metric("final/*", step_metric="density")

    def rows(self, measures: Sequence[Measure]) -> None:
        by_step = _by_step(measures)
        for step in sorted(by_step)[:-1]:  # the last one waits for what the end may add to it
            self._log(step, by_step[step])
        self._last = by_step

    def _log(self, step: int, row: dict[str, float]) -> None:
        if self._run is not None and step > self._logged:
            self._safely(lambda: self._run.log(row, step=step))
            self._logged = step

    def finish(self, result: dict[str, Any]) -> None:
        end = {f"final/{split}_accuracy": row["accuracy"] for split, row in _splits(result["end"])}
        stop = result["clock"]["end"]
        self._log(stop, self._last.get(stop, {}) | end | {"density": result["density"]})
        if self._run is not None:
            self._safely(lambda: self._run.summary.update(self._told(result) | end))
        if self._run is not None:
            self._keep(result["source"]["theta_k"])
        self.close(0)

    def _told(self, result: dict[str, Any]) -> dict[str, Any]:
        return _summary(result) | _best(self._last) | _beside_dense(*self._place[:2], result)

    def _keep(self, theta_k: str) -> None:
        """Log what the round leaves. What goes wrong with it is said, and takes nothing of the rest."""
        try:
            artifacts.log(self._run, *self._place, theta_k)
        except Exception as error:
            print(f"warning: W&B: {type(error).__name__}: {error}; the ticket is not logged", file=sys.stderr)

    def measured(self, line: dict[str, Any]) -> None:
        found = {
            f"instability/{split}_{how}": v for how, row in line["instability"].items() for split, v in row.items()
        }
        if self._run is not None:
            self._safely(lambda: self._run.summary.update(found | {"density": line["density"]}))
        self.close(0)

    def close(self, code: int) -> None:
        """Put everything on disk, once; before the done marker, after which nobody would log what is missing."""
        run, self._run = self._run, None
        if run is not None and code == CONTINUE:
            self._safely(run.mark_preempting)
        if run is not None:
            self._safely(lambda: opening.end(run, code))


def _by_step(measures: Sequence[Measure]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in measures:
        found.setdefault(row.step, {}).update({f"{row.split}/loss": row.loss, f"{row.split}/accuracy": row.accuracy})
    return found


def _splits(place: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(split, row) for split, row in place.items() if isinstance(row, dict)]


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    early = result["early_stop"]
    found = {"density": result["density"], "flags": ", ".join(result["flags"]), "flops": result["flops"]}
    found |= {f"seconds/{kind}": value for kind, value in result["seconds"].items()}
    found["hours"] = result["seconds"]["device"] / 3600
    if early:
        found["early_stop/step"] = early["step"]
        found |= {f"early_stop/{split}_accuracy": row["accuracy"] for split, row in _splits(early)}
    return found


def _best(by_step: dict[int, dict[str, float]]) -> dict[str, float]:
    """All accuracies at the step of the highest validation accuracy; nothing where none was held out."""
    known = {step: row for step, row in sorted(by_step.items()) if "validation/accuracy" in row}
    if not known:
        return {}
    step = max(known, key=lambda each: known[each]["validation/accuracy"])
    accuracies = {key: value for key, value in known[step].items() if key.endswith("/accuracy")}
    return {"best/step": step} | {f"best/{key.replace('/', '_')}": value for key, value in accuracies.items()}


def _beside_dense(experiment: Experiment, task: Task, result: dict[str, Any]) -> dict[str, Any]:
    """Points of test accuracy above the dense network of the same seed, once that is on disk; no verdict from one."""
    config = experiment.config
    dense = ("dense_from_k", 1) if config.prune.early_bird else ("ticket", 0)
    marker = experiment.paths.round(task.seed, *dense).result
    if (task.arm, task.round) == dense or not marker.exists():
        return {}
    mine, theirs = (end["end"]["test"]["accuracy"] for end in (result, files.read_json(marker)))
    difference = round(100 * (mine - theirs), 9)  # counts over a test set: equal ones differ by nothing
    return {"difference": difference, "within_tolerance": difference > -config.report.tolerance}
