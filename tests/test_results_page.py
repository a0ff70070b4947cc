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
from lth_scale.config import Data, Prune, Rewind, Run, Transfer
from lth_scale.report import read_run, summary, tidy
from lth_scale.report.overlaps import between
from lth_scale.report.transfer import matrix

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


def blocks_of(run: Path) -> None:
    """Two blocks' worth of names for the tensors that the synthetic network has."""
    for path in run.glob("seed_*/ticket/round_*/result.json"):
        told = files.read_json(path)
        (first, second, *_) = told["tensors"].values()
        parts = {"blocks.0.attn.qkv.weight": first, "blocks.1.attn.qkv.weight": second}
        files.write_json(path, told | {"tensors": told["tensors"] | parts})


@pytest.mark.slow
def test_a_transformer_has_a_section_with_its_blocks(tmp_path: Path) -> None:
    """Its runs are no pair of the late-rewinding section, which looks for a setting."""
    for name, at in (("fashion_mnist_vit_k0", "0"), ("fashion_mnist_vit_k150", "150it")):
        run = note(write_run(tmp_path / name, replace(SMALL, rewind=Rewind(at=at))))
        blocks_of(run)
        archive.collect(run, tmp_path / "results" / name, "2-core")
    known = result_pages.archives(tmp_path / "results")
    assert result_pages.pairs(known) == {} and len(known["fashion_mnist_vit_k0"].blocks) == 2
    text = result_pages.page(tmp_path / "results")
    assert text.count("## A vision transformer") == 1 and "### Rewound to 150it" in text
    assert text.count("| block | attn.qkv |") == 2 and "The rewind point decides at no density" in text
    drawn = result_pages.figures(tmp_path / "results")
    assert "figures/fashion_mnist_vit.svg" in drawn and all(name in text for name in drawn)


TRANSFER = ("ticket", "transfer", "transfer_reinit", "transfer_random", "transfer_dense")
LABELS = {"digits": "digits.0784d74c", "mnist": "mnist.1a2b3c4d"}


@pytest.mark.slow
def test_carried_tickets_have_a_section_and_no_place(tmp_path: Path) -> None:
    for target, source in (("digits", "mnist"), ("mnist", "digits")):
        carried = Transfer(layers="body", sources=(f"{LABELS[source]}={tmp_path}/somewhere",), rounds=(1, 3))
        settings = replace(SMALL, data=Data(name=target), transfer=carried, run=Run(seeds=(0, 1), arms=TRANSFER))
        run = note(write_run(tmp_path / target, settings))
        folder = archive.collect(run, tmp_path / "results" / f"transfer_{target}", "2-core")
        pd.testing.assert_frame_equal(
            matrix([archive.read(folder).run]), matrix([read_run(run, folder.name)]), check_dtype=False
        )
        assert "somewhere" not in "".join(path.read_text() for path in folder.iterdir())
        assert (folder / "masks.csv").exists() and not archive.read(folder).run.missing()
    (folder / "notes.md").write_text("An opinion.\n")
    text, drawn = result_pages.page(tmp_path / "results"), result_pages.figures(tmp_path / "results")
    assert "| mnist | digits | body | 80.00 | " in text and "| digits | mnist | body | 51.20 | " in text
    name = f"figures/transfer_{SMALL.model.name}.svg"
    assert list(drawn) == [name] and f"]({name})" in text
    assert "An opinion." in text and "How alike the masks of `transfer_mnist` are" in text


@pytest.mark.slow
def test_methods_have_a_section(tmp_path: Path) -> None:
    for name, criterion in (("methods_magnitude", "magnitude"), ("methods_snip", "snip")):
        run = note(write_run(tmp_path / name, replace(SMALL, prune=replace(SMALL.prune, criterion=criterion))))
        if criterion == "snip":
            for path in run.glob("seed_*/ticket/round_02/result.json"):
                path.unlink()
        archive.collect(run, tmp_path / "results" / name, "2-core")
    report = [tmp_path / "methods_magnitude", tmp_path / "methods_snip"]
    make_results.collect(masks_csv(report, tmp_path / "masks.csv"), "methods_masks", tmp_path / "results", "2-core")
    text, drawn = result_pages.page(tmp_path / "results"), result_pages.figures(tmp_path / "results")
    assert "| weights left % | arm | criterion=magnitude | criterion=snip |" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| 64.00 | ")]
    assert [line[1] for line in lines] == ["ticket", "random", "reinit"]
    assert lines[0][3].startswith("≈ ") and "≈" not in lines[0][2] + lines[1][3]
    assert list(drawn) == ["figures/methods.svg"] and "](figures/methods.svg)" in text
    assert "| methods_magnitude, methods_snip | all | 51.20 | 1.000 |" in text


def masks_csv(runs: list[Path], path: Path) -> Path:
    """As `lth report RUN RUN` writes it."""
    path.write_text(between([read_run(run) for run in runs]).to_csv(index=False))
    return path


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
