"""A W&B run that is logged offline into a folder: begun, and ended so that its end is on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lth_scale import files, settings
from lth_scale.config import Config
from lth_scale.tracking import segments
from lth_scale.tracking.identity import Identity, project

LAUNCH = "wandb.sdk.launch"
PATIENCE, POLL = 30.0, 0.01  # seconds for a log to be on disk; between looks


def begin(folder: Path, config: Config, identity: Identity, tag: str, place: Mapping[str, Any], system: bool) -> Any:
    """A ``wandb.Run`` that goes on where the run of this id has come to, whoever has logged that.

    Args:
        folder: where its log is made.
        config: all of its fields are the run's config.
        identity: which run it is.
        tag: beside data set, model and ``tracking.tags``.
        place: more of the run's config.
        system: whether the machine's load is logged too.
    """
    import wandb

    files.make_folder(folder)
    quiet: Any = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
    with _without_launch():
        return wandb.init(
            id=identity.id,
            name=identity.name,
            group=identity.group,
            job_type=identity.job_type,
            project=project(config.tracking),
            entity=config.tracking.entity or None,
            tags=[config.data.name, config.model.name, tag, *config.tracking.tags],
            config={**settings.as_dict(config), **place},
            dir=str(folder),
            mode="offline",
            resume="allow",
            settings=wandb.Settings(**quiet, x_save_requirements=False, x_disable_stats=not system),
        )


@contextmanager
def _without_launch() -> Iterator[None]:
    """The client looks for inputs of W&B's launch, of which there are none, and takes a second to import that."""
    modules: dict[str, Any] = sys.modules
    absent = LAUNCH not in modules
    if absent:
        modules[LAUNCH] = None
    try:
        yield
    finally:
        if absent:
            del modules[LAUNCH]


def end(run: Any, code: int) -> None:
    """End the run, and see its end on disk: the client comes back earlier. Raises TimeoutError if it is not seen."""
    path, deadline = Path(run.settings.sync_file), time.monotonic() + PATIENCE
    run.finish(exit_code=code)
    while not segments.ended(path):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} lacks its end after {PATIENCE:g} s")
        time.sleep(POLL)
