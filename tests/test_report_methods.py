"""The table of methods: several runs at equal density, each with its ablations, measured or marked as interpolated."""

from __future__ import annotations

import io
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
from rich.console import Console

from lth_scale import files, report
from lth_scale.config import Config, Data, Prune
from lth_scale.paths import RunPaths
from lth_scale.report import several
from lth_scale.report.compare import COLUMNS, method_names, methods
from lth_scale.report.grids import Cell
from lth_scale.report.matrices import methods as grid_of
from lth_scale.report.reading import RunResults, read_runs
from lth_scale.report.study import Study

SMALL = synthetic.config(rounds=3, seeds=range(3))


def of(**prune: Any) -> Config:
    return replace(SMALL, prune=replace(SMALL.prune, **prune))


def named(*configs: Config) -> list[str]:
    runs = [RunResults(Path(f"/{i}"), f"run {i}", config, ()) for i, config in enumerate(configs)]
    return method_names(runs)


@pytest.mark.parametrize(
    ("configs", "names"),
    [
        ((of(), of(criterion="snip")), ["criterion=magnitude", "criterion=snip"]),
        ((of(), of(oneshot=True)), ["run 0", "oneshot"]),
        ((of(), of(criterion="snip", oneshot=True)), ["criterion=magnitude", "criterion=snip, oneshot"]),
        ((of(), replace(SMALL, data=Data(name="mnist"))), ["data=digits", "data=mnist"]),
        ((of(), replace(SMALL, rewind=replace(SMALL.rewind, at="5it"))), ["rewind=0", "rewind=5it"]),
        ((of(), of()), ["run 0", "run 1"]),
        ((of(), of(), of(oneshot=True)), ["run 0", "run 1", "run 2"]),
        ((of(), replace(SMALL, run=replace(SMALL.run, seeds=(7,)))), ["run 0", "run 1"]),
    ],
)
def test_a_method_is_named_by_what_differs(configs: tuple[Config, ...], names: list[str]) -> None:
    assert named(*configs) == names


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The second has no control reinit, and none of its replicates has finished round 2."""
    folder = tmp_path_factory.mktemp("methods")
    first = synthetic.write_run(folder / "magnitude", SMALL)
    other = replace(of(criterion="snip"), run=replace(SMALL.run, arms=("ticket", "random")))
    second = synthetic.write_run(folder / "snip", other)
    for seed in range(3):
        for arm in ("ticket", "random"):
            RunPaths(second).round(seed, arm, 2).result.unlink()
        path = RunPaths(second).round(seed, "ticket", 3).result
        result = files.read_json(path)
        result["end"]["test"]["accuracy"] = 0.9 + seed / 100
        files.write_json(path, result)
    return [first, second]


@pytest.fixture(scope="module")
def studies(two: list[Path]) -> list[Study]:
    return [Study.of(run, pd.DataFrame()) for run in read_runs(two)]


def test_ablations_stand_beside_their_method(studies: list[Study]) -> None:
    frame = methods(studies)
    assert list(frame) == COLUMNS
    there = frame[frame["density"] < 0.52].groupby("run", sort=False)["arm"].agg(list).to_dict()
    assert there == {"magnitude": ["ticket", "random", "reinit"], "snip": ["ticket", "random"]}
    for one in studies:
        rows = one.rows[one.rows["round"] == 3].set_index("arm")
        for _, found in frame[(frame["run"] == one.run.name) & (frame["density"] < 0.52)].iterrows():
            assert found["measured"]
            for column in ("test_accuracy", "test_accuracy_low", "difference", "difference_high", "verdict"):
                assert found[column] == rows.loc[found["arm"], column]


def test_what_is_interpolated_is_marked_and_has_no_verdict(studies: list[Study]) -> None:
    frame = methods(studies)
    between = frame[~frame["measured"].astype(bool)]
    assert set(zip(between["run"], between["arm"], strict=True)) == {("snip", "ticket"), ("snip", "random")}
    assert between["verdict"].isna().all() and between["test_accuracy_low"].isna().all()
    ticket = studies[1].arm("ticket").set_index("round")
    weight = log(0.64 / ticket.loc[3, "density"]) / log(ticket.loc[1, "density"] / ticket.loc[3, "density"])
    expected = ticket.loc[3, "test_accuracy"] * (1 - weight) + ticket.loc[1, "test_accuracy"] * weight
    assert between.iloc[0]["test_accuracy"] == pytest.approx(expected, abs=1e-3)
    lines = [line for line in grid_of(frame).rows if line[0] == Cell("64.00")]
    assert [cell.kind for cell in lines[0][5:]] == ["interpolated", "interpolated", "none"]
    assert lines[0][5].text.startswith("≈ ") and not lines[0][2].text.startswith("≈ ")


def test_the_terminal_has_a_column_a_method_and_a_line_an_arm(two: list[Path]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(report.terminal_methods(two))
    text = stream.getvalue()
    assert "criterion=magnitude" in text and "criterion=snip" in text and max(map(len, text.splitlines())) <= 80
    assert [line.split()[1:4:2] for line in text.splitlines() if line.startswith("│  51.")] == [
        ["51.20", "ticket"], ["51.20", "random"], ["51.20", "reinit"],
    ]  # fmt: skip
    assert text.count("≈ ") == 2 + 1  # two readings and the legend


def test_one_run_makes_no_table_of_methods(two: list[Path]) -> None:
    stream = io.StringIO()
    Console(file=stream).print(report.terminal_methods(two[:1]))
    assert stream.getvalue() == ""
    together = several.compared([Study.of(read_runs(two[:1])[0], pd.DataFrame())])
    assert together.grids == [] and together.plots == [] and together.methods.empty


def test_the_table_is_a_file_and_on_the_page(studies: list[Study]) -> None:
    together = several.compared(studies)
    assert together.grids[0].title == "Methods at equal density" and together.grids[0].open
    assert [label for label, _, _ in together.grids[0].groups] == ["criterion=magnitude", "criterion=snip"]
    pd.testing.assert_frame_equal(several.tables(studies, together)["methods"], methods(studies))


def test_densities_of_a_list_name_no_method() -> None:
    listed = [Prune(schedule="list", densities=d, criterion=c) for d, c in (((0.5,), "magnitude"), ((0.4,), "snip"))]
    assert named(*(replace(SMALL, prune=p) for p in listed)) == ["criterion=magnitude", "criterion=snip"]
