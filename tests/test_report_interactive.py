"""The interactive part of the report in a real browser: pointed at, tapped, walked through, and without scripts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pandas as pd
import pytest
import synthetic
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from lth_scale import files, report
from lth_scale.config import Data, Transfer
from lth_scale.paths import RunPaths
from lth_scale.report import transfer
from lth_scale.report.explore import REPLACED
from lth_scale.report.numbers import MARKS, signed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
WIDTHS = (1280, 390)
LABELS = {"digits": "digits.0784d74c", "mnist": "mnist.1a2b3c4d"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Browser) -> Open:
    """Opens a page from disk; whatever it says on the console, or asks for beside itself, fails the test."""

    @contextmanager
    def opened(path: Path, address: str = "", width: int = 1280, **options: Any) -> Iterator[Page]:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page, said, asked = context.new_page(), list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}{address}")
        yield page
        context.close()
        assert said == []
        assert [url for url in asked if url != f"file://{path}" and not url.startswith("data:")] == []

    return opened


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 5 replicates, 20 rounds and 3 arms."""
    root = synthetic.write_run(tmp_path_factory.mktemp("runs") / "large", synthetic.config(rounds=20))
    return report.write_report([root], root)


def carrying(root: Path, name: str, source: str) -> Path:
    made = synthetic.config(rounds=2, seeds=range(2), arms=("ticket", "transfer", "transfer_random"))
    carried = Transfer(layers="body", sources=(f"{source}=/gone/{source}",), rounds=(1, 2))
    return synthetic.write_run(root, replace(made, data=Data(name=name), transfer=carried))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs on two data sets that carry each other's tickets."""
    folder = tmp_path_factory.mktemp("pair")
    others = {"digits": LABELS["mnist"], "mnist": LABELS["digits"]}
    return [carrying(folder / f"to_{name}", name, source) for name, source in others.items()]


@pytest.fixture(scope="module")
def matrix(pair: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write_report(pair, tmp_path_factory.mktemp("matrix"))


def accuracy(page_file: Path, seed: int, arm: str, number: int) -> float:
    """In percent, from results.csv."""
    rows = pd.read_csv(page_file.parent / "results.csv")
    rows = rows[(rows["split"] == "test") & (rows["metric"] == "accuracy") & (rows["moment"] == "end")]
    (value,) = rows[(rows["replicate"] == seed) & (rows["arm"] == arm) & (rows["round"] == number)]["value"]
    return 100 * float(value)


def mark(page: Page, arm: str, number: int, seed: int | str) -> Locator:
    return page.locator(f'#chart [data-arm="{arm}"][data-round="{number}"][data-seed="{seed}"]')


def shown(page: Page) -> float:
    """The accuracy that the tip gives."""
    return float(re.search(r"(?:test accuracy|mean) ([\d.]+) %", page.locator("#tip").inner_text())[1])  # type: ignore[index]


def open_rounds(page: Page) -> None:
    page.locator("#rounds summary").click()
    page.locator("#rounds tbody tr").first.wait_for()


def overflow(page: Page) -> int:
    return int(page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"))


def slugs(page: Page) -> set[str]:
    """The figures for print that are to be seen."""
    return {
        str(f.get_attribute("id")).split("-")[1] for f in page.locator("figure[id^=large-]").all() if f.is_visible()
    }


def test_it_is_below_five_megabytes(large: Path) -> None:
    assert large.stat().st_size < 5_000_000
    assert large.stat().st_size < 1_500_000  # it is 0.9 MB: of more, something is there twice


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_all_is_there_and_fits(opened: Open, large: Path, width: int, scheme: str) -> None:
    with opened(large, width=width, color_scheme=scheme) as page:
        assert overflow(page) <= 0
        assert page.locator("h1").inner_text().startswith("Tickets match")
        assert page.locator("#chips input[name=arm]").count() == 3
        assert page.locator("#chips input[name=seed]").count() == 5
        assert page.locator("#chart .told").count() > 5 * 21 + 21  # those of the tickets and some of the controls
        assert page.locator("#layers tbody tr").count() == len(synthetic.TENSORS)
        assert page.locator("details[open] tbody tr").count() == 21
        assert not page.locator("#transfer-figure").is_visible()
        assert slugs(page) == {"learning", "theta", "cost"}
        letters = page.locator("#chart text, .plot:visible svg:visible text").all()[::9]
        assert min(letter.bounding_box()["height"] for letter in letters) >= 8  # type: ignore[index]


def test_without_scripts_every_figure_is_there(opened: Open, large: Path) -> None:
    with opened(large, java_script_enabled=False) as page:
        assert not page.locator("#explore").is_visible()
        printed = {"accuracy", "accuracy_early_stop", "difference", "early_stop", "layer_density"}
        assert printed <= REPLACED
        assert slugs(page) == {"learning", "theta", "cost"} | printed


def test_an_arm_goes_from_chart_and_tables(opened: Open, large: Path) -> None:
    with opened(large) as page:
        open_rounds(page)
        places = {
            "chart": page.locator("#chart [data-arm=reinit]"),
            "rounds": page.locator("#rounds tbody tr").filter(has_text="reinit"),
            "columns": page.locator("th.group[data-arm=reinit]:visible"),
        }
        cells = page.locator("details.grid[open] table.rounds tbody tr:first-child td:visible")
        assert {name: bool(found.count()) for name, found in places.items()} == dict.fromkeys(places, True)
        assert page.locator("#rounds tbody tr").count() == 5 * (21 + 20 + 20) and cells.count() == 2 + 9
        page.locator("label.chip", has_text="reinit").click()
        assert {name: found.count() for name, found in places.items()} == dict.fromkeys(places, 0)
        assert page.locator("#rounds tbody tr").count() == 5 * (21 + 20) and cells.count() == 2 + 6
        address = page.evaluate("location.hash")
    assert parse_qs(address[1:]) == {"arm": ["ticket", "random"]}
    with opened(large, address) as page:
        assert page.locator("#chart [data-arm=reinit]").count() == 0
        assert page.locator("#chart [data-arm=random]").count() > 0
        page.locator("#reset").click()
        assert page.locator("#chart [data-arm=reinit]").count() > 0
        assert page.evaluate("location.hash") == ""


def test_a_mean_is_of_the_seeds_that_are_chosen(opened: Open, large: Path) -> None:
    every = [accuracy(large, seed, "ticket", 16) for seed in range(5)]
    with opened(large) as page:
        mark(page, "ticket", 16, "mean").hover(force=True)
        assert shown(page) == pytest.approx(sum(every) / 5, abs=6e-5)
        assert "not matching" in page.locator("#tip").inner_text()
        for seed in (0, 2, 3):
            page.locator(f"#chips input[name=seed][value='{seed}']").dispatch_event("click")
        mark(page, "ticket", 16, "mean").hover(force=True)
        assert shown(page) == pytest.approx((every[1] + every[4]) / 2, abs=6e-5)
        assert "matching" not in page.locator("#tip").inner_text()  # that is said of all seeds alone
        assert parse_qs(page.evaluate("location.hash.slice(1)")) == {"seed": ["1", "4"]}


@pytest.mark.parametrize(("arm", "number", "seed"), [("ticket", 0, 2), ("ticket", 19, 4), ("random", 7, 1)])
def test_pointing_tells_the_value_of_results_csv(opened: Open, large: Path, arm: str, number: int, seed: int) -> None:
    with opened(large, f"#seed={seed}") as page:  # alone, so that no other mark lies above it
        assert not page.locator("#tip").is_visible()
        mark(page, arm, number, seed).hover(force=True)
        assert f"{arm}, seed {seed}, round {number}" in page.locator("#tip").inner_text()
        assert shown(page) == pytest.approx(accuracy(large, seed, arm, number), abs=1e-9)
        page.mouse.move(5, 5)
        assert not page.locator("#tip").is_visible()


def test_tapping_and_walking_tell_the_same(opened: Open, large: Path) -> None:
    with opened(large, "#seed=3", width=390, has_touch=True) as page:
        mark(page, "ticket", 18, 3).tap(force=True)
        assert shown(page) == pytest.approx(accuracy(large, 3, "ticket", 18), abs=1e-9)
        page.locator("h1").tap()
        assert not page.locator("#tip").is_visible()
    with opened(large, "#seed=3") as page:
        page.locator("select[name=axis]").focus()
        for key in ("Tab", "ArrowRight", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        assert "reinit, seed 3, round 2" in page.locator("#tip").inner_text()
        assert shown(page) == pytest.approx(accuracy(large, 3, "reinit", 2), abs=1e-9)
        page.keyboard.press("Escape")
        assert not page.locator("#tip").is_visible()


def test_other_measures(opened: Open, large: Path) -> None:
    with opened(large, "#show=difference-end") as page:
        names = page.locator("#chart .name").all_text_contents()
        assert names == ["weights left (%)", "difference to dense (points)"]
        assert page.locator("#chart .tolerance").count() == 1
        assert page.locator('#chart [data-round="0"]').count() == 0  # no network is compared with itself
        page.locator("select[name=show]").select_option("stop")
        assert page.locator("#chart .name").last.inner_html() == "early-stopping iteration"
        assert page.locator('#chart [data-round="0"]').count() == 6
        assert page.evaluate("location.hash") == "#show=stop"


def test_layers_tell_what_they_keep(opened: Open, large: Path) -> None:
    with opened(large) as page:
        page.locator("select[name=layer-arm]").select_option("reinit")
        page.locator("select[name=layer-seed]").select_option("4")
        row = page.locator("#layers tbody tr").filter(has_text="fc2.weight")
        row.locator("td").nth(4).hover()  # of rounds 1 to 20
        tip = page.locator("#tip").inner_text()
    found = files.read_json(RunPaths(large.parent).round(4, "reinit", 5).result)["tensors"]["fc2.weight"]
    assert "fc2.weight, round 5" in tip and "reinit, seed 4" in tip
    assert f"{found['kept']:,} of {found['numel']:,} weights left" in tip


@pytest.mark.parametrize("width", WIDTHS)
def test_a_data_set_goes_from_all_of_the_page(opened: Open, matrix: Path, width: int) -> None:
    with opened(matrix, width=width) as page:
        places = {
            "chart": page.locator('#chart [aria-label^="to_mnist"]'),
            "sections": page.locator("section#to_mnist:visible"),
            "heat map": page.locator("#transfer thead th", has_text=re.compile("^mnist$")),
        }
        assert {name: bool(found.count()) for name, found in places.items()} == dict.fromkeys(places, True)
        assert overflow(page) <= 0
        page.locator("#chips input[name=data][value=mnist]").dispatch_event("click")
        assert {name: found.count() for name, found in places.items()} == dict.fromkeys(places, 0)
        assert page.locator('#chart [aria-label^="to_digits"]').count() > 0
        assert page.locator("section#to_digits").is_visible()
        assert page.locator("#transfer thead th", has_text="digits").count() == 2


def test_data_sets_are_compared_by_differences(opened: Open, matrix: Path) -> None:
    with opened(matrix) as page:
        assert page.locator("select[name=show]").input_value() == "difference-end"
        arms = page.locator("#chart .told").evaluate_all("all => [...new Set(all.map(one => one.dataset.arm))]")
        assert arms == ["ticket"]  # carried ones are there to be chosen
        name = f"transfer.{LABELS['mnist']}"
        page.locator(f'#chips input[value="{name}"]').dispatch_event("click")
        assert page.locator(f'#chart [data-arm="{name}"]').count() > 0


def test_the_heat_map_has_the_cells_of_the_table(opened: Open, matrix: Path, pair: list[Path]) -> None:
    frame = transfer.matrix(report.reading.read_runs(pair))
    carried = frame[(frame["arm"] == "transfer") & (frame["target"] == "mnist")]
    texts = [f"{signed(row['difference'])} {MARKS[row['verdict']][0]}" for _, row in carried.iterrows()]
    with opened(matrix) as page:
        cells = page.locator('#transfer td[aria-label^="digits to mnist"]')
        assert cells.all_inner_texts() == texts and len(texts) == 2
        assert page.locator("#transfer .told").count() == 2 * 4  # with the own tickets on the diagonal
        cells.first.hover()
        tip = page.locator("#tip").inner_text()
        first = carried.iloc[0]
        assert f"test accuracy {first['test_accuracy']:.2f}" in tip and first["verdict"] in tip
        assert "random mask" in tip and "own ticket" in tip
        page.locator("select[name=density]").select_option(index=2)
        assert page.locator("#transfer .told").count() == 4
        assert page.locator("#transfer h4").all_inner_texts() == [f"{100 * carried.iloc[1]['density']:.4g} % left"]


def test_rows_and_points_lead_to_their_runs(opened: Open, tmp_path: Path) -> None:
    root = synthetic.write_sent(tmp_path / "small", entity="team", project="lottery")
    made = report.write_report([root], tmp_path / "out")
    address = "https://wandb.ai/team/lottery/runs/0a1b2c3d-s0-ticket-r02"
    with opened(made, "#seed=0") as page:
        mark(page, "ticket", 2, 0).click(force=True)
        assert page.locator("#tip a").get_attribute("href") == address
        page.mouse.move(5, 5)
        assert page.locator("#tip a").is_visible()  # it stays to be clicked
        open_rounds(page)
        assert page.locator("#rounds a").count() == 3 + 2
        assert page.locator(f'#rounds a[href="{address}"]').count() == 1
        group = page.locator(".facts a").get_attribute("href")
        assert group == "https://wandb.ai/team/lottery/groups/small-0a1b2c3d/workspace"
    with opened(made, "#seed=1") as page:
        open_rounds(page)
        assert page.locator("#rounds a").count() == 0
