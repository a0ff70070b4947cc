"""What docs/results.md says of a sweep is read off its rounds: equal density, equal cost, chosen on validation."""

from __future__ import annotations

import sys
from math import sqrt
from pathlib import Path

import pytest
from synthetic import config, write_run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import sweep_section

from lth_scale import files
from lth_scale.errors import UserError


def chain(densities: list[float], test: list[float], validation: list[float] | None = None) -> sweep_section.Chain:
    rows = [
        (0.5, "0", seed, number, density, number + 1.0, validation[number] if validation else one, one + seed)
        for seed in (0, 1)
        for number, (density, one) in enumerate(zip(densities, test, strict=True))
    ]
    return sweep_section.pd.DataFrame(rows, columns=sweep_section.COLUMNS)


def test_between_two_rounds_accuracy_is_linear_in_log_density() -> None:
    found = sweep_section.reading(chain([1.0, 0.4, 0.1], [90.0, 88.0, 80.0]), sqrt(0.4 * 0.1))
    assert found is not None
    assert found.test == pytest.approx({0: 84.0, 1: 85.0})
    assert found.trainings == 3, "the round that is there or below"
    assert sweep_section.reading(chain([1.0, 0.4], [90.0, 88.0]), 0.1) is None, "nothing is extrapolated"


def test_validation_chooses_and_the_budget_binds(tmp_path: Path) -> None:
    slow = chain([1.0, 0.5, 0.2, 0.1], [90.0, 90.0, 90.0, 90.0], [90.0, 90.0, 90.0, 91.0])
    fast = chain([1.0, 0.1], [90.0, 95.0], [90.0, 90.5]).assign(removed=0.9)
    frame = sweep_section.pd.concat([slow, fast])
    files.write_text(tmp_path / f"{sweep_section.NAME}.csv", frame.to_csv(index=False))
    lines = [line.strip("| ").split(" | ") for line in "\n".join(sweep_section.section(tmp_path)).splitlines()]
    equal_density, *equal_cost = [line for line in lines if line[0] in ("10", "2", "4") and len(line) > 2]
    assert [cell.startswith("**90.50") for cell in equal_density[1:]] == [True, False]
    assert equal_density[2].startswith("95.50"), "the better one on the test split is not chosen"
    assert [(line[0], line[2].split(":")[0]) for line in equal_cost[-2:]] == [("2", "90 %"), ("4", "50 %")]


def test_a_run_is_collected_with_its_cost(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(rounds=2, seeds=range(2)))
    frame = sweep_section.collect([tmp_path / "run"])
    assert list(frame.columns) == sweep_section.COLUMNS
    assert frame.groupby("replicate")["trainings"].apply(list).tolist() == [[1.0, 2.0, 3.0]] * 2
    with pytest.raises(UserError, match="no round is done"):
        sweep_section.collect([])
