"""``python -m lth_scale.tracking.summarising RUN send|keep``: log what a run has come to; the work of `summary`.

Rows of accuracy by density, and in a last row all tables, figures and the page. Again, only rows that have changed come
again, at later steps; a step is never logged twice.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from lth_scale import claims
from lth_scale.errors import UserError
from lth_scale.files import write_json
from lth_scale.paths import RunPaths
from lth_scale.report import page, several, words, write_report
from lth_scale.report.plot import Plot
from lth_scale.report.reading import RunResults, read_run
from lth_scale.report.study import Study
from lth_scale.report.style import png_bytes
from lth_scale.report.table import summary as table
from lth_scale.tracking import opening, segments, summary, telling, uploading
from lth_scale.tracking.aside import apart
from lth_scale.tracking.identity import Identity

DPI = 150
CURVE = ["density", "arm", "test_accuracy", "test_accuracy_low", "test_accuracy_high", "n", "verdict"]


def main(root: Path, send: bool) -> None:
    """Log and, where it may be sent, have it sent. Of several processes at once one does, and the others end."""
    paths = RunPaths(root)
    with ExitStack() as held:
        attempt = _claim(held, paths)
        now = summary.digest(paths)
        if attempt is None or summary.logged(paths) == now:
            return
        earlier = uploading.logs(paths.summary)
        log(paths, paths.summary.attempt(attempt), earlier)
        write_json(paths.summary.result, {"digest": now, "attempt": attempt})
    if send and all(uploading.sent(path).exists() for path in earlier):  # else `lth sync` sends them in order
        with apart():  # from the service that the client has started here, which ends with this process
            uploading.follow(paths.summary.attempt(attempt))


def _claim(held: ExitStack, paths: RunPaths) -> int | None:
    """The attempt's number; None while another live process is at it."""
    folder = paths.summary.claims
    try:
        return held.enter_context(claims.claimed(folder, "none", only=True))
    except UserError:
        owner = claims.holder(folder)
        if owner is not None and claims.alive(owner, folder):
            return None
        raise


def log(paths: RunPaths, folder: Path, earlier: Sequence[Path]) -> None:
    """One more log of the run's summary.

    Args:
        paths: the run folder.
        folder: where the log is made.
        earlier: the logs before it, oldest first.
    """
    results = read_run(paths.root)
    one = Study.whole(results)
    run = opening.begin(folder, results.config, Identity.whole(paths), "summary", {}, system=False)
    telling.by_density(run, results)
    changed = list(_changed(results, earlier))
    first = segments.last_step(list(earlier)) + 1
    for step, row in enumerate(changed, first):
        run.log(row, step=step)
    last = first + len(changed)
    run.log(_shown(run, one, _page(paths), last), step=last)
    run.summary.update(_said(one))
    opening.end(run, 0)


def _changed(results: RunResults, earlier: Sequence[Path]) -> Iterator[dict[str, float]]:
    """Rows that no log has, or has otherwise."""
    known = {row["density"]: row for path in earlier for row in segments.history(path) if "density" in row}
    for row in telling.rows(results, results.seeds):
        old = known.get(row["density"], {})
        if row != {key: value for key, value in old.items() if not key.startswith("_")}:
            yield row


def _page(paths: RunPaths) -> Path:
    """The report, made anew where a result is newer."""
    results = [path.stat().st_mtime for path in (*paths.results(), *paths.lines())]
    if not paths.report.exists() or paths.report.stat().st_mtime < max(results):
        write_report([paths.root], paths.root)
    return paths.report


def _shown(run: Any, one: Study, report: Path, step: int) -> dict[str, Any]:
    """The curves as a chart of the client's, every table, every figure, the page."""
    import wandb

    together, results = several.compared([one]), table(one.run)
    frames = {"results": results, **several.tables([one], together)}
    tables = {name: _table(run, frame, name, step) for name, frame in frames.items()}
    curve = _table(run, results[CURVE], "density_curve_table", step)
    title = "Test accuracy (%) by density"
    chart = wandb.plot.line(curve, "density", "test_accuracy", stroke="arm", title=title)
    figures = {f"figures/{plot.slug}": _image(plot) for plot in (*page.plots(one), *together.plots)}
    with report.open() as text:
        return {"density_curve": chart, **tables, **figures, "report": wandb.Html(text, inject=False)}


def _table(run: Any, frame: pd.DataFrame, key: str, step: int) -> Any:
    """A table of the run alone: bound to it before it is logged, it becomes no artifact, of which the log would only
    name a place in the user's home."""
    import wandb

    values = frame.astype(object).where(frame.notna(), None)
    made = wandb.Table(columns=list(frame.columns), data=list(values.values.tolist()))
    made.bind_to_run(run, key, step)
    return made


def _image(plot: Plot) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png_bytes(plot.wide, DPI))), caption=f"{plot.title}. {plot.caption}")


def _said(one: Study) -> dict[str, Any]:
    """The verdicts in words and by arm and round, how far tickets match, and what it took."""
    every = table(one.run)
    judged = every[every["verdict"].notna()]
    found: dict[str, Any] = {"headline": words.headline(one.run), "seeds": len(one.run.seeds)}
    found |= {f"verdict/{row['arm']}/r{row['round']:02d}": row["verdict"] for _, row in judged.iterrows()}
    best = words.matches_down_to(words.rows_of(every, "ticket"))
    if best is not None:
        found["matches_down_to"] = float(best["density"])
    return found | {"hours": sum(result["seconds"]["device"] for result in one.run.results) / 3600}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "send")
