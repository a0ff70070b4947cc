"""What ``lth ticket bench`` measured, as rows: written, read, and shown in a terminal, on the page and in a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.table import Table

from lth_scale import files
from lth_scale.errors import UserError
from lth_scale.paths import RunPaths
from lth_scale.report.grids import Cell, Grid
from lth_scale.report.numbers import NONE, scaled, signed
from lth_scale.report.plot import Plot
from lth_scale.report.reading import RunResults
from lth_scale.report.style import FAINT, Size, figure, run_look

SCHEMA = 1
NEEDED = ("baseline", "calibration", "cores", "cpu", "energy", "largest", "samples", "threads")
UNMEASURED = "not measurable here"
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Row:
    """One contender at one batch size; None where something was not measured.

    Args:
        contender: which.
        batch: images at once; None for a network that was not timed.
        calls: that were timed.
        median_ms: of a call, in milliseconds.
        p99_ms: 99 % of the calls took at most so long; None for fewer than 100 calls.
        images_per_s: at the median.
        speedup: the baseline's median over this one's, at the same batch size.
        limit: all prunable weights over the surviving ones.
        work: multiply-adds of the whole network over those of the surviving weights, which a speedup by leaving out
            zeros cannot exceed; the limit where no convolution uses some weights more often than others.
        memory_mib: what a fresh process grew by, at its highest, in MiB.
        file_bytes: of the file.
        smaller: the baseline's bytes over these.
        millijoules: per image.
        difference: the largest of an output from the ticket's own network, on the test images.
        accuracy: on the test images, in percent.
        accuracy_change: to the baseline's, in points.
        why: what was not measured, and why; empty otherwise.
    """

    contender: str
    batch: int | None
    calls: int = 0
    median_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    speedup: float | None = None
    limit: float | None = None
    work: float | None = None
    memory_mib: float | None = None
    file_bytes: int | None = None
    smaller: float | None = None
    millijoules: float | None = None
    difference: float | None = None
    accuracy: float | None = None
    accuracy_change: float | None = None
    why: str = ""


COLUMNS = [one.name for one in fields(Row)]


@dataclass(frozen=True)
class Bench:
    """Args: rows: by batch size, then contender; about: what was measured, on what, where and with what."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batches(self) -> list[int]:
        """Those that were timed."""
        return sorted({row.batch for row in self.rows if row.batch is not None})

    @property
    def name(self) -> str:
        """Which ticket, in a few words."""
        parts = [f"{key} {self.about[key]}" for key in ("seed", "arm", "round", "ticket") if key in self.about]
        return ", ".join(parts) or "a ticket"

    def write(self, folder: Path) -> None:
        """bench.csv for people's programs, then bench.json with all there is; each whole or not at all."""
        frame = pd.DataFrame([asdict(row) for row in self.rows], columns=COLUMNS)
        frame = frame.astype({"batch": "Int64", "file_bytes": "Int64"})
        files.write_text(folder / "bench.csv", frame.to_csv(index=False, lineterminator="\n"))
        told = {"schema": SCHEMA, "about": dict(self.about), "rows": [asdict(row) for row in self.rows]}
        files.write_json(folder / "bench.json", told)


def read(path: Path) -> Bench:
    """A bench.json; raises UserError naming one that is missing or damaged."""
    told = files.read_json(path)
    try:
        if told["schema"] != SCHEMA:
            raise ValueError(f"its schema is {told['schema']}, not {SCHEMA}")
        if lacking := [key for key in NEEDED if key not in told["about"]]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return Bench(tuple(Row(**row) for row in told["rows"]), told["about"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); lth ticket bench makes it anew") from None


def of_run(run: RunResults) -> list[Bench]:
    """All that was measured of a run's tickets."""
    return [read(path) for path in RunPaths(run.root).benches()]


def _number(value: float | None, form: str = ".3g") -> str:
    return NONE if value is None else f"{value:{form}}"


def _times(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}{TIMES}"


def _energy(row: Row) -> str:
    return UNMEASURED if row.millijoules is None else f"{row.millijoules:.3g}"


def cells(row: Row) -> list[str]:
    """A row's texts, in the order of HEADINGS."""
    return [
        "any" if row.batch is None else str(row.batch),
        *(_number(value) for value in (row.median_ms, row.p99_ms)),
        NONE if row.images_per_s is None else f"{row.images_per_s:,.0f}",
        *(_times(value) for value in (row.speedup, row.work, row.limit)),
        _number(row.memory_mib, ".1f"),
        NONE if row.file_bytes is None else scaled(row.file_bytes, "B"),
        _times(row.smaller),
        NONE if row.median_ms is None else _energy(row),
        _number(row.difference, ".2g"),
        _number(row.accuracy, ".2f"),
        NONE if row.accuracy_change is None else signed(row.accuracy_change),
    ]


ENERGY = "mJ/image"
GROUPS = {
    "": ("batch",),
    "latency": ("ms", "p99", "images/s", "faster", "work", "limit"),
    "memory and file": ("MiB", "file", "smaller"),
    "energy": (ENERGY,),
    "outputs": ("diff", "accuracy", "points"),
}
HEADINGS = [name for names in GROUPS.values() for name in names]


def conditions(one: Bench) -> str:
    """On what it was measured, and what the columns compare with."""
    about = one.about
    pinned = f"pinned to core {', '.join(map(str, about['cores']))}" if about["cores"] else "not pinned"
    parts = [
        f"{about['cpu']}, {_threads(one)} {pinned}",
        f"{about['samples']:,} test images",
        f"faster, smaller and points: against {about['baseline']}",
        "work, limit: multiply-adds, and prunable weights, over those that survive",
        f"diff: the largest of outputs, which reach {about['largest']:.3g}",
        f"int8 calibrated on {about['calibration']} training images",
        f"energy: {about['energy']}",
    ]
    return "; ".join(parts)


def _threads(one: Bench) -> str:
    count = one.about["threads"]
    return f"{count} thread{'s' * (count > 1)}"


def table(one: Bench) -> Table:
    """For a terminal; energy where it was measured, as the line below the table says it too."""
    made = Table(title=one.name, caption=conditions(one), title_justify="left", caption_justify="left")
    shown = [name for name in HEADINGS if name != ENERGY or any(row.millijoules is not None for row in one.rows)]
    for column in ("contender", *shown):
        made.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for before, row in zip((None, *one.rows), one.rows, strict=False):
        if before is not None and before.batch != row.batch:
            made.add_section()
        texts = dict(zip(HEADINGS, cells(row), strict=True))
        made.add_row(row.contender, *(texts[name] for name in shown))
    return made


def reasons(one: Bench) -> list[str]:
    """One line for each contender that was not measured, or not whole."""
    return list(dict.fromkeys(f"{row.contender}: {row.why}" for row in one.rows if row.why))


def grids(run: RunResults) -> list[Grid]:
    """The page's tables."""
    return [_grid(one) for one in of_run(run)]


def _grid(one: Bench) -> Grid:
    rows = [
        [Cell(row.contender), *(Cell(text, "none" if text == NONE else "") for text in cells(row))] for row in one.rows
    ]
    note = " ".join([f"{conditions(one)}.", *(f"{line}." for line in reasons(one))])
    groups = [(label, f"bench-{label.split(' ')[0]}", names) for label, names in list(GROUPS.items())[1:]]
    return Grid(f"Size and speed: {one.name}", note, groups, rows, open=True, keys=("contender", "batch"))


def plots(run: RunResults) -> list[Plot]:
    """The page's figures."""
    found = []
    for one in of_run(run):
        at = "_".join(str(one.about[key]) for key in ("seed", "arm", "round") if key in one.about)
        caption = (
            f"{one.name}: a call's median (mark) to its 99th percentile (line), {_threads(one)}; "
            f"grey: {one.about['baseline']}."
        )
        found.append(Plot(f"speed_{at}", "Size and speed: latency", caption, partial(latency, one)))
        caption = f"{one.name}: test accuracy against the size of the file; grey: {one.about['baseline']}."
        found.append(Plot(f"size_{at}", "Size and speed: files", caption, partial(sizes, one)))
    return found


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.contender for row in rows))


def latency(one: Bench, size: Size) -> Figure:
    """Median to 99th percentile of each contender, a panel for each batch size."""
    timed = [row for row in one.rows if row.median_ms is not None]
    names, batches = _names(timed), sorted({row.batch for row in timed if row.batch is not None})
    stacked = size.width < 4.5
    shape = (1, len(batches)) if stacked else (len(batches), 1)
    height = size.height * (0.75 * len(batches) if stacked else 0.85)
    made, grid = figure(Size(size.width, height), columns=shape[0], rows=shape[1], sharey=True)
    for axes, batch in zip(grid.flat, batches, strict=True):
        for row in (row for row in timed if row.batch == batch):
            place, (color, marker, _) = names.index(row.contender), run_look(names.index(row.contender))
            axes.plot([row.median_ms, row.p99_ms or row.median_ms], [place, place], color=color, linewidth=1.3)
            axes.plot([row.median_ms], [place], marker, color=color, markersize=5)
            if row.contender == one.about["baseline"]:
                axes.axvline(row.median_ms, color=FAINT, linewidth=1.0)
        _log(axes)
        axes.set_title(f"batch {batch}")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    made.supxlabel("milliseconds a call", fontsize=9)
    return made


def sizes(one: Bench, size: Size) -> Figure:
    """Test accuracy against the file's bytes."""
    made, grid = figure(size)
    axes = grid[0, 0]
    filed = {row.contender: row for row in one.rows if row.file_bytes and row.accuracy is not None}
    for place, (name, row) in enumerate(filed.items()):
        color, marker, _ = run_look(place)
        axes.plot([row.file_bytes / 1e3], [row.accuracy], marker, color=color, markersize=6, label=name)  # type: ignore[operator]
        if name == one.about["baseline"]:
            axes.axhline(row.accuracy, color=FAINT, linewidth=1.0)
    _log(axes)
    known = [row.accuracy for row in filed.values() if row.accuracy is not None]
    middle, half = (max(known) + min(known)) / 2, max(0.5, 0.6 * (max(known) - min(known)))
    axes.set_ylim(middle - half, middle + half)  # half a point at least: what is smaller is not magnified
    axes.set_xlabel("file (kB)")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(loc="best")
    return made


def _log(axes: Axes) -> None:
    """A log axis with plain numbers, few over decades, more over less than one."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0,) if high > 30 * low else (1.0, 2.0, 5.0) if high > 6 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
