"""The look of the figures: one colour-blind-safe palette, one size of type, bytes that depend on the data alone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

INK, FAINT, GRID, PAPER = "#1b1d22", "#5f6570", "#dcdfe4", "#fefefe"

# Okabe and Ito's colours, told apart by marker and dash as well.
LOOKS: dict[str, tuple[str, str, Any]] = {
    "ticket": ("#0072b2", "o", "-"),
    "reinit": ("#d55e00", "s", (0, (5, 1.6))),
    "random": ("#009e73", "^", (0, (1.4, 1.4))),
    "random_reinit": ("#cc79a7", "D", (0, (5, 1.5, 1, 1.5))),
    "sign": ("#b8860b", "v", (0, (3, 1.2))),
    "dense_from_k": ("#56b4e9", "P", "-"),
}
SPARE = (("#7a5195", "X", "-"), ("#8c564b", "<", (0, (4, 2))), ("#767676", ">", (0, (2, 2))))

# The page swaps these for variables of its own, so that inline figures follow its light and dark theme.
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--line", PAPER: "--paper"} | {
    color: f"--{arm.replace('_', '-')}" for arm, (color, _, _) in LOOKS.items()
}

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "pdf.fonttype": 42,
}


class Size(NamedTuple):
    """Width and height in inches."""

    width: float
    height: float


WIDE, NARROW = Size(5.7, 3.5), Size(3.75, 3.2)


def look(name: str, position: int = 0) -> tuple[str, str, Any]:
    """Colour, marker and dash of an arm; a spare one, by position, for an arm without its own."""
    return LOOKS.get(name) or SPARE[position % len(SPARE)]


def run_look(position: int) -> tuple[str, str, Any]:
    """Colour, marker and dash of a run in a comparison of several."""
    known = [*LOOKS.values(), *SPARE]
    return known[position % len(known)]


def figure(size: Size, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of its own, without pyplot's global state, and its grid of axes."""
    made = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False, **options)


def _percent_tick(density: float, _: float) -> str:
    value = 100 * density
    return f"{value:.0f}" if value >= 1 else f"{value:g}"


def percent_ticks(axis: Axis, low: float) -> None:
    """Ticks in percent on a log axis of densities from ``low`` to 1: few over decades, more over less than one."""
    steps = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0) if low > 0.2 else (1.0, 2.0, 5.0) if low > 0.004 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(_percent_tick))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def density_axis(axes: Axes, densities: Sequence[float]) -> None:
    """A log axis of density from dense (left) to sparse (right), in percent of the weights left."""
    low = min(densities, default=0.1)
    margin = (1 / low) ** 0.03 * 1.01
    axes.set_xscale("log")
    axes.set_xlim(margin, low / margin)
    percent_ticks(axes.xaxis, low)
    axes.set_xlabel("weights left (%)")


def draw(function: Callable[..., Figure], *arguments: Any) -> Figure:
    """Call a drawing function under the project's look, whatever the user's matplotlibrc says."""
    settings: Any = {**matplotlib.rcParamsDefault, **RC, "backend": "agg"}
    with matplotlib.rc_context(settings):
        made = function(*arguments)
        made.draw_without_rendering()
        made.set_layout_engine("none")  # laid out once, for all the formats it is saved in
        return made


def svg_bytes(drawn: Figure, text_as: str = "path") -> bytes:
    """SVG, the same bytes for the same data; ``text_as`` is path (looks alike everywhere) or none (real text)."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lth_scale", "svg.fonttype": text_as}):
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def pdf_bytes(drawn: Figure) -> bytes:
    """The figure as PDF with embedded fonts and no date."""
    stream = io.BytesIO()
    drawn.savefig(stream, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return stream.getvalue()


def png_bytes(drawn: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG on white."""
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def inline(svg: bytes, prefix: str) -> str:
    """An SVG for the page: no prologue, ids of its own, the page's colours, and a width that follows the page."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable}, {color})")
    text = re.sub(
        r'(<svg [^>]*?)\s(?:width|height)="[\d.]+pt"([^>]*?)\s(?:width|height)="[\d.]+pt"', r"\1\2", text, count=1
    )
    return re.sub(r"\n\s*", "\n", text)
