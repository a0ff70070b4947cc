"""What docs/results.md says of one experiment, whichever section it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isclose, isnan
from typing import Any

import pandas as pd
from archive import Archive
from matplotlib.figure import Figure
from tables import markdown, signed

from lth_scale.report import figures as drawing
from lth_scale.report import headline, summary
from lth_scale.report.numbers import MARKS, value
from lth_scale.report.overlaps import ALL
from lth_scale.report.study import Study
from lth_scale.report.style import draw, svg_bytes
from lth_scale.report.table import accuracies, paired
from lth_scale.report.words import describe_keys, gains, percent

OVERLAPS = {
    "jaccard": "Jaccard",
    "chance": "by chance",
    "matched": "units matched",
    "matched_chance": "by chance",
    "signs_theta_k": "equal signs in theta_k",
    "signs_theta_T": "at the end",
}
FEW = 3
LARGE = 0.2  # late rewinding is looked for at this density and above


def study(one: Archive) -> Study:
    """What the report's figures draw."""
    return Study.of(one.run, one.curves)


def functions(one: Study) -> dict[str, Callable[..., Figure]]:
    known = one.rows["difference"].notna().any()
    if one.run.last_round < FEW:  # hardly a curve over density
        return {"difference": drawing.difference} if known else {}
    made: dict[str, Callable[..., Figure]] = {"accuracy": drawing.accuracy}
    if known:
        made["difference"] = drawing.difference
    if "early_stop_step" in one.rows:
        made["early_stop"] = drawing.early_stop
    return made | {"learning": drawing.learning}


def svg(function: Callable[..., Figure], *what: object) -> bytes:
    made = draw(function, *what)
    made.set_facecolor("white")
    return svg_bytes(made)


def setting(one: Archive) -> str:
    config = one.run.config
    train, prune = config.train, config.prune
    return (
        f"{config.model.name}, width {config.model.width or 'its own'}, {train.optimizer} at {train.lr:g}, momentum "
        f"{train.momentum:g}, {train.schedule}, batch {train.batch_size}, {train.duration}; {100 * prune.rate:g} % "
        f"removed a round, {prune.scope}; tolerance {config.report.tolerance:g} points."
    )


def late_sentence(first: Archive, later: Archive) -> str:
    """At which densities the rewind point decides."""
    rows = [_tickets(one) for one in (first, later)]
    at = [one.run.config.rewind.at for one in (first, later)]
    pairs = [(a, b) for _, a in rows[0].iterrows() for _, b in rows[1].iterrows() if _same(a["density"], b["density"])]
    large = [(a, b) for a, b in pairs if a["density"] >= LARGE]
    found = [(a, b) for a, b in large if (a["verdict"], b["verdict"]) == ("not matching", "matching")]
    if not large:
        return f"No density of 20 % or above has been trained from both rewind points ({at[0]} and {at[1]}) yet."
    parts = [
        f"at {percent(a['density'])} of the weights the ticket from {at[0]} differs from dense by {_interval(a)}, "
        f"{a['verdict']}, the one from {at[1]} by {_interval(b)}, {b['verdict']}"
        for a, b in large
    ]
    verdict = f"The rewind point decides at {', '.join(percent(a['density']) for a, _ in found)}"
    opening = verdict if found else "The rewind point decides at no density of 20 % or above in this setting"
    return f"{opening}: {'; '.join(parts)}. {_directly(first, later, [a['round'] for a, _ in large])}"


def _directly(first: Archive, later: Archive, rounds: list[int]) -> str:
    """Ticket against ticket, seed by seed: both rewind points share their dense rounds."""
    gains = [paired(*(accuracies(one.run, "ticket", number) for one in (later, first))) for number in rounds]
    said = ", ".join(signed(gain.mean, gain.low, gain.high, gain.n) for gain in gains)
    return f"The later one minus the earlier one, seed by seed: {said}."


def _same(first: float, second: float) -> bool:
    return isclose(first, second, rel_tol=0.005)


def _tickets(one: Archive) -> pd.DataFrame:
    rows = summary(one.run)
    return rows[(rows["arm"] == "ticket") & (rows["round"] > 0)].sort_values("density", ascending=False)


def _interval(row: pd.Series) -> str:
    return signed(row["difference"], row["difference_low"], row["difference_high"], int(row["pairs"]))


def summarised(one: Archive) -> Iterator[str]:
    run, provenance = one.run, one.provenance
    yield headline(run) + "\n"
    said = gains(run, summary(run))
    if said:
        yield "\n".join(f"- {line}" for line in said) + "\n"
    if provenance["rounds_finished"] < provenance["rounds_planned"]:
        missing = "; ".join(describe_keys(run.missing()))
        finished, planned = provenance["rounds_finished"], provenance["rounds_planned"]
        yield f"{finished} of the {planned} rounds that the config plans are finished; not trained: {missing}.\n"
    for task, flags in provenance["flags"].items():
        yield f"- flagged: {task}: {', '.join(flags)}"


def body(one: Archive) -> Iterator[str]:
    name = one.run.name
    for slug in functions(study(one)):
        yield f"![{name}: {slug.replace('_', ' ')}](figures/{name}_{slug}.svg)\n"
    yield "**At the end of training**\n\n" + rounds_table(one, "")
    if "early_stop_test_accuracy" in summary(one.run):
        yield "**At the early-stopping iteration**\n\n" + rounds_table(one, "early_stop_")
    yield from ending(one)


def ending(one: Archive) -> Iterator[str]:
    """What its masks say, where it comes from, and what a person makes of it."""
    if len(one.masks):
        yield f"**How alike the masks of `{one.run.name}` are**\n\n" + masks_table(one.masks)
    yield _origin(one)
    notes = one.folder / "notes.md"
    if notes.is_file():
        yield f"**Interpretation (written by hand)**\n\n{notes.read_text().strip()}\n"


def _origin(one: Archive) -> str:
    made, name = one.provenance, one.run.name
    seconds = made["seconds"]
    return (
        f"Config [`{name}/config.yaml`](../results/{name}/config.yaml) (hash {made['config_hash']}), numbers "
        f"[`{name}/results.csv`](../results/{name}/results.csv).\n"
        f"{made['machine']}, torch {made['torch']}, {made['threads']} thread a process; "
        f"{seconds['device']:,.0f} core-seconds, of which {seconds['evaluation']:,.0f} evaluation.\n"
    )


def rounds_table(one: Archive, prefix: str) -> str:
    """Accuracy and verdict of each arm by density; with the early-stopping iteration where that is the moment."""
    rows = summary(one.run)
    arms = one.run.local
    stops = prefix == "early_stop_" and "early_stop_step" in rows
    columns = ["round", "weights left %", *arms, *(f"{arm}: iteration" for arm in arms if stops)]
    lines = []
    for number in sorted(set(rows["round"])):
        at = rows[rows["round"] == number].set_index("arm")
        cells = [_accuracy(at, arm, prefix) for arm in arms]
        cells += [_stop(at, arm) for arm in arms if stops]
        lines.append([str(number), f"{100 * at['density'].iloc[0]:.2f}", *cells])
    return markdown(columns, lines)


def _accuracy(rows: pd.DataFrame, arm: str, prefix: str) -> str:
    if arm not in rows.index:
        return ""
    row: Any = rows.loc[arm]
    mark, _ = MARKS.get(row[f"{prefix}verdict"], ("", ""))
    few = f" (n = {row[f'{prefix}n']:.0f})" if row[f"{prefix}n"] < rows[f"{prefix}n"].max() else ""
    return f"{value(row, f'{prefix}test_accuracy')} {mark}{few}".strip()


def _stop(rows: pd.DataFrame, arm: str) -> str:
    row: Any = rows.loc[arm] if arm in rows.index else None
    if row is None or isnan(row["early_stop_step"]):
        return ""
    return f"{'≥ ' * bool(row['early_stop_not_reached'])}{row['early_stop_step']:.0f}"


def masks_table(frame: pd.DataFrame) -> str:
    """Overlaps of masks over all tensors by density, and by tensor at the lowest one: means and ranges of the pairs."""
    lowest = frame["round"] == frame.groupby(["run", "other_run"])["round"].transform("max")
    layers = _overlaps(frame[lowest & (frame["tensor"] != ALL)])
    folded = f"<details><summary>by layer, at the lowest density</summary>\n\n{layers}\n</details>\n"
    return f"{_overlaps(frame[frame['tensor'] == ALL])}\n{folded}"


def _overlaps(frame: pd.DataFrame) -> str:
    shown = [column for column in OVERLAPS if column in frame and frame[column].notna().any()]
    lines = []
    for (run, other, _, tensor), at in frame.groupby(["run", "other_run", "round", "tensor"], sort=False):
        left = 100 * (at["kept"] / at["numel"]).mean()
        which = "replicates" if run == other else f"{run}, {other}"
        cells = [_range(at[column]) for column in shown]
        lines.append([which, str(tensor), f"{left:.2f}", *cells])
    return markdown(["masks of", "layer", "weights left %", *(OVERLAPS[column] for column in shown)], lines)


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return "" if values.isna().all() else f"{values.mean():.3f}" + (f" ({low} to {high})" if low != high else "")
