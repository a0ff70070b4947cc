"""Carried tickets in reports: which numbers stand in a cell, and where they do not stand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from matplotlib.figure import Figure
from rich.console import Console

from lth_scale import files, report
from lth_scale.config import Data, Transfer
from lth_scale.paths import RunPaths
from lth_scale.report import figures, transfer, words
from lth_scale.report.heatmap import OWN, heatmap, panels
from lth_scale.report.latex import latex
from lth_scale.report.ledger import chain
from lth_scale.report.page import section
from lth_scale.report.reading import read_run, read_runs
from lth_scale.report.study import Study
from lth_scale.report.style import NARROW, WIDE, Size, draw
from lth_scale.report.verdict import interval

ROLES = ("transfer", "transfer_reinit", "transfer_random", "transfer_dense")
SOURCES = {"digits": "digits.0784d74c", "mnist": "mnist.1a2b3c4d", "fashion_mnist": "fashion_mnist.99aa88bb"}


def write(root: Path, name: str, sources: tuple[str, ...], arms: tuple[str, ...] = (), seeds: int = 3) -> Path:
    """A run on a data set that trains, in rounds 1 and 3, what others left."""
    made = synthetic.config(rounds=3, seeds=range(seeds), arms=("ticket", *arms, *ROLES))
    carried = Transfer(layers="body", sources=tuple(f"{label}=/gone/{label}" for label in sources), rounds=(1, 3))
    return synthetic.write_run(root, replace(made, data=Data(name=name), transfer=carried))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("matrix")
    others = {name: tuple(label for source, label in SOURCES.items() if source != name) for name in SOURCES}
    return [write(folder / f"to_{name}", name, sources) for name, sources in others.items()]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write(tmp_path / "to_digits", "digits", (SOURCES["mnist"],))


def put(root: Path, arm: str, number: int, accuracies: list[float], density: float | None = None) -> None:
    for seed, value in enumerate(accuracies):
        path = RunPaths(root).round(seed, arm, number).result
        result = files.read_json(path)
        result["end"]["test"]["accuracy"] = value
        files.write_json(path, result | ({} if density is None else {"density": density}))


def row(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (found,) = (r for _, r in frame.iterrows())
    return found


def test_a_cell_pairs_each_replicate_with_its_own_controls(one: Path) -> None:
    put(one, "ticket", 0, [0.90, 0.95, 0.97])
    put(one, f"transfer.{SOURCES['mnist']}", 3, [0.91, 0.94, 0.98])
    put(one, f"transfer_random.{SOURCES['mnist']}", 3, [0.80, 0.84, 0.86])
    put(one, "ticket", 3, [0.95, 0.95, 0.99])
    frame = transfer.matrix([read_run(one)])
    assert list(frame["arm"]) == list(transfer.ROLES) * 2
    carried, random, own = (row(frame, round=3, arm=arm) for arm in ("transfer", "transfer_random", "own"))
    against_dense, against_random, against_own = ([1, -1, 1], [11, 10, 12], [-4, -1, -1])
    for found, name, values in (
        (carried, "difference", against_dense),
        (random, "transfer_minus", against_random),
        (own, "transfer_minus", against_own),
    ):
        expected = interval([float(v) for v in values])
        numbers = tuple(found[[name, f"{name}_low", f"{name}_high"]])
        assert numbers == pytest.approx((expected.mean, expected.low, expected.high))
    assert (carried["verdict"], random["verdict"]) == ("undecided", "not matching")
    assert (random["transfer_verdict"], own["transfer_verdict"]) == ("better", "undecided")
    assert set(frame["layers"]) == {"body"} and carried["n"] == 3
    dense = row(frame, round=3, arm="dense")
    assert dense["test_accuracy"] == pytest.approx(94.0) and pd.isna(dense["verdict"])


def test_the_own_ticket_is_that_of_the_same_density(one: Path) -> None:
    """By rounds it would be round 3, whatever its density."""
    put(one, "ticket", 1, [0.5] * 3)
    put(one, "ticket", 3, [0.6] * 3)
    before = transfer.matrix([read_run(one)])
    assert row(before, round=3, arm="own")["test_accuracy"] == pytest.approx(60.0)
    put(one, f"transfer.{SOURCES['mnist']}", 3, [0.7] * 3, density=0.8)
    assert row(transfer.matrix([read_run(one)]), round=3, arm="own")["test_accuracy"] == pytest.approx(50.0)
    put(one, f"transfer.{SOURCES['mnist']}", 3, [0.7] * 3, density=0.7)
    after = transfer.matrix([read_run(one)])
    assert after[(after["round"] == 3) & (after["arm"] == "own")].empty


def test_own_tickets_treated_as_carried_ones_stand_in_for_tickets(tmp_path: Path) -> None:
    root = write(tmp_path / "run", "digits", (SOURCES["mnist"],), arms=("own",))
    put(root, "ticket", 3, [0.5] * 3)
    put(root, "own", 3, [0.6] * 3)
    assert row(transfer.matrix([read_run(root)]), round=3, arm="own")["test_accuracy"] == pytest.approx(60.0)


def test_carried_tickets_stay_out_of_the_ordinary_tables_and_figures(one: Path) -> None:
    run = read_run(one)
    assert any("." in arm for arm in run.arms), "the control: the run has such arms"
    assert run.local == ["ticket"]
    study = Study.of(run, report.curves([run]))
    assert study.drawn == ["ticket"] and set(study.rows["arm"]) == {"ticket"}
    assert latex([study]).count("&") == 2 * 3 - 1 and "transfer" not in latex([study]).replace("to_digits", "")
    lines = figures.accuracy(study, WIDE).axes[0].get_lines()
    alone = figures.accuracy(Study.of(replace(run, results=own(run)), report.curves([])), WIDE).axes[0].get_lines()
    assert len(lines) == len(alone)
    assert len(figures.learning(study, WIDE).axes) == 2  # one panel and the colour bar
    titles = [grid.title for grid in section(study).grids]
    assert "Transferred tickets" in titles and not [title for title in titles if "0784d74c" in title]
    assert set(study.foreign["arm"]) == set(run.arms) - {"ticket"}


def own(run: report.RunResults) -> tuple[object, ...]:
    return tuple(r for r in run.results if "." not in r["arm"])


def test_flags_of_carried_tickets_are_shown(one: Path) -> None:
    path = RunPaths(one).round(1, f"transfer.{SOURCES['mnist']}", 3).result
    files.write_json(path, files.read_json(path) | {"flags": ["diverged"]})
    assert section(Study.whole(read_run(one))).flags == ["transfer.mnist.1a2b3c4d round 3 (51 %): diverged"]


def test_a_carried_ticket_is_charged_its_own_round_alone() -> None:
    assert chain(0, "transfer.mnist.1a2b3c4d", 3) == [(0, "transfer.mnist.1a2b3c4d", 3)]
    assert len(chain(0, "own", 3)) == len(chain(0, "random", 3)) == 4


def test_the_sentence_counts_cells_and_controls(one: Path) -> None:
    label = SOURCES["mnist"]
    put(one, "ticket", 0, [0.95, 0.951, 0.952])
    put(one, f"transfer.{label}", 1, [0.95, 0.951, 0.952])
    put(one, f"transfer.{label}", 3, [0.90, 0.901, 0.902])
    for arm, value in ((f"transfer_reinit.{label}", 0.80), (f"transfer_random.{label}", 0.80), ("ticket", 0.97)):
        for number in (1, 3):
            put(one, arm, number, [value, value + 0.001, value + 0.002])
    put(one, f"transfer_dense.{label}", 1, [0.92, 0.921, 0.922])
    assert words.headline(one).endswith(
        "Of 2 transferred tickets, 1 matches the dense network, 1 does not (n = 3, tolerance 0.5 points); "
        "against the target's own ticket: worse in 2; against the source's mask reinitialised: better in 2; "
        "against random masks: better in 2; against the dense network from the source's theta_k: "
        "better in 1, worse in 1."
    )


def test_one_replicate_gives_no_verdict_and_no_tickets_no_sentence(tmp_path: Path) -> None:
    root = write(tmp_path / "run", "digits", (SOURCES["mnist"],), seeds=1)
    assert words.headline(root).endswith("No verdict on the transferred tickets from one replicate.")
    plain = synthetic.write_run(tmp_path / "plain", synthetic.config(rounds=1, seeds=range(2)))
    assert "transferred" not in words.headline(plain)
    assert transfer.matrix([read_run(plain)]).empty and list(transfer.matrix([])) == transfer.COLUMNS


def test_sources_are_told_apart(three: list[Path], tmp_path: Path) -> None:
    frame = transfer.matrix(read_runs(three))
    assert transfer.source_names(frame) == {label: name for name, label in SOURCES.items()}
    root = write(tmp_path / "run", "digits", (SOURCES["digits"], "mnist.00000000", SOURCES["mnist"]))
    named = transfer.source_names(transfer.matrix([read_run(root)]))
    assert all(label == name for label, name in named.items()) and len(named) == 3


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Data(name="mnist"), "mnist"),
        (Data(name="mnist", classes=(0, 1, 2, 5)), "mnist 0-2,5"),
        (Data(name="digits", shape=(1, 28, 28)), "digits 1x28x28"),
    ],
)
def test_a_target_is_its_data_its_classes_and_its_shape(data: Data, name: str) -> None:
    assert transfer.target(replace(synthetic.config(), data=data)) == name


def test_own_tickets_are_the_diagonal(three: list[Path]) -> None:
    runs = read_runs(three)
    frame = transfer.matrix(runs)
    shown = panels(frame)
    assert [round(density, 2) for density, _ in shown] == [0.8, 0.51]
    for _, cells in shown:
        assert set(cells) == {(source, target) for source in SOURCES for target in SOURCES}
        assert {place for place, found in cells.items() if found["arm"] == "own"} == {(n, n) for n in SOURCES}
    alone = panels(transfer.matrix(runs[:1]))[0][1]
    assert {place for place, found in alone.items() if found["arm"] == "own"} == {(OWN, "digits")}


def test_two_runs_on_one_target_have_columns_of_their_own(three: list[Path]) -> None:
    frame = transfer.matrix(read_runs(three[:1]))
    both = pd.concat([frame, frame.assign(run="again")])
    assert {target for _, target in panels(frame)[0][1]} == {"digits"}, "the control: one needs no name"
    shown = panels(both)[0][1]
    assert {target for _, target in shown} == {"digits to_digits", "digits again"} and len(shown) == 2 * 3


def texts(made: Figure) -> list[tuple[str, bool]]:
    """The numbers in cells, and whether each lies within its cell."""
    renderer = made.canvas.get_renderer()  # type: ignore[attr-defined]
    found = []
    for axes in made.axes[:-1]:
        for text in axes.texts:
            box = text.get_window_extent(renderer).transformed(axes.transData.inverted())
            x = text.get_position()[0]
            found.append((text.get_text(), abs(box.x0 - x) < 0.5 and abs(box.x1 - x) < 0.5))
    return found


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("targets", [1, 3])
def test_every_number_fits_its_cell(three: list[Path], size: Size, targets: int) -> None:
    frame = transfer.matrix(read_runs(three[:targets]))
    found = texts(draw(heatmap, frame, 0.5, size))
    assert len(found) == 2 * 3 * targets and all(fits for _, fits in found)
    assert all(text[0] in "+\N{MINUS SIGN}" and text[-1] in "✓✗?" for text, _ in found)


def test_a_missing_cell_is_a_dash(three: list[Path]) -> None:
    frame = transfer.matrix(read_runs(three))
    gone = frame[(frame["source"] != SOURCES["mnist"]) | (frame["target"] != "digits")]
    assert [text for text, _ in texts(draw(heatmap, gone, 0.5, WIDE))].count("\N{EN DASH}") == 2


@pytest.mark.slow
def test_the_report_of_several_targets_has_the_whole_matrix(three: list[Path], tmp_path: Path) -> None:
    page = report.write_report(three, tmp_path / "out")
    html, written = page.read_text(), pd.read_csv(page.parent / "transfer.csv")
    pd.testing.assert_frame_equal(written, transfer.matrix(read_runs(three)), check_dtype=False)
    assert len(written) == 3 * 2 * 2 * len(transfer.ROLES)
    assert 'id="compared-transfer"' in html and html.count("<summary>Transferred tickets</summary>") == 1 + 3
    assert {"transfer.svg", "to_mnist_transfer.svg"} <= {path.name for path in (page.parent / "figures").iterdir()}


@pytest.mark.slow
def test_a_run_without_carried_tickets_has_neither_table_nor_figure(tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "plain", synthetic.config(rounds=2, seeds=range(2)))
    page = report.write_report([root], tmp_path / "out")
    assert "Transferred tickets" not in page.read_text() and not (page.parent / "transfer.csv").exists()


def test_terminal_tables_fit_a_terminal(three: list[Path]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(report.terminal_table(three[0]))
    text = stream.getvalue()
    ordinary, _, carried = text.partition("tickets carried over to digits")
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "transfer" not in ordinary and "carried layers: body" in carried
    assert carried.count("±") == 2 * 2 * len(transfer.ROLES)
