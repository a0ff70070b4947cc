from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import synthetic
import torch
from nbclient import NotebookClient

from lth_scale.errors import UserError
from lth_scale.paths import RunPaths
from lth_scale.runs import open_run

NOTEBOOK = Path(__file__).parent.parent / "examples" / "explore.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_run(tmp_path_factory.mktemp("runs") / "digits", synthetic.config(rounds=4, seeds=range(2)))


def test_open_run(run: Path) -> None:
    opened = open_run(str(run))
    assert opened.config == synthetic.config(rounds=4, seeds=range(2))
    assert len(opened.results) == 2 * (5 + 4 + 4)
    assert set(opened.table()["arm"]) == {"ticket", "reinit", "random"}
    assert repr(opened) == f"OpenRun({str(run)!r}, 26 finished rounds)"


def test_masks(run: Path) -> None:
    opened = open_run(run)
    masks = [opened.mask(1, "ticket", number) for number in range(5)]
    assert masks[0].density == 1.0
    assert all(later.within(earlier) and later.kept < earlier.kept for earlier, later in pairwise(masks))
    assert masks[4].density == opened.table().query("arm == 'ticket' and round == 4")["density"].item()


def test_theta_and_model(run: Path) -> None:
    opened = open_run(run)
    theta = opened.theta(seed=1)
    assert theta.step == 0 and torch.equal(theta.weights["fc1.weight"], synthetic._theta(1)["fc1.weight"])
    network = opened.model(seed=1, round=4)
    weights = dict(network.named_parameters())
    for name, kept in opened.mask(1, "ticket", 4).items():
        assert torch.equal(weights[name], theta.weights[name] * kept)
    assert not network.training


def test_missing_things_name_what_exists(run: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    with pytest.raises(UserError, match="seed 1 step 0"):
        opened.theta(seed=0, step=500)
    with pytest.raises(UserError, match="checkpoints of seed 0 ticket round 4, seed 1 ticket round 4"):
        opened.model(seed=0)
    with pytest.raises(UserError, match="seeds 0, 1, arms random, reinit, ticket, rounds 1 to 4"):
        opened.mask(seed=7)
    with pytest.raises(UserError, match="is not a run folder"):
        open_run(tmp_path)


def test_damaged_things_are_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    mask = RunPaths(copy).round(0, "ticket", 1).mask
    mask.write_bytes(mask.read_bytes()[:-9])
    with pytest.raises(UserError, match=mask.name):
        open_run(copy).mask(0)
    weights = next((RunPaths(copy).rewind(0, 0)).glob("*.safetensors"))
    weights.write_bytes(b"0" + weights.read_bytes()[1:])
    with pytest.raises(UserError, match=weights.name):
        open_run(copy).theta(0)


@pytest.mark.slow
def test_notebook_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTH_RUN", str(run))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own backend shows figures
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without its results
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("test_accuracy" in output.get("data", {}).get("text/html", "") for output in outputs)
