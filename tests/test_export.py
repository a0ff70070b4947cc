"""One file of plain names, from a run folder or a saved state, however many ranks wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import states
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import RESNET, K, final, play, theta, tiny, used_mask

from lth_scale import cli
from lth_scale.checkpoint import State
from lth_scale.experiment import Experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    config = tiny(model=RESNET, rewind={"at": f"{K}it"}, prune={"rounds": 1}, run={"arms": ("ticket", "random")})
    return play(config, tmp_path_factory.mktemp("export") / "run")


def exported(*words: object) -> dict[str, torch.Tensor]:
    assert cli.main(["ticket", "export", *map(str, words)]) == 0
    return load_file(str(words[words.index("--out") + 1]))


def plain(state: State) -> dict[str, torch.Tensor]:
    return state.weights | state.buffers


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_last_round_of_the_ticket_and_torch_loads_it(run: Experiment, tmp_path: Path) -> None:
    found = exported(run.paths.root, "--out", tmp_path / "ticket.safetensors")
    assert_equal(found, plain(final(run, "ticket", 1)))
    run.model(3).load_state_dict(found)  # strict
    with safe_open(tmp_path / "ticket.safetensors", "pt") as stream:
        about = stream.metadata()
    assert about["round"] == "1" and about["seed"] == "0" and 0 < float(about["density"]) < 1


@pytest.mark.parametrize(("arm", "number"), [("ticket", 1), ("random", 1), ("ticket", 0)])
def test_where_a_round_started_is_theta_k_times_its_mask(
    arm: str, number: int, run: Experiment, tmp_path: Path
) -> None:
    words = ["--arm", arm, "--round", number, "--theta", "--out", tmp_path / "start.safetensors"]
    at_k = theta(run, K)
    expected = plain(at_k.masked(used_mask(run, arm, number)).whole() if number else at_k)
    assert_equal(exported(run.paths.root, *words), expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_state_that_ranks_wrote_in_parts(ranks: int, run: Experiment, tmp_path: Path) -> None:
    state = final(run, "ticket", 0)
    states.write(tmp_path / "state", state, states.even(state, ranks))
    assert_equal(exported(tmp_path / "state", "--out", tmp_path / "one.safetensors"), plain(state))


def test_what_is_not_there_is_told(run: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "x")]
    for words, told in (
        ([str(tmp_path)], "is no run folder, no ticket file and no saved state"),
        ([str(run.paths.root), "--round", "7"], "round 7 is not done; done are: 0, 1"),
        ([str(run.paths.root), "--arm", "reinit"], "done are: none"),
        ([str(run.paths.root), "--format", "onyx"], "--format='onyx' is not known"),
    ):
        assert cli.main(["ticket", "export", *words, *out]) == 2
        line = capsys.readouterr().err
        assert told in line and len(line.splitlines()) == 1
    assert not (tmp_path / "x").exists()
