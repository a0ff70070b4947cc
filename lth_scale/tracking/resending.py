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
    """Log the rows that are missing, what belongs to them, the summary and how it ended; 1 if it did not say."""
    live, summary, code = _begun(path), dict[str, Any](), 1
    for record in segments.records(path):
        kind = record.WhichOneof("record_type")
        if kind == "metric" and record.metric.step_metric:
            live.define_metric(record.metric.glob_name or record.metric.name, step_metric=record.metric.step_metric)
        elif kind == "config":
            _add_charts(live, record.config)
        elif kind == "files":
            for file in record.files.files:
                live.save(path.parent / "files" / file.path, base_path=path.parent / "files", policy="now")
        elif kind == "history":
            row = segments.tree(record.history.item)
            if row["_step"] >= live.starting_step:
                live.log({key: value for key, value in row.items() if key not in OWN}, step=row["_step"])
        elif kind == "summary":
            segments.tree(record.summary.update, summary)
        elif kind == "exit":
            code = record.exit.exit_code
    for record, file in segments.kept(path):
        live.log_artifact(_artifact(record, file), aliases=list(record.aliases))
    live.summary.update({key: value for key, value in summary.items() if key not in OWN})
    live.finish(exit_code=code)
    sent(path).touch()


def _begun(path: Path) -> Any:
    """The log's run, where the service has it by now."""
    import wandb

    run = segments.begun(path)
    assert run is not None, f"{path} holds no run"
    return wandb.init(
        id=run.run_id,
        project=run.project,
        entity=run.entity or None,
        group=run.run_group,
        job_type=run.job_type,
        name=run.display_name,
        tags=list(run.tags),
        config={key: value for key, value in segments.tree(run.config.update).items() if key not in OWN},
        mode="online",
        resume="allow",
        dir=str(path.parent),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )


def _artifact(record: Any, file: Path) -> Any:
    """The same again; by its digest the service knows what it has."""
    import wandb

    made = wandb.Artifact(record.name, record.type, metadata=json.loads(record.metadata))
    made.add_file(str(file.absolute()), record.manifest.contents[0].path, policy="immutable", skip_cache=True)
    return made


def _add_charts(live: Any, config: Any) -> None:
    """Those of the client's charts that the log has defined; it says so in a part of the config that is its own."""
    for item in config.update:
        if list(item.nested_key[:2]) == ["_wandb", "visualize"]:
            live._config_callback(key=tuple(item.nested_key), val=json.loads(item.value_json))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
