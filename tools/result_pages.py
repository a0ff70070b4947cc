"""docs/results.md: what was found, beside what the papers found. Every sentence is made from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isclose, isnan
from pathlib import Path
from typing import Any

import pandas as pd
from archive import Archive, read
from matplotlib.figure import Figure
from paper_claims import claims_table
from tables import markdown, signed

from lth_scale.report import figures as drawing
from lth_scale.report import headline, summary
from lth_scale.report.compare import comparison
from lth_scale.report.figures import Study
from lth_scale.report.style import Size, draw, svg_bytes
from lth_scale.report.table import accuracies, paired
from lth_scale.report.terminal import MARKS, value
from lth_scale.report.words import describe_keys, gains, percent

MNIST, DIGITS = "mnist_lenet", "digits_lenet"
FASHION, K0, LATE = "fashion_mnist", "_k0", "_k"  # results/fashion_mnist_ANYTHING_k0 and ..._k are a pair
TRIED = "settings_tried"
FEW = 3
LARGE = 0.2  # late rewinding is looked for at this density and above

INTRODUCTION = """\
# Results
Made by `tools/make_results.py build` from the files under `results/`; a test makes it again and fails on any
difference. Accuracies are percent of the test split, as mean ± half the 95 % t-interval over the seeds.
✓ matching, ✗ not matching, ? undecided: from the paired 95 % t-interval of arm minus its own seed's dense network,
against the tolerance. No seed is left out. Every choice (early stopping above all) reads the validation split only.
"""

MNIST_TITLE = """\
## LeNet-300-100 on MNIST
The hyperparameters of Frankle & Carbin 2019: Adam 1.2e-3, batch 60, 50,000 iterations, 20 % per layer and round,
10 % of the output layer, k = 0; validation every 100 iterations.
"""

LATE_TITLE = """\
## Late rewinding on Fashion-MNIST
A setting is looked for in which tickets rewound to the initialisation are not matching at 20 % of the weights or
more, and tickets rewound to a later k are (Frankle et al. 2020).
"""

DIGITS_TITLE = """\
## The demo: digits
What `make demo` runs: scikit-learn's 8x8 digits. There are 597 test images, so that one image is 0.17 points: hence
the wide tolerance.
"""

TRIED_TITLE = """\
### All settings tried
{lines} lines, the losing ones too, each from short single trainings of the search. `difference` is in points of test
accuracy, to the same seed's dense network. A dense accuracy near 10 % is a network that never learned: there the
difference says nothing. `note` begins with the arm.
"""


def study(one: Archive) -> Study:
    """What the report's figures draw."""
    return Study(one.run, summary(one.run), one.curves)


def archives(results: Path) -> dict[str, Archive]:
    """The collected experiments by name."""
    return {path.parent.name: read(path.parent) for path in sorted(results.glob("*/results.csv"))}


def pairs(known: dict[str, Archive]) -> dict[str, list[Archive]]:
    """The settings of the late-rewinding experiment, by name: from k = 0 and from a later k, those that exist."""
    stems = sorted({n.removesuffix(K0).removesuffix(LATE) for n in known if n.startswith(FASHION)})
    return {stem: [known[stem + end] for end in (K0, LATE) if stem + end in known] for stem in stems}


def page(results: Path) -> str:
    """The whole text."""
    known = archives(results)
    parts = [INTRODUCTION, *_mnist(known), *_late(known, results), *_digits(known)]
    return "\n".join(parts) + "\n"


def figures(results: Path) -> dict[str, bytes]:
    """Path under docs/ -> SVG on white, the same bytes for the same numbers and the same matplotlib."""
    known = archives(results)
    studies = {name: study(one) for name, one in known.items()}
    made: dict[str, bytes] = {}
    for name, one in studies.items():
        for slug, function in _functions(one).items():
            made[f"figures/{name}_{slug}.svg"] = _svg(function, one, Size(7.0, 3.7))
    for stem, pair in pairs(known).items():
        if len(pair) == 2:
            made[f"figures/{stem}.svg"] = _svg(comparison, [studies[one.run.name] for one in pair], Size(7.0, 3.7))
    if DIGITS in studies:
        made["picture.svg"] = _svg(drawing.accuracy, studies[DIGITS], Size(7.0, 4.0))
    return made


def _functions(one: Study) -> dict[str, Callable[..., Figure]]:
    known = one.rows["difference"].notna().any()
    if one.run.last_round < FEW:  # hardly a curve over density
        return {"difference": drawing.difference} if known else {}
    made: dict[str, Callable[..., Figure]] = {"accuracy": drawing.accuracy}
    if known:
        made["difference"] = drawing.difference
    if "early_stop_step" in one.rows:
        made["early_stop"] = drawing.early_stop
    return made | {"learning": drawing.learning}


def _svg(function: Callable[..., Figure], what: object, size: Size) -> bytes:
    made = draw(function, what, size)
    made.set_facecolor("white")
    return svg_bytes(made)


def _mnist(known: dict[str, Archive]) -> Iterator[str]:
    yield MNIST_TITLE
    if MNIST not in known:
        yield "Not run yet.\n"
        return
    yield from _summary(known[MNIST])
    yield "### Beside the paper\n" + claims_table(known[MNIST].run)
    yield from _body(known[MNIST])


def _digits(known: dict[str, Archive]) -> Iterator[str]:
    yield DIGITS_TITLE
    if DIGITS not in known:
        yield "Not run yet.\n"
        return
    yield from _summary(known[DIGITS])
    yield from _body(known[DIGITS])


def _late(known: dict[str, Archive], results: Path) -> Iterator[str]:
    yield LATE_TITLE
    found = pairs(known)
    if not found:
        yield "Not run yet with several seeds.\n"
    for stem, pair in found.items():
        yield f"### Setting `{stem}`\n{_setting(pair[0])}\n"
        if len(pair) == 2:
            yield f"{late_sentence(pair[0], pair[1])}\n\n![Tickets of both rewind points](figures/{stem}.svg)\n"
        for one in pair:
            yield f"#### Rewound to {one.run.config.rewind.at}\n"
            yield from _summary(one)
            yield from _body(one)
    yield from _tried(results / f"{TRIED}.csv")


def _setting(one: Archive) -> str:
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


def _tried(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    yield TRIED_TITLE.format(lines=len(rows))
    yield (
        "<details><summary>the table</summary>\n\n"
        + markdown(list(rows.columns), rows.values.tolist())
        + "\n</details>\n"
    )


def _summary(one: Archive) -> Iterator[str]:
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


def _body(one: Archive) -> Iterator[str]:
    name, seconds = one.run.name, one.provenance["seconds"]
    for slug in _functions(study(one)):
        yield f"![{name}: {slug.replace('_', ' ')}](figures/{name}_{slug}.svg)\n"
    yield "**At the end of training**\n\n" + rounds_table(one, "")
    if "early_stop_test_accuracy" in summary(one.run):
        yield "**At the early-stopping iteration**\n\n" + rounds_table(one, "early_stop_")
    yield _origin(one, name, seconds)
    notes = one.folder / "notes.md"
    if notes.is_file():
        yield f"**Interpretation (written by hand)**\n\n{notes.read_text().strip()}\n"


def _origin(one: Archive, name: str, seconds: dict[str, float]) -> str:
    made = one.provenance
    return (
        f"Config [`{name}/config.yaml`](../results/{name}/config.yaml) (hash {made['config_hash']}), numbers "
        f"[`{name}/results.csv`](../results/{name}/results.csv).\n"
        f"{made['machine']}, torch {made['torch']}, {made['threads']} thread a process; "
        f"{seconds['device']:,.0f} core-seconds, of which {seconds['evaluation']:,.0f} evaluation.\n"
    )


def rounds_table(one: Archive, prefix: str) -> str:
    """Accuracy and verdict of each arm by density; with the early-stopping iteration where that is the moment."""
    rows = summary(one.run)
    arms = one.run.arms
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
