from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from math import log
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
from rich.console import Console

from lth_scale import files, report
from lth_scale.config import Reinit
from lth_scale.errors import UserError
from lth_scale.paths import RunPaths
from lth_scale.report import page as page_module
from lth_scale.report.compare import at_density, methods
from lth_scale.report.grids import Cell
from lth_scale.report.latex import latex
from lth_scale.report.ledger import chain
from lth_scale.report.matrices import methods as methods_grid
from lth_scale.report.study import Study
from lth_scale.report.style import NARROW, pdf_bytes, svg_bytes
from lth_scale.report.verdict import interval
from lth_scale.report.words import describe_keys, percent, ranges

FIGURES = {"accuracy", "accuracy_early_stop", "difference", "early_stop", "learning", "layer_density", "theta", "cost"}
SMALL = synthetic.config(rounds=3, seeds=range(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write_report([run], tmp_path_factory.mktemp("report"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "small", SMALL)


def section(root: Path) -> page_module.Section:
    return page_module.section(Study.whole(report.read_run(root)))


def edit(root: Path, seed: int, arm: str, number: int, **changes: Any) -> None:
    path = RunPaths(root).round(seed, arm, number).result
    files.write_json(path, files.read_json(path) | changes)


def accuracy(root: Path, seed: int, arm: str, number: int, value: float) -> None:
    path = RunPaths(root).round(seed, arm, number).result
    result = files.read_json(path)
    result["end"]["test"]["accuracy"] = value
    files.write_json(path, result)


def row(frame: pd.DataFrame, arm: str, number: int) -> pd.Series:
    return frame[(frame["arm"] == arm) & (frame["round"] == number)].iloc[0]


def test_summary_pairs_each_replicate_with_its_own_dense_round(small: Path) -> None:
    for seed, (dense, ticket, reinit) in enumerate([(0.9, 0.91, 0.88), (0.95, 0.94, 0.95), (0.97, 0.98, 0.93)]):
        for arm, number, value in (("ticket", 0, dense), ("ticket", 2, ticket), ("reinit", 2, reinit)):
            accuracy(small, seed, arm, number, value)
    frame = report.summary(report.read_run(small))
    ticket, control, dense_row = row(frame, "ticket", 2), row(frame, "reinit", 2), row(frame, "ticket", 0)
    expected = interval([1.0, -1.0, 1.0])
    assert ticket["test_accuracy"] == pytest.approx((91 + 94 + 98) / 3)
    assert (ticket["test_accuracy_min"], ticket["test_accuracy_max"]) == (91, 98)
    assert tuple(ticket[["difference", "difference_low", "difference_high"]]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    gain = interval([3.0, -1.0, 5.0])
    assert control["ticket_minus"] == pytest.approx(gain.mean)
    assert (control["ticket_minus_low"], control["ticket_verdict"]) == (pytest.approx(gain.low), "undecided")
    assert ticket["pairs"] == 3 and ticket["verdict"] == "undecided"
    assert pd.isna(dense_row["verdict"])  # a network is not compared with itself


def test_draws_are_averaged_within_their_replicate(tmp_path: Path) -> None:
    settings = replace(synthetic.config(rounds=1, seeds=range(2), arms=("ticket", "reinit")), reinit=Reinit(draws=3))
    root = synthetic.write_run(tmp_path / "draws", settings)
    for seed in range(2):
        accuracy(root, seed, "ticket", 0, 0.9)
        for folder, value in (("reinit", 0.80), ("reinit-1", 0.85), ("reinit-2", 0.90)):
            accuracy(root, seed, folder, 1, value + seed / 100)
    run = report.read_run(root)
    found = row(report.summary(run), "reinit", 1)
    assert run.arms == ["ticket", "reinit"] and not run.missing()
    assert (found["n"], found["pairs"]) == (2, 2)
    assert found["difference"] == pytest.approx(-4.5)
    assert found["difference_low"] == pytest.approx(interval([-5.0, -4.0]).low)


def test_lower_bounds_are_counted_and_shown(small: Path) -> None:
    path = RunPaths(small).round(1, "ticket", 2).result
    early = files.read_json(path)["early_stop"]
    edit(small, 1, "ticket", 2, early_stop=early | {"step": 600, "steps_trained": 600, "reached": False})
    frame = report.summary(report.read_run(small))
    assert row(frame, "ticket", 2)["early_stop_not_reached"] == 1
    assert row(frame, "ticket", 1)["early_stop_not_reached"] == 0
    (grid,) = [g for g in section(small).grids if g.title == "Early stopping"]
    mean = row(frame, "ticket", 2)["early_stop_step"]
    assert grid.rows[2][2] == Cell(f"≥ {mean:.0f}", "", "1 not reached")
    assert sum("≥" in cell.text for line in grid.rows for cell in line) == 2  # the step and the steps trained


def test_ledger_sums_the_chain_behind_a_result(small: Path) -> None:
    assert chain(0, "ticket", 2) == [(0, "ticket", 0), (0, "ticket", 1), (0, "ticket", 2)]
    assert chain(0, "random", 2) == [(0, "ticket", 0), (0, "ticket", 1), (0, "random", 2)]
    for seed in range(3):
        for number, steps in ((0, 600), (1, 500), (2, 400)):
            clock = {"start": 600 - steps, "end": 600, "steps": steps, "samples": 60 * steps, "steps_per_epoch": 20}
            edit(small, seed, "ticket", number, clock=clock)
        edit(small, seed, "random", 2, seconds={"train": 6, "evaluation": 1, "checkpoint": 0, "device": 7.0})
    frame = report.summary(report.read_run(small))
    ticket, control = row(frame, "ticket", 2), row(frame, "random", 2)
    assert (ticket["cumulative_steps"], ticket["cumulative_steps_x_dense"]) == (1500, 2.5)
    assert control["cumulative_steps"] == 600 + 500 + 600
    assert (control["cumulative_device_seconds"], control["cumulative_device_seconds_x_dense"]) == (12.0, 4.8)
    results = [r for r in report.read_run(small).results if r["seed"] == 0 and r["arm"] == "ticket" and r["round"] < 3]
    assert ticket["cumulative_flops_sparse"] == pytest.approx(sum(r["flops"]["sparse"] for r in results))
    assert ticket["cumulative_bytes"] == 3 * 210_000


def test_ledger_says_nothing_where_a_link_is_missing(small: Path) -> None:
    for seed in range(3):
        RunPaths(small).round(seed, "ticket", 1).result.unlink()
    frame = report.summary(report.read_run(small))
    assert pd.isna(row(frame, "ticket", 2)["cumulative_steps"])
    assert row(frame, "random", 1)["cumulative_steps"] == 1200


def test_thirds_replace_early_stopping_when_the_schedule_drops(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "drops", SMALL, thirds=True)
    frame = report.summary(report.read_run(root))
    assert {"third_1_verdict", "third_2_difference"} <= set(frame) and "early_stop_step" not in frame
    shown = section(root)
    titles = [grid.title for grid in shown.grids]
    assert "Verdicts after 1/3 of training" in titles and "Early stopping" not in titles
    assert {"accuracy_third_1", "accuracy_third_2"} <= {plot.slug for plot in shown.plots}
    assert "early_stop" not in {plot.slug for plot in shown.plots}


def test_a_third_before_the_rewind_point_is_not_taken_for_the_next(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "late", SMALL, thirds=True)
    for seed in range(3):
        thirds = files.read_json(RunPaths(root).round(seed, "ticket", 1).result)["thirds"]
        edit(root, seed, "ticket", 1, thirds=thirds[1:])
    found = row(report.summary(report.read_run(root)), "ticket", 1)
    assert pd.isna(found["third_1_test_accuracy"]) and found["third_1_verdict"] == "no verdict"
    assert found["third_2_pairs"] == 3


def test_page_states_the_result(run: Path, page: Path) -> None:
    headline = report.headline(run)
    assert re.fullmatch(
        r"Tickets match the dense network down to \d\.\d % of the weights \(n = 5, tolerance 0\.5 points[^)]*\); "
        r"reinitialised controls stop matching at \d+ %, random masks at \d+ %\.",
        headline,
    )
    frame = report.summary(report.read_run(run))
    lost = frame[(frame["arm"] == "reinit") & (frame["verdict"] == "not matching")]["density"].max()
    assert f"reinitialised controls stop matching at {percent(lost)}" in headline
    assert f'<h1 class="headline">{headline}</h1>' in page.read_text()


class References(HTMLParser):
    """Everything that a page would fetch, and whether its ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.outside.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")


def test_page_is_self_contained_and_small(page: Path) -> None:
    text = page.read_text()
    reader = References()
    reader.feed(text)
    assert reader.outside == []
    assert "@import" not in text and "url(http" not in text and "default-src 'none'" in text  # nothing may be fetched
    assert len(reader.ids) == len(set(reader.ids))
    text = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(reader.ids)
    assert page.stat().st_size < 5_000_000
    assert text.count('<figure id="digits-') == len(FIGURES)


def test_files_beside_the_page(page: Path) -> None:
    names = {path.name for path in (page.parent / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "pdf")}
    results, curves = (pd.read_csv(page.parent / name) for name in ("results.csv", "curves.csv"))
    assert list(results) == ["run", "replicate", "arm", "round", "density", "split", "moment", "metric", "value"]
    assert list(curves) == ["run", "replicate", "arm", "round", "step", "split", "loss", "accuracy", "samples"]
    assert len(curves) == 5 * (17 + 16 + 16) * 61 * 3
    end = results[(results["moment"] == "end") & (results["split"] == "test") & (results["metric"] == "accuracy")]
    assert len(end) == 5 * (17 + 16 + 16)
    table = (page.parent / "table.tex").read_text()
    assert table.count(r"\toprule") == 1 and table.count(r" \\") == 18
    assert r"Weights left (\%) & ticket & reinit & random \\" in table


def test_only_the_attempt_that_counts_is_read(small: Path) -> None:
    paths = RunPaths(small).round(0, "ticket", 1)
    files.write_text(paths.metrics(2), "step,split,loss,accuracy,samples\n600,test,0.5,0.25,4\n")
    edit(small, 0, "ticket", 1, attempt=2)
    curves = report.curves([report.read_run(small)])
    mine = curves[(curves["replicate"] == 0) & (curves["arm"] == "ticket") & (curves["round"] == 1)]
    assert mine[["step", "split", "accuracy"]].to_numpy().tolist() == [[600, "test", 0.25]]


def everything(root: Path, out: Path) -> dict[str, bytes]:
    """What docs commit of a run: figures, tables and the README's picture."""
    one = Study.whole(report.read_run(root))
    found = {f"{plot.slug}.svg": svg_bytes(plot.wide) for plot in page_module.plots(one)}
    found |= {f"{plot.slug}.pdf": pdf_bytes(plot.wide) for plot in page_module.plots(one)[:2]}
    found |= {path.name: path.read_bytes() for path in report.picture(root, out / "readme.png")}
    return found | {"results.csv": report.tidy([one.run]).to_csv().encode(), "table.tex": latex([one]).encode()}


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    first, second = everything(small, tmp_path / "a"), everything(small, tmp_path / "b")
    assert len(first) == len(FIGURES) + 2 + 2 + 2
    assert first == second


@pytest.mark.slow
def test_an_unfinished_run_says_what_is_missing(small: Path) -> None:
    for seed in (1, 2):
        shutil.rmtree(small / f"seed_{seed}" / "random")
    RunPaths(small).round(0, "reinit", 3).result.unlink()  # its attempt is there: running, or interrupted
    shutil.rmtree(small / "seed_0" / "rewind")
    shown = section(small)
    assert shown.progress == "23 of 30 planned rounds are finished."
    assert shown.missing == ["random: rounds 1-3 of seeds 1-2"]
    assert shown.started == ["reinit: round 3 of seed 0"]
    html = report.write_report([small], small / "out").read_text()
    assert "missing: random: rounds 1-3 of seeds 1-2" in html
    assert "running or interrupted: reinit: round 3 of seed 0" in html
    frame = report.summary(report.read_run(small))
    assert row(frame, "random", 1)["verdict"] == "no verdict" and row(frame, "reinit", 3)["pairs"] == 2


@pytest.mark.parametrize(
    ("keep", "headline"),
    [
        ("nothing", "No round is finished yet."),
        ("seed_*/ticket/round_00", "Only the dense network is trained so far, to .* % test accuracy."),
        ("seed_0/*/*", "No verdict from one replicate: at 51 % of the weights the ticket reaches .* %."),
        ("seed_*/random/*", "No dense round is finished yet, so there is nothing to compare with."),
        ("seed_*/ticket/round_02", "No verdict without dense rounds: .*"),
    ],
)
def test_any_part_of_a_run_can_be_reported(small: Path, keep: str, headline: str) -> None:
    kept = set(small.glob(f"{keep}/result.json"))
    for path in RunPaths(small).results():
        if path not in kept:
            path.unlink()
    assert re.fullmatch(headline, report.headline(small))
    shown = section(small)
    assert "planned rounds are finished" in shown.progress
    for plot in shown.plots:
        plot.drawing(NARROW)
    Console(file=io.StringIO()).print(report.terminal_table(small))
    report.picture(small, small / "out" / "picture.png")


@pytest.mark.slow
def test_several_runs_are_compared_at_equal_density(small: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "digits", synthetic.config(rounds=2, seeds=range(2), arms=("ticket",)))
    page = report.write_report([other, small], tmp_path / "both")
    html = page.read_text()
    assert "2 runs compared" in html and "Methods at equal density" in html
    assert (page.parent / "figures" / "comparison.svg").exists()
    assert (page.parent / "figures" / "digits_accuracy.svg").exists()
    assert set(pd.read_csv(page.parent / "results.csv")["run"]) == {"digits", "small"}
    assert (page.parent / "table.tex").read_text().count(r"\toprule") == 2


def test_interpolation_is_linear_in_log_density_and_marked(small: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame({"density": [1.0, 0.64, 0.16], "test_accuracy": [98.0, 97.0, 95.0]})
    between = at_density(rows, 0.32)
    assert between and not between.measured
    assert between.value == pytest.approx(95 + 2 * log(0.32 / 0.16) / log(0.64 / 0.16)) == 96.0
    measured = at_density(rows, 0.6401)
    assert measured and measured.measured and measured.value == 97.0
    assert at_density(rows, 0.1) is None
    other = tmp_path / "other"
    shutil.copytree(small, other)
    for seed in range(3):
        RunPaths(other).round(seed, "ticket", 2).result.unlink()
    grid = methods_grid(methods([Study.whole(one) for one in report.read_runs([small, other])]))
    assert [label for label, _, _ in grid.groups] == ["small", "other"]
    marked = [cell for line in grid.rows for cell in line if cell.kind == "interpolated"]
    (line,) = [line for line in grid.rows if line[:2] == [Cell("64.00"), Cell("ticket")]]
    assert marked == line[5:7] and all(cell.text.startswith("≈ ") for cell in marked)


def test_runs_of_one_name_are_told_apart(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "again" / "small")
    names = [run.name for run in report.read_runs([small, tmp_path / "again" / "small"])]
    assert names == [f"{tmp_path.name}/small", "again/small"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "seed": 0}'])
def test_a_damaged_result_is_named(small: Path, damage: str) -> None:
    path = RunPaths(small).round(1, "random", 2).result
    path.write_text(damage)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is damaged"):
        report.write_report([small], small / "out")
    assert not (small / "out").exists()


@pytest.mark.parametrize("damage", [None, "", "step,loss\n1,2\n"])
def test_a_damaged_curve_is_named(small: Path, damage: str | None) -> None:
    path = RunPaths(small).round(1, "random", 2).metrics(1)
    path.unlink()
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(UserError, match=re.escape(str(path))):
        report.write_report([small], small / "out")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} is not a run folder"):
        report.headline(tmp_path)
    with pytest.raises(UserError, match="at least one run folder"):
        report.write_report([], tmp_path)


def test_flagged_rounds_are_shown(small: Path) -> None:
    edit(small, 1, "ticket", 3, flags=["empty: fc2.weight", "disconnected"])
    assert section(small).flags == ["ticket round 3 (51 %): disconnected; empty: fc2.weight"]


def test_a_run_that_diverged_is_reported(small: Path) -> None:
    for seed in range(3):
        path = RunPaths(small).round(seed, "random", 3).result
        text = json.dumps(files.read_json(path))
        path.write_text(re.sub(r'"loss": [0-9.]+', '"loss": null', text))
        metrics = RunPaths(small).round(seed, "random", 3).metrics(1)
        lines = [line.split(",") for line in metrics.read_text().splitlines()]
        metrics.write_text("".join(",".join([s, p, "nan" if s != "step" else q, *r]) + "\n" for s, p, q, *r in lines))
    for plot in section(small).plots:
        plot.drawing(NARROW)
    results = report.tidy([report.read_run(small)])
    assert results[results["metric"] == "loss"]["value"].isna().sum() == 3 * 2 * 3


def test_terminal_table_fits_a_terminal(run: Path) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(report.terminal_table(run))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"\d\d\.\d\d ±\d\.\d\d", text)) == 17 + 16 + 16
    assert "…" not in text and "✓ matching" in text and "tolerance 0.5 points" in text


@pytest.mark.parametrize(
    ("density", "text"),
    [(1.0, "100 %"), (0.4096, "41 %"), (0.0358, "3.6 %"), (0.01, "1.0 %"), (0.0012, "0.12 %"), (0.0996, "10 %")],
)
def test_percent(density: float, text: str) -> None:
    assert percent(density) == text


def test_ranges_and_groups() -> None:
    assert ranges([5, 3, 4, 9]) == "3-5, 9"
    keys = [(seed, "random", number) for seed in (0, 1, 4) for number in (1, 2)]
    assert describe_keys([*keys, (2, "ticket", 7)]) == [
        "random: rounds 1-2 of seeds 0-1, 4",
        "ticket: round 7 of seed 2",
    ]
