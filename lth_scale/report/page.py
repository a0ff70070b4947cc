"""All that `lth report` writes: a page that opens offline, vector figures, tables for machines and for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lth_scale import files
from lth_scale.report import explore, figures, several, speed, words
from lth_scale.report.figures import LABELS
from lth_scale.report.grids import Grid, grids
from lth_scale.report.latex import latex
from lth_scale.report.links import Links
from lth_scale.report.plot import Plot
from lth_scale.report.reading import RunResults, curves, read_run, read_runs
from lth_scale.report.several import Compared
from lth_scale.report.study import Study
from lth_scale.report.style import Size, draw, pdf_bytes, png_bytes, svg_bytes
from lth_scale.report.table import tidy


def _plot(slug: str, title: str, caption: str, function: Callable[..., Figure], one: Study, *more: Any) -> Plot:
    return Plot(slug, title, caption, lambda size: function(one, size, *more))


RANGE = "Lines are means of the replicates, bands their minimum to maximum; the grey band is the dense networks'. "
CUT = "The axis ends where controls fall far below the tickets."


def _accuracy_plots(one: Study) -> list[Plot]:
    moments = [("accuracy" if m == "end" else f"accuracy_{m}", m) for m in one.run.moments]
    plots = [
        _plot(slug, f"Test accuracy {LABELS[m]}", RANGE + CUT, figures.accuracy, one, m)
        for slug, m in moments
        if m == "end" or one.rows.get(f"{m}_test_accuracy", one.rows["n"] * float("nan")).notna().any()
    ]
    return plots


def plots(one: Study) -> list[Plot]:
    """The figures that a run's results allow; none without a finished round."""
    if one.rows.empty:
        return []
    made = _accuracy_plots(one)
    if one.rows["difference"].notna().any():
        caption = (
            "Paired difference to each replicate's own dense network, with 95 % t-intervals. "
            "Filled: matching; hollow: not matching; grey: undecided."
        )
        made.insert(1, _plot("difference", "Difference to dense", caption, figures.difference, one))
    if "early_stop_step" in one.rows:
        caption = (
            "First minimum of validation loss, in steps of the dense clock; bands are minimum to maximum. "
            "Hollow triangles are lower bounds: some replicate's loss was still falling."
        )
        made.append(_plot("early_stop", "Early-stopping iteration", caption, figures.early_stop, one))
    return [*made, *several.transfer_plots([one]), *_detail_plots(one), *speed.plots(one.run)]


def _detail_plots(one: Study) -> list[Plot]:
    caption = "Validation accuracy by step, mean of the replicates; the axis leaves out the first climb."
    made = [_plot("learning", "Learning curves by round", caption, figures.learning, one)]
    if one.arm("ticket").empty:
        return made
    caption = "Share of each layer's weights that the ticket keeps."
    made.append(_plot("layer_density", "Density of each layer", caption, figures.layer_density, one))
    if one.layers:
        caption = (
            "theta_k of the weights that the sparsest stored ticket kept (line) and pruned (grey), each with area 1; "
            "one replicate; spikes of a few survivors are cut off."
        )
        made.append(_plot("theta", "Which weights survive", caption, figures.theta, one))
    caption = "Summed over the dense round and every ticket so far, in units of one dense run; mean of the replicates."
    return [*made, _plot("cost", "What a ticket cost", caption, figures.cost, one)]


@dataclass(frozen=True)
class Section:
    """One run on the page."""

    name: str
    slug: str
    headline: str
    gains: list[str]
    facts: list[tuple[str, str]]
    progress: str
    missing: list[str]
    started: list[str]
    flags: list[str]
    plots: list[Plot] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


def slug(name: str) -> str:
    """A run's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_")


def _facts(run: RunResults) -> list[tuple[str, str]]:
    config = run.config
    recipe = (
        f"{config.train.optimizer}, lr {config.train.lr:g}, batch {config.train.batch_size}, {config.train.duration}"
    )
    prune = config.prune
    group = Links.of(run).group()
    pace = {"rate": f"{prune.rate:.0%} a round".replace("%", " %")}.get(prune.schedule, f"schedule {prune.schedule}")
    return [
        ("data", config.data.name),
        ("model", config.model.name),
        ("training", recipe),
        ("pruning", f"{prune.criterion}, {prune.scope}, {prune.nm if prune.scope == 'n:m' else pace}"),
        ("rewind", f"to {config.rewind.at}, {config.rewind.recipe}"),
        ("replicates", words.ranges(run.seeds) or "none yet"),
        *([("W&B", Markup('<a href="{}">runs</a>').format(group))] if group else []),
    ]


def _flags(rows: Any) -> list[str]:
    flagged = rows[rows["flags"].fillna("") != ""] if "flags" in rows else rows
    return [
        f"{row['arm']} round {row['round']} ({words.percent(row['density'])}): {row['flags']}"
        for _, row in flagged.iterrows()
    ]


def section(one: Study) -> Section:
    """What the page says of one run."""
    run, missing, started = one.run, one.run.missing(), one.run.started()
    planned = len(run.planned)
    progress = f"{planned - len(missing)} of {planned} planned rounds are finished." if missing else ""
    waiting = [key for key in missing if key not in started]
    return Section(
        name=run.name,
        slug=slug(run.name),
        headline=words.headline_of(run, one.rows),
        gains=[*words.gains(run, one.rows), *filter(None, [words.carried(run)])],
        facts=_facts(run),
        progress=progress,
        missing=words.describe_keys(waiting),
        started=words.describe_keys(started),
        flags=_flags(pd.concat([one.rows, one.foreign])),
        plots=plots(one),
        grids=[*grids(one), *several.own_grids(one)] if len(one.rows) else [],
    )


def _html(studies: Sequence[Study], sections: Sequence[Section], compared: Compared) -> str:
    loader = PackageLoader("lth_scale.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts = {name: Markup(loader.get_source(environment, name)[0]) for name in (explore.STYLE, *explore.SCRIPT)}
    return environment.get_template("page.html.j2").render(
        sections=sections,
        compared=compared,
        replaced=explore.REPLACED,
        css=parts[explore.STYLE],
        script=Markup("\n").join(parts[name] for name in explore.SCRIPT),
        data=explore.payload(studies),
    )


def _write_figures(folder: Path, sections: Sequence[Section], compared: Compared) -> None:
    named = [(f"{one.slug}_" * (len(sections) > 1) + plot.slug, plot) for one in sections for plot in one.plots]
    for name, plot in [*named, *((plot.slug, plot) for plot in compared.plots)]:
        drawn = plot.wide
        files.write_bytes(folder / f"{name}.svg", svg_bytes(drawn))
        files.write_bytes(folder / f"{name}.pdf", pdf_bytes(drawn))


def write_report(runs: Sequence[Path | RunResults], out: Path) -> Path:
    """Write report.html, figures/*.svg and *.pdf, results.csv, curves.csv, table.tex into ``out``; returns the page.

    Works on unfinished runs and says what is missing. Raises UserError when a folder is no run, or for a damaged file.
    """
    results = read_runs(runs)
    studies = [Study.whole(run) for run in results]
    sections = [section(one) for one in studies]
    compared = several.compared(studies)
    files.write_text(out / "results.csv", tidy(results).to_csv(index=False, lineterminator="\n"))
    files.write_text(out / "curves.csv", curves(results).to_csv(index=False, lineterminator="\n"))
    files.write_text(out / "table.tex", latex(studies))
    for name, frame in several.tables(studies, compared).items():
        files.write_text(out / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    _write_figures(out / "figures", sections, compared)
    files.write_text(out / "report.html", _html(studies, sections, compared))
    return out / "report.html"


def picture(run: Path | RunResults, path: Path) -> list[Path]:
    """Accuracy against density as ``path`` with .png and with .svg; returns both."""
    results = read_run(run)
    one = Study.of(results, curves([]))
    drawn = draw(figures.accuracy, one, Size(7.0, 4.0))
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    files.write_bytes(png, png_bytes(drawn))
    files.write_bytes(svg, svg_bytes(drawn))
    return [png, svg]
