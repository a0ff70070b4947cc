"""``python -m lth_scale.tracking.resending FILE``: go on with a log of which the service has a part already.

W&B's own sync would begin at the log's first row and append it all again. The service tells which step it knows last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lth_scale.tracking import segments
from lth_scale.tracking.uploading import sent

OWN = ("_step", "_runtime", "_timestamp", "_wandb")


def main(path: Path) -> None:
    """Log the rows that are missing, the summary and how it ended."""
    import wandb

    run, summary, code = _told(path)
    quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)
    live = wandb.init(
        id=run.run_id,
        project=run.project,
        entity=run.entity or None,
        group=run.run_group,
        job_type=run.job_type,
        name=run.display_name,
        mode="online",
        resume="allow",
        dir=str(path.parent),
        settings=quiet,
    )
    for row in segments.history(path):
        if row["_step"] >= live.starting_step:
            live.log({key: value for key, value in row.items() if key not in OWN}, step=row["_step"])
    live.summary.update({key: value for key, value in summary.items() if key not in OWN})
    live.finish(exit_code=code)
    sent(path).touch()


def _told(path: Path) -> tuple[Any, dict[str, Any], int]:
    """The run as it was begun, its summary, and its exit code; 1 if it did not say."""
    run, summary, code = None, dict[str, Any](), 1
    for record in segments.records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run" and run is None:
            run = record.run
        elif kind == "summary":
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "exit":
            code = record.exit.exit_code
    assert run is not None, f"{path} holds no run"
    return run, summary, code


if __name__ == "__main__":
    main(Path(sys.argv[1]))
