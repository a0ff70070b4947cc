"""The figures of one run: each a function of its tables and a size, drawn without pyplot."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lth_scale.report.layers import Layer
from lth_scale.report.reading import family
from lth_scale.report.study import Study
from lth_scale.report.style import FAINT, GRID, INK, PAPER, Size, density_axis, figure, look, percent_ticks
from lth_scale.report.table import accuracies

LABELS = {
    "end": "at the end of training",
    "early_stop": "at the early-stopping iteration",
    "third_1": "after 1/3 of training",
    "third_2": "after 2/3 of training",
}


def sequential(low: float = 0.24, high: float = 0.87) -> Colormap:
    """Viridis without its ends, which would vanish on a dark or a white page."""
    return LinearSegmentedColormap.from_list("inner", matplotlib.colormaps["viridis"](np.linspace(low, high, 64)))


def _column(moment: str, name: str) -> str:
    return name if moment == "end" else f"{moment}_{name}"


def _dense_band(axes: Axes, study: Study, moment: str) -> tuple[float, float] | None:
    dense = list(accuracies(study.run, *study.run.dense, moment).values())
    if not dense:
        return None
    axes.axhspan(min(dense), max(dense), color=FAINT, alpha=0.16, linewidth=0)
    axes.axhline(sum(dense) / len(dense), color=FAINT, linewidth=1.0)
    return min(dense), max(dense)


def _legend(axes: Axes, names: list[str], *more: Line2D, **options: Any) -> None:
    looks = [(name, *look(name, i)) for i, name in enumerate(names)]
    lines = [Line2D([], [], color=c, marker=m, linestyle=d, label=name) for name, c, m, d in looks]
    axes.legend(handles=[*lines, *more], **{"loc": "lower left", **options})


def _focus(axes: Axes, study: Study, moment: str, band: tuple[float, float] | None) -> None:
    """Cut the axis below what the ticket's story needs: a control at chance would flatten everything else."""
    low, high = _column(moment, "test_accuracy_min"), _column(moment, "test_accuracy_max")
    tickets = study.arm("ticket")
    if study.rows[high].isna().all():
        return
    top = max(float(study.rows[high].max()), band[1] if band else 0.0)
    span = top - float(tickets[low].min()) if len(tickets) else 0.0
    bottom = max(float(study.rows[low].min()), top - max(2.2 * span, 8 * study.run.config.report.tolerance))
    margin = 0.06 * max(top - bottom, 0.1)
    axes.set_ylim(bottom - margin, top + margin)


def accuracy(study: Study, size: Size, moment: str = "end") -> Figure:
    """Test accuracy against density; bands are the range of the replicates."""
    made, grid = figure(size)
    axes = grid[0, 0]
    band = _dense_band(axes, study, moment)
    for position, arm in enumerate(study.drawn):
        rows, (color, marker, dash) = study.arm(arm), look(arm, position)
        low, high = (rows[_column(moment, f"test_accuracy_{end}")] for end in ("min", "max"))
        axes.fill_between(rows["density"], low, high, color=color, alpha=0.17, linewidth=0)
        axes.plot(rows["density"], rows[_column(moment, "test_accuracy")], color=color, marker=marker, linestyle=dash)
    density_axis(axes, study.densities)
    _focus(axes, study, moment, band)
    axes.set_ylabel("test accuracy (%)")
    _legend(axes, study.drawn, *([Line2D([], [], color=FAINT, linewidth=1.0, label="dense")] if band else []))
    return made


def _verdict_points(axes: Axes, rows: pd.DataFrame, shift: float, arm: str, position: int) -> None:
    color, marker, dash = look(arm, position)
    x = rows["density"] * shift
    axes.plot(x, rows["difference"], color=color, linestyle=dash, linewidth=1.0, alpha=0.6)
    axes.vlines(x, rows["difference_low"], rows["difference_high"], color=color, linewidth=1.3)
    for (_, row), at in zip(rows.iterrows(), x, strict=True):
        face = color if row["verdict"] == "matching" else PAPER if row["verdict"] == "not matching" else GRID
        axes.plot([at], [row["difference"]], marker, color=color, markerfacecolor=face, markersize=5)


def difference(study: Study, size: Size) -> Figure:
    """Paired differences to dense with their 95 % intervals and the tolerance: the verdicts, drawn."""
    made, grid = figure(size)
    axes = grid[0, 0]
    tolerance = study.run.config.report.tolerance
    arms = [arm for arm in study.drawn if (study.arm(arm)["round"] > 0).any()]
    for position, arm in enumerate(arms):
        rows = study.arm(arm)
        _verdict_points(axes, rows[rows["round"] > 0], 1.025 ** (position - (len(arms) - 1) / 2), arm, position)
    axes.axhline(0, color=FAINT, linewidth=1.0)
    edge = axes.axhline(-tolerance, color=INK, linewidth=1.0, linestyle=(0, (2, 2)), label=f"tolerance {tolerance:g}")
    density_axis(axes, study.densities)
    lowest = float(study.arm("ticket")["difference_low"].min())
    bottom = min(-3 * tolerance, lowest if lowest == lowest else 0.0)
    highest = float(study.rows["difference_high"].max())
    axes.set_ylim(1.25 * bottom, max(1.2 * tolerance, 1.1 * highest if highest == highest else 0.0))
    axes.set_ylabel("difference to dense (points)")
    _legend(axes, arms, edge)
    return made


def early_stop(study: Study, size: Size) -> Figure:
    """Early-stopping iteration against density; where it was not reached in every replicate, a lower bound."""
    made, grid = figure(size)
    axes = grid[0, 0]
    for position, arm in enumerate(study.drawn):
        rows, (color, marker, dash) = study.arm(arm), look(arm, position)
        rows = rows[rows["early_stop_step"].notna()]
        x, y = rows["density"], rows["early_stop_step"]
        axes.fill_between(
            x, rows["early_stop_step_min"], rows["early_stop_step_max"], color=color, alpha=0.15, linewidth=0
        )
        axes.plot(x, y, color=color, linestyle=dash)
        bound = rows["early_stop_not_reached"] > 0
        axes.plot(x[~bound], y[~bound], marker, color=color)
        axes.plot(x[bound], y[bound], "^", color=color, markerfacecolor="none", markersize=7)
    density_axis(axes, study.densities)
    highest = float(study.rows["early_stop_step_max"].max())
    axes.set_ylim(0, 1.08 * highest or 1.0)
    axes.set_ylabel("early-stopping iteration")
    _legend(axes, study.drawn, loc="best")
    return made


def _learning_panel(axes: Axes, curves: pd.DataFrame, rows: pd.DataFrame, colors: Colormap, norm: LogNorm) -> None:
    for number, density in zip(rows["round"], rows["density"], strict=True):
        mean = curves[curves["round"] == number].groupby("step")["accuracy"].mean() * 100
        axes.plot(mean.index, mean.values, color=colors(norm(density)), linewidth=1.1)


def learning(study: Study, size: Size) -> Figure:
    """Validation accuracy by step, one line per round (mean of the replicates), one panel per arm."""
    arms = study.drawn
    stacked = size.width < 4.5
    shape = (1, len(arms)) if stacked else (len(arms), 1)
    height = size.height * (0.75 * len(arms) if stacked else 0.85)
    made, grid = figure(Size(size.width, height), columns=shape[0], rows=shape[1], sharex=True, sharey=True)
    curves = study.curves[(study.curves["split"] == "validation") & study.curves["arm"].map(family).isin(arms)]
    colors, norm = sequential(), LogNorm(min(study.densities, default=0.01) * 0.999, 1.0)
    for axes, arm in zip(grid.flat, arms, strict=True):
        _learning_panel(axes, curves[curves["arm"].map(family) == arm], study.arm(arm), colors, norm)
        axes.set_title(arm)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    if len(curves):
        low, top = 100 * curves["accuracy"].quantile(0.2), 100 * curves["accuracy"].max()
        grid[0, 0].set_ylim(low, top + 0.04 * (top - low))
    made.supxlabel("step", fontsize=9)
    made.supylabel("validation accuracy (%)", fontsize=9)
    bar = made.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=list(grid.flat), pad=0.01, aspect=28)
    percent_ticks(bar.ax.yaxis, norm.vmin or 0.01)
    bar.set_label("weights left (%)")
    bar.outline.set_visible(False)
    return made


def layer_density(study: Study, size: Size) -> Figure:
    """What each layer keeps over the rounds of the ticket, first layer to last."""
    made, grid = figure(size)
    axes = grid[0, 0]
    tickets = [r for r in study.run.results if r["arm"] == "ticket"]
    names = list(tickets[0]["tensors"]) if tickets else []
    colors, rounds = sequential(), study.run.rounds("ticket")
    for position, name in enumerate(names):
        kept = [_mean_density([r["tensors"][name] for r in tickets if r["round"] == n]) for n in rounds]
        axes.plot(rounds, kept, color=colors(position / max(1, len(names) - 1)), marker="o", markersize=3, label=name)
    axes.set_yscale("log")
    percent_ticks(axes.yaxis, axes.get_ylim()[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("weights left in the layer (%)")
    if len(names) <= 8:
        axes.legend(loc="lower left")
    elif names:
        ends = [Line2D([], [], color=colors(p), label=n) for p, n in ((0.0, names[0]), (1.0, names[-1]))]
        axes.legend(handles=ends, loc="lower left", title=f"{len(names)} layers, first to last")
    return made


def _mean_density(tensors: list[dict[str, int]]) -> float:
    shares = [t["kept"] / t["numel"] for t in tensors]
    mean = sum(shares) / len(shares)
    return mean if mean > 0 else float("nan")


def theta(study: Study, size: Size) -> Figure:
    """theta_k by layer: the weights that the sparsest ticket kept and those it pruned, each with area 1."""
    layers = study.layers
    columns = min(len(layers), 1 if size.width < 4.5 else 3)
    rows = -(-len(layers) // columns)
    made, grid = figure(Size(size.width, 0.35 + rows * 1.75), columns=columns, rows=rows)
    for axes, layer in zip(grid.flat, layers, strict=False):
        bins = np.linspace(-layer.limit, layer.limit, 42)
        _areas(axes, layer, bins)
        axes.set_title(f"{layer.name}  ({100 * layer.density:.3g} % kept)")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    for axes in list(grid.flat)[len(layers) :]:
        axes.set_axis_off()
    made.supxlabel("weight at the rewind point", fontsize=9)
    return made


def _areas(axes: Axes, layer: Layer, bins: Any) -> None:
    """Both histograms with area 1; a handful of survivors in narrow spikes may not flatten the pruned ones."""
    peaks = []
    looks = ((layer.pruned, {"color": FAINT, "alpha": 0.35, "linewidth": 0}),
             (layer.kept, {"histtype": "step", "color": look("ticket")[0], "linewidth": 1.4}))  # fmt: skip
    for values, options in looks:
        if len(values):
            peaks.append(float(np.max(axes.hist(values, bins=bins, density=True, **options)[0])))  # type: ignore[arg-type]
    axes.set_ylim(0, 1.08 * min(max(peaks), 3 * peaks[0]))


COST_LINES = (
    ("steps", "training steps", "ticket"),
    ("flops_sparse", "FLOPs, sparse", "reinit"),
    ("device_seconds", "device-seconds", "random"),
    ("bytes", "bytes stored", "random_reinit"),
)


def cost(study: Study, size: Size) -> Figure:
    """What the ticket at each density cost in all, in dense runs."""
    made, grid = figure(size)
    axes = grid[0, 0]
    rows = study.arm("ticket")
    for name, label, colored in COST_LINES:
        color, marker, dash = look(colored)
        axes.plot(
            rows["density"], rows[f"cumulative_{name}_x_dense"], color=color, marker=marker, linestyle=dash, label=label
        )
    density_axis(axes, study.densities)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("cumulative cost (dense runs)")
    axes.legend(loc="upper left")
    return made
