"""The whole experiment as one W&B run, logged when all of it is done, and again when what is done has changed."""

from __future__ import annotations

from pathlib import Path

from lth_scale import files
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.report.reading import RunResults, read_run
from lth_scale.tasks import tasks
from lth_scale.tracking.aside import apart, aside
from lth_scale.tracking.identity import mode
from lth_scale.tracking.sweeping import tell


def conclude(experiment: Experiment) -> None:
    """At the end of a command that trained: the agent's run, if there is one, and the summary. Says why all is offline.

    Whatever W&B meets is one warning each.
    """
    tell(experiment)
    summarise(experiment.paths.root)
    if why := mode(experiment.config.tracking).why:
        print(why)


def summarise(root: Path, syncing: bool = False) -> None:
    """Log what a tracked run has come to, if nothing of it is missing and this was not logged already.

    It takes a process some seconds, in which nothing is sent; another one sends it afterwards. Where nothing is sent
    before ``lth sync``, it is left to that.

    Args:
        root: the run folder.
        syncing: whoever calls sends it, whatever the mode.
    """
    paths = RunPaths(root)
    if not paths.tracking.exists():  # none of its rounds is known to W&B
        return
    results = read_run(root)
    how = mode(results.config.tracking)
    if how.log and (how.upload or syncing) and complete(results) and logged(paths) != digest(paths):
        with apart():
            words = [str(root), "keep" if syncing else "send"]
            aside("summarising", words, "the run's summary is not logged; `lth sync` tries again")


def complete(results: RunResults) -> bool:
    """Whether everything that the config asks for is done, or was not worth doing."""
    paths = RunPaths(results.root)
    return bool(results.results) and all(task.done(paths) for task in tasks(results.config, results.last_round))


def digest(paths: RunPaths) -> str:
    """Hex SHA-256 of all that a summary is made from."""
    markers = [
        path for name in ("result", "line", "stopped") for path in paths.root.glob(f"seed_*/*/round_*/{name}.json")
    ]
    told = [f"{path.relative_to(paths.root)} {files.sha256_file(path)}" for path in (paths.config, *sorted(markers))]
    return files.sha256_bytes("\n".join(told).encode())


def logged(paths: RunPaths) -> str:
    """The digest of what was logged last; empty for nothing."""
    marker = paths.summary.result
    return str(files.read_json(marker)["digest"]) if marker.exists() else ""
