"""The page's tables of more than one run's tickets: carried ones, methods at equal density, overlaps of masks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lth_scale.report import transfer
from lth_scale.report.grids import Cell, Grid
from lth_scale.report.numbers import LEGEND, MARKS, NONE, signed, value, with_interval
from lth_scale.report.overlaps import ALL

NOTHING = Cell(NONE, "none")


def badge(verdict: object) -> Cell:
    """A verdict in its colour; nothing for a dense network."""
    known = isinstance(verdict, str)
    return Cell(str(verdict), f"badge {str(verdict).replace(' ', '-')}") if known else Cell("dense", "quiet")


def _signed(row: pd.Series | None) -> Cell:
    return NOTHING if row is None else Cell(f"{value(row)} {MARKS.get(row['verdict'], ('', ''))[0]}".strip())


def transferred(frame: pd.DataFrame) -> Grid | None:
    """Each cell of the matrix beside its controls; None without carried tickets."""
    rows = [
        [
            Cell(cell.source, "", f"to {cell.target}, {cell.layers}"),
            Cell(f"{100 * cell.density:.2f}"),
            *(_signed(cell.rows.get(role)) for role in transfer.ROLES),
        ]
        for cell in transfer.cells(frame)
    ]
    note = (
        "Mean test accuracy in percent at the end with half its 95 % interval, and the verdict against the same "
        f"replicates' fresh dense networks: {LEGEND.replace('  ', ', ')}. Layers: body carries all but the "
        "output layer, hidden leaves the input layer behind too; what stays behind is fresh and whole in every column."
    )
    groups = [(heading, role, ("accuracy",)) for role, heading in transfer.ROLES.items()]
    return (
        Grid("Transferred tickets", note, groups, rows, open=True, keys=("from, to, layers", "left %"))
        if rows
        else None
    )


def methods(frame: pd.DataFrame) -> Grid:
    """Several runs' tickets and ablations at the densities of the first; interpolated readings are marked."""
    named = dict(zip(frame["run"], frame["method"], strict=True))
    rows = []
    found = {(row["density"], row["arm"], row["run"]): row for _, row in frame.iterrows()}
    for density, arm in dict.fromkeys(zip(frame["density"], frame["arm"], strict=True)):
        line = [Cell(f"{100 * density:.2f}"), Cell(arm)]
        for run in named:
            line += _reading(found.get((density, arm, run)))
        rows.append(line)
    note = (
        "Mean test accuracy at the end (%) with half its 95 % interval and paired difference to dense (points) with "
        "its 95 % t-interval, at the densities of the first run. random: the same mask permuted within each "
        "layer; reinit: the same mask with fresh weights. ≈ in italics is interpolated, linear in log density between "
        f"a run's neighbouring rounds; {NONE} lies outside a run's densities."
    )
    groups = [(name, f"run-{i}", ("accuracy", "against dense", "verdict")) for i, name in enumerate(named.values())]
    return Grid("Methods at equal density", note, groups, rows, open=True, keys=("left %", "arm"))


def _reading(row: pd.Series | None) -> list[Cell]:
    if row is None:
        return [NOTHING] * 3
    if not row["measured"]:
        gap = row["difference"]
        texts = [f"≈ {row['test_accuracy']:.2f}", f"≈ {signed(gap)}" if gap == gap else NONE]
        return [*(Cell(text, "interpolated") for text in texts), NOTHING]
    mean, bracket, rest = with_interval(row, "difference").partition(" [")
    dense = not isinstance(row["verdict"], str)
    gap = NOTHING if dense else Cell(mean, "", f"[{rest}" if bracket else "")
    return [Cell(value(row)), gap, badge(row["verdict"])]


OVERLAP_NOTE = (
    "Jaccard: weights kept by both masks over weights kept by either; by chance: the same of uniform random masks with "
    "as many weights in each tensor. Matched: with the hidden units of one in the order of the other's, which finds "
    "likeness in random masks too, so its chance is theirs. Signs: of the weights kept by both, the share whose signs "
    "are equal in theta_k, or at the end; by chance one half. Means over the pairs, below them their range. "
)
NESTED = (
    "Within a replicate every mask lies inside those of earlier rounds, so that their Jaccard is the ratio of their "
    "densities."
)
GONE = "No two replicates' masks are stored here (any more), so that nothing can be said of how alike they are."
SHARES = {
    "jaccard": "Jaccard",
    "chance": "by chance",
    "matched": "matched",
    "matched_chance": "by chance",
    "signs_theta_k": "signs, theta_k",
    "signs_theta_T": "signs, end",
}


def overlaps(frame: pd.DataFrame, kind: str, title: str, note: str) -> list[Grid]:
    """By density over all tensors, and by tensor at the lowest density, for every two runs of a kind of pair."""
    mine = frame[frame["kind"] == kind]
    if mine.empty:
        return []
    pairs = list(dict.fromkeys(zip(mine["run"], mine["other_run"], strict=True)))
    shares = [column for column in SHARES if mine[column].notna().any()]
    groups = [(_pair(*pair), f"run-{i}", tuple(SHARES[share] for share in shares)) for i, pair in enumerate(pairs)]
    every = mine[mine["tensor"] == ALL]
    last = mine[mine["density"] <= mine.groupby(["run", "other_run"])["density"].transform("min") * 1.01]
    by_round = _lines(every, "round", pairs, shares)
    by_tensor = _lines(last[last["tensor"] != ALL], "tensor", pairs, shares)
    return [
        Grid(title, OVERLAP_NOTE + note, groups, by_round),
        Grid(
            f"{title}, by layer",
            "At the lowest density of each pair. " + OVERLAP_NOTE,
            groups,
            by_tensor,
            keys=("layer", "left %"),
        ),
    ]


def _pair(run: str, other: str) -> str:
    return "replicates" if run == other else f"{run} and {other}"


def _lines(rows: pd.DataFrame, key: str, pairs: Sequence[tuple[str, str]], shares: Sequence[str]) -> list[list[Cell]]:
    lines = []
    for name, at in rows.groupby(key, sort=key == "round"):
        line = [Cell(str(name)), Cell(f"{100 * (at['kept'] / at['numel']).mean():.2f}")]
        for run, other in pairs:
            pair = at[(at["run"] == run) & (at["other_run"] == other)]
            line += [_spread(pair[column]) for column in shares]
        lines.append(line)
    return lines


def _spread(values: pd.Series) -> Cell:
    known = values.dropna()
    if known.empty:
        return NOTHING
    low, high = f"{known.min():.3f}", f"{known.max():.3f}"
    return Cell(f"{known.mean():.3f}", "", f"{low} to {high}" if low != high else "")


def blocks(frame: pd.DataFrame) -> Grid | None:
    """Density of each block's parts; None unless the network has such blocks."""
    if frame.empty:
        return None
    rows = [
        [Cell(str(block)), *(Cell(f"{100 * share:.2f}") for share in line)]
        for block, line in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    note = "Weights left in percent at the ticket's last round, mean of the replicates."
    return Grid("Density by block and part", note, [("part", "ticket", tuple(map(str, frame)))], rows, keys=("block",))
