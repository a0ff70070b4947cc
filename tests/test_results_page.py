"""docs/results.md is what the committed numbers say, and the committed numbers are what the report says of a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from synthetic import config, write_run

from lth_scale import files
from lth_scale.config import Prune
from lth_scale.report import read_run, summary, tidy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import archive
import make_results
import result_pages
from paper_claims import claims_table

ROOT = Path(__file__).resolve().parent.parent
SMALL = config(rounds=3, seeds=range(3))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    make_results.build(ROOT / "results", docs)
    return docs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.md", "benchmarks.md"])
def test_the_pages_are_current(built: Path, name: str) -> None:
    assert (built / name).read_text() == (ROOT / "docs" / name).read_text(), "run tools/make_results.py build"


def figures(docs: Path) -> dict[str, bytes]:
    return {str(path.relative_to(docs)): path.read_bytes() for path in sorted(docs.rglob("*.svg"))}


@pytest.mark.slow
def test_the_figures_are_current(built: Path) -> None:
    mine, committed = figures(built), figures(ROOT / "docs")
    assert mine.keys() == committed.keys()
    if matplotlib.__version__ == (ROOT / "results" / "matplotlib.txt").read_text().strip():
        assert [name for name in mine if mine[name] != committed[name]] == []


def test_every_figure_is_shown_and_every_link_leads_somewhere() -> None:
    for page in ROOT.glob("docs/*.md"):
        links = pd.Series(page.read_text()).str.findall(r"\]\(([^)#:]+)\)").iloc[0]
        assert [link for link in links if not (page.parent / link).exists()] == []
    text = (ROOT / "docs" / "results.md").read_text()
    assert [p.name for p in (ROOT / "docs" / "figures").glob("*.svg") if f"figures/{p.name}" not in text] == []


def note(run: Path) -> Path:
    """The synthetic run lacks what the program notes when it makes a run."""
    versions = {"python": "3.11", "torch": "2.14", "threads": 1}
    files.write_json(run / "provenance.json", {"data": "0" * 64, "host": "a-host", **versions})
    return run


@pytest.mark.parametrize("thirds", [False, True])
def test_an_archive_loses_no_number(tmp_path: Path, thirds: bool) -> None:
    run = note(write_run(tmp_path / "run", SMALL, thirds))
    one = archive.read(archive.collect(run, tmp_path / "results" / "name", "2-core x86-64"))
    original = read_run(run, "name")
    pd.testing.assert_frame_equal(
        summary(one.run), summary(original), check_exact=True, check_dtype=False, check_like=True
    )
    order = ["replicate", "arm", "round", "split", "moment", "metric"]
    tables = [tidy([r]).sort_values(order).reset_index(drop=True) for r in (one.run, original)]
    pd.testing.assert_frame_equal(*tables, check_exact=True, check_dtype=False)


def test_an_archive_names_neither_host_nor_place(tmp_path: Path) -> None:
    settings = replace(SMALL, data=replace(SMALL.data, dir=str(tmp_path / "somewhere")))
    archive.collect(note(write_run(tmp_path / "run", settings)), tmp_path / "name", "2-core x86-64")
    text = "".join(path.read_text() for path in (tmp_path / "name").iterdir())
    assert "a-host" not in text and "somewhere" not in text and str(tmp_path) not in text


def test_the_page_works_with_nothing_done(tmp_path: Path) -> None:
    assert result_pages.page(tmp_path).count("Not run yet") == 3


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    planned = config(rounds=4, seeds=range(3))
    run = note(write_run(tmp_path / "run", planned))
    (run / "seed_2" / "reinit" / "round_03" / "result.json").unlink()
    archive.collect(run, tmp_path / "results" / result_pages.DIGITS, "2-core")
    text = result_pages.page(tmp_path / "results")
    assert "38 of the 39 rounds that the config plans are finished; not trained: reinit: round 3 of seed 2." in text
    assert "(n = 2)" in text


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True])
def test_the_page_compares_rewind_points(tmp_path: Path, lost: bool) -> None:
    """The same run twice decides nothing; with the first one's tickets made bad, the rewind point does."""
    for name in ("fashion_mnist_a_k0", "fashion_mnist_a_k"):
        run = note(write_run(tmp_path / name, SMALL))
        for path in run.glob("seed_*/ticket/round_03/result.json") if lost and name.endswith("k0") else ():
            document = files.read_json(path)
            document["end"]["test"]["accuracy"] -= 0.05
            files.write_json(path, document)
        archive.collect(run, tmp_path / "results" / name, "2-core")
    text = result_pages.page(tmp_path / "results")
    assert ("The rewind point decides at 51 %:" in text) == lost
    assert ("The rewind point decides at no density of 20 % or above" in text) != lost
    assert "figures/fashion_mnist_a.svg" in text and "figures/fashion_mnist_a.svg" in result_pages.figures(
        tmp_path / "results"
    )


def test_hand_written_text_is_marked(tmp_path: Path) -> None:
    folder = archive.collect(note(write_run(tmp_path / "run", SMALL)), tmp_path / result_pages.DIGITS, "2-core")
    (folder / "notes.md").write_text("An opinion.\n")
    assert "**Interpretation (written by hand)**\n\nAn opinion." in result_pages.page(tmp_path)


def test_claims_are_our_means_with_paired_intervals(tmp_path: Path) -> None:
    """Against numbers worked out here, from result files whose early stopping is known."""
    run = note(write_run(tmp_path / "run", replace(config(rounds=7, seeds=range(2)), prune=Prune(rounds=7))))
    stops = {("ticket", 0): (400, 500), ("ticket", 7): (200, 300), ("reinit", 7): (500, 600)}
    for (arm, number), steps in stops.items():
        for seed, step in enumerate(steps):
            path = run / f"seed_{seed}" / arm / f"round_{number:02d}" / "result.json"
            document = files.read_json(path)
            document["early_stop"] |= {"step": step, "steps_trained": step, "reached": True}
            files.write_json(path, document)
    table = claims_table(read_run(run))
    assert "| 38 % earlier | 45 [-19, 109] % earlier (n = 2) |" in table
    assert "| 2.51 times faster | 2.25 [-0.93, 5.43] times (n = 2) |" in table
    assert "| +0.3 points | not run yet |" in table
