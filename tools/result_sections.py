"""Sections of docs/results.md over several experiments: vision transformers, carried tickets, methods, channels.

Experiments belong to a section by how their folders under results/ begin; a section without any is left out. What
`lth report RUN RUN ... --out DIR` writes to DIR/masks.csv may be collected as results/transfer_masks.csv or
results/methods_masks.csv: how alike the masks of those runs are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from archive import Archive
from result_parts import body, ending, late_sentence, masks_table, setting, study, summarised, svg
from tables import markdown

from lth_scale.report import transfer as carried
from lth_scale.report.compare import comparison
from lth_scale.report.compare import methods as at_equal_density
from lth_scale.report.heatmap import heatmap
from lth_scale.report.numbers import MARKS, value
from lth_scale.report.reading import RunResults
from lth_scale.report.study import Study
from lth_scale.report.style import Size

VIT, TRANSFER, METHODS, CHANNELS = "fashion_mnist_vit", "transfer_", "methods_", "channel_"

VIT_TITLE = """\
## A vision transformer
Tickets of a small vision transformer on Fashion-MNIST, rewound to the initialisation and to a later k.
"""

TRANSFER_TITLE = """\
## Transfer between data sets
Tickets found on one data set, trained on another (Morcos et al. 2019). `layers` names what is pruned and carried:
`body` is all but the output layer, `hidden` leaves the input layer behind too; what stays behind is fresh and whole
everywhere. Verdicts are against the target's own fresh dense networks.
"""

METHODS_TITLE = """\
## Methods at equal density
`random` is the method's mask permuted within each layer, `reinit` its mask with fresh weights. ≈ is interpolated,
linear in log density between the run's neighbouring rounds, and has no verdict.
"""


CHANNELS_TITLE = """\
## Channel tickets
Whole channels removed, round after round. `small` is the small network that the ticket is, trained from scratch for as
many epochs; `small_flops` for as many FLOPs as the dense network; `random` as many other channels.
"""


def of(known: Mapping[str, Archive], prefix: str) -> list[Archive]:
    """Those of a section, by name."""
    return [one for name, one in sorted(known.items()) if name.startswith(prefix)]


def section_figures(studies: Mapping[str, Study]) -> dict[str, bytes]:
    """Path under docs/ -> SVG of the figures over several experiments."""
    found = {p: [one for name, one in sorted(studies.items()) if name.startswith(p)] for p in (VIT, METHODS)}
    made = {
        f"figures/{prefix.strip('_')}.svg": svg(comparison, ones, Size(7.0, 3.7))
        for prefix, ones in found.items()
        if len(ones) > 1
    }
    for name, runs in matrices([one.run for name, one in sorted(studies.items()) if name.startswith(TRANSFER)]).items():
        frame = carried.matrix(runs)
        if frame["difference"].notna().any():
            tolerance = max(run.config.report.tolerance for run in runs)
            made[f"figures/{_picture(name)}"] = svg(heatmap, frame, tolerance, Size(7.0, 3.7))
    return made


def matrices(runs: Sequence[RunResults]) -> dict[str, list[RunResults]]:
    """Heading -> the runs that make one matrix: those of one model; those with some of the classes apart."""
    found: dict[str, list[RunResults]] = {}
    for run in sorted(runs, key=lambda run: bool(run.config.data.classes)):
        name = run.config.model.name + ", some classes" * bool(run.config.data.classes)
        found.setdefault(name, []).append(run)
    return found


def _picture(name: str) -> str:
    return f"transfer_{name.replace(', ', '_').replace(' ', '_')}.svg"


def vit(known: Mapping[str, Archive]) -> Iterator[str]:
    """Both rewind points, and what blocks keep."""
    found = of(known, VIT)
    if not found:
        return
    yield f"{VIT_TITLE}\n{setting(found[0])}\n"
    if len(found) > 1:
        yield f"{late_sentence(found[0], found[-1])}\n\n![Tickets of the rewind points](figures/{VIT}.svg)\n"
    for one in found:
        yield f"### Rewound to {one.run.config.rewind.at}\n"
        yield from summarised(one)
        if len(one.blocks):
            yield "**Weights left in each block at the last round (%)**\n\n" + _blocks(one.blocks)
        yield from body(one)


def _blocks(frame: pd.DataFrame) -> str:
    shares = frame.set_index("block")
    lines = [
        [str(block), *(f"{100 * share:.2f}" for share in row)]
        for block, row in zip(shares.index, shares.to_numpy(), strict=True)
    ]
    return markdown(["block", *map(str, shares)], lines)


def transfer(known: Mapping[str, Archive], results: Path) -> Iterator[str]:
    """The matrices of all runs, as pictures and tables."""
    if not (found := of(known, TRANSFER)):
        return
    yield TRANSFER_TITLE
    columns = ["from", "to", "layers", "weights left %", *carried.ROLES.values()]
    for name, runs in matrices([one.run for one in found]).items():
        frame = carried.matrix(runs)
        yield f"### {name[0].upper()}{name[1:]}\n"
        if frame["difference"].notna().any():
            yield f"![Tickets carried from one data set to another: {name}](figures/{_picture(name)})\n"
        yield markdown(columns, [_carried(cell) for cell in carried.cells(frame)])
    notes = results / f"{TRANSFER}notes.md"
    if notes.is_file():
        yield f"**Interpretation of the matrices (written by hand)**\n\n{notes.read_text().strip()}\n"
    yield from _each(found, results / f"{TRANSFER}masks.csv")


def _carried(cell: carried.Cell) -> list[str]:
    shown = [_read(cell.rows.get(role)) for role in carried.ROLES]
    return [cell.source, cell.target, cell.layers, f"{100 * cell.density:.2f}", *shown]


def _read(row: pd.Series | None) -> str:
    if row is None:
        return ""
    return f"{value(row)} {MARKS.get(row['verdict'], ('', ''))[0]}".strip()


def methods(known: Mapping[str, Archive], results: Path) -> Iterator[str]:
    """All runs at the densities of the first."""
    found = of(known, METHODS)
    if not found:
        return
    yield METHODS_TITLE
    if len(found) > 1:
        yield "![Tickets of all methods](figures/methods.svg)\n"
    yield _methods_table([study(one) for one in found])
    yield from _each(found, results / f"{METHODS}masks.csv")


def channels(known: Mapping[str, Archive]) -> Iterator[str]:
    """Each run of channel tickets by itself."""
    for number, one in enumerate(of(known, CHANNELS)):
        if not number:
            yield CHANNELS_TITLE
        yield f"### `{one.run.name}`\n"
        yield from summarised(one)
        yield from body(one)


def _methods_table(studies: Sequence[Study]) -> str:
    frame = at_equal_density(studies)
    named = dict(zip(frame["run"], frame["method"], strict=True))
    rows = {(row["density"], row["arm"], row["run"]): row for _, row in frame.iterrows()}
    lines = [
        [f"{100 * density:.2f}", arm, *(_reading(rows.get((density, arm, run))) for run in named)]
        for density, arm in dict.fromkeys(zip(frame["density"], frame["arm"], strict=True))
    ]
    return markdown(["weights left %", "arm", *named.values()], lines)


def _reading(row: pd.Series | None) -> str:
    return f"≈ {row['test_accuracy']:.2f}" if row is not None and not row["measured"] else _read(row)


def _each(found: Sequence[Archive], masks: Path) -> Iterator[str]:
    """How alike masks of different runs are, then each run in words."""
    if masks.is_file():
        frame = pd.read_csv(masks)
        yield "**How alike the masks of different runs are**\n\n" + masks_table(frame[frame["kind"] == "runs"])
    for one in found:
        yield f"### `{one.run.name}`\n"
        yield from summarised(one)
        yield from ending(one)
