"""What docs/results.md says of instability is what the collected table holds, with what auto chose on other splits."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import instability_section
import make_results

from lth_scale import files
from lth_scale.report.connectivity import COLUMNS

HIGH = {"train": (5.0, 4.0, 6.0), "validation": (5.0, 1.0, 9.0), "test": (5.5, 4.5, 6.5)}
LOW = {"train": (1.0, 0.5, 1.5), "validation": (1.1, 0.6, 1.6), "test": (1.2, 0.7, 1.7)}


def row(at: str, k: int, split: str, values: tuple[float, float, float]) -> list[object]:
    verdict = "stable" if values[2] < 2 else "not stable" if values[1] >= 2 else "undecided"
    stored = [value + 10 for value in values]
    return [f"k_{at}", at, k, 1, 0.21, "pair", split, 5, *values, *stored, verdict]


def test_a_line_for_each_rewind_point(tmp_path: Path) -> None:
    rows = [row(at, k, split, of[split]) for at, k, of in (("0", 0, HIGH), ("60it", 60, LOW)) for split in HIGH]
    table, auto = tmp_path / "connectivity.csv", tmp_path / "auto.json"
    pd.DataFrame(rows, columns=COLUMNS).to_csv(table, index=False)
    measured = {"0": {"validation": {"n": 5, "mean": 5.0, "low": 1.0, "high": 9.0}}}
    files.write_json(auto, {"measured": measured, "chosen": None})
    for path in (table, auto):
        make_results.collect(path, "instability_tiny", tmp_path / "results", "2-core")
    text = "\n".join(instability_section.section(tmp_path / "results"))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if "children" in line and line[0] == "|"]
    assert [line[:4] for line in lines] == [[at, "21.00", "children", "5"] for at in ("0", "60it")]
    assert lines[0][4:] == [
        *("5.00 [4.00, 6.00] ✗", "15.00 [14.00, 16.00]"),
        *("5.00 [1.00, 9.00] ?", "15.00 [11.00, 19.00]"),
        *("5.50 [4.50, 6.50] ✗", "15.50 [14.50, 16.50]"),
    ]
    assert lines[1][4] == "1.00 [0.50, 1.50] ✓"
    assert "tried 0 (validation 5.00 [1.00, 9.00])" in text and "found none stable" in text
    assert list(instability_section.figures(tmp_path / "results")) == ["figures/instability_tiny.svg"]
