"""Tickets from elsewhere: mask and theta_k arrive bit for bit, and the layers left behind are fresh."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import BASE, established, final, play, result, tiny

from lth_scale import checkpoint, lottery, settings, starting, tickets, transfer
from lth_scale.arms import arms
from lth_scale.checkpoint import State
from lth_scale.cli import main
from lth_scale.config import Config, Transfer
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.tasks import Task
from lth_scale.transfer.commands import as_runs

pytestmark = pytest.mark.slow

FOREIGN = [name for name in arms if arms[name].foreign]
OUTPUT, INPUT = ("output.weight", "output.bias"), ("fc1.weight", "fc1.bias")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Tickets of classes 0-4, rewound to a late point."""
    made = tiny(data={"classes": "0-4"}, rewind={"at": "7it"}, run={"seeds": (0, 1)})
    return play(made, tmp_path_factory.mktemp("source") / "run")


def target(source: Experiment, layers: str = "body", **changes: dict[str, Any]) -> Config:
    """Classes 5-9 by another optimizer, with all arms there are of tickets from elsewhere."""
    fields: dict[str, dict[str, Any]] = {
        "data": {"classes": "5-9"},
        "train": {**BASE["train"], "optimizer": "adam", "lr": 0.002},
        "run": {"seeds": (0,), "arms": ("ticket", "own", *FOREIGN)},
        "rewind": {"at": "7it"},
        "transfer": {"sources": [str(source.paths.root)], "layers": layers},
    }
    return tiny(**{key: fields.get(key, {}) | changes.get(key, {}) for key in fields.keys() | changes.keys()})


@pytest.fixture(scope="module")
def run(source: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return play(target(source), tmp_path_factory.mktemp("target") / "run")


def arm(name: str, run: Experiment) -> str:
    (label,) = run.config.transfer.places
    return f"{name}.{label}"


def begun(run: Experiment, name: str, number: int) -> tuple[State, Mask]:
    """What the round started from, which its result names by its digest."""
    start = starting.start(run, Task(number, 0, name))
    assert start.state.masked(start.mask).digest() == result(run, name, number)["source"]["sha256"]
    return start.state.whole(), start.mask


def theta(run: Experiment, step: int) -> State:
    return checkpoint.load_state(run.paths.rewind(0, step))


@pytest.mark.parametrize("number", [1, 2])
def test_mask_and_theta_k_arrive_bit_for_bit_and_the_output_layer_is_fresh(
    number: int, source: Experiment, run: Experiment
) -> None:
    state, mask = begun(run, arm("transfer", run), number)
    there = Mask.load(source.paths.round(0, "ticket", number).mask)
    assert list(mask) == ["fc1.weight", "fc2.weight"] and [*mask, "output.weight"] == list(there)
    assert all(torch.equal(mask[name], there[name]) for name in mask)
    theta_k, own = theta(source, 7), theta(run, 0)
    for name, weight in state.weights.items():
        assert torch.equal(weight, (own if name in OUTPUT else theta_k).weights[name])
        assert not torch.equal(weight, (theta_k if name in OUTPUT else own).weights[name])  # the two do differ
    assert not state.optimizer and state.step == 0
    clock = result(run, arm("transfer", run), number)["clock"]
    assert (clock["start"], clock["end"]) == (0, run.total)


@pytest.mark.parametrize("name", ["own", *FOREIGN])
def test_the_output_layer_is_the_same_fresh_one_and_whole_in_every_arm(name: str, run: Experiment) -> None:
    folder = name if name == "own" else arm(name, run)
    state, mask = begun(run, folder, 1)
    assert "output.weight" not in mask
    assert result(run, folder, 1)["density"] == mask.density  # of what came with the ticket alone
    kept = torch.equal(state.weights["output.weight"], theta(run, 0).weights["output.weight"])
    assert kept != (name == "transfer_reinit")  # whose other layers are fresh as well, from one draw
    trained = final(run, folder, 1)
    assert trained.weights["output.weight"].all()
    assert not torch.equal(trained.weights["output.weight"], state.weights["output.weight"])
    for tensor, bits in mask.items():
        assert not trained.weights[tensor][~bits].any()


def test_controls_change_what_they_say_and_nothing_else(source: Experiment, run: Experiment) -> None:
    ticket, mask = begun(run, arm("transfer", run), 2)
    reinit, same = begun(run, arm("transfer_reinit", run), 2)
    assert same == mask and not torch.equal(reinit.weights["fc1.weight"], ticket.weights["fc1.weight"])
    random, permuted = begun(run, arm("transfer_random", run), 2)
    assert permuted != mask and permuted.counts() == mask.counts() and not random.differences(ticket)
    dense, ones = begun(run, arm("transfer_dense", run), 1)
    assert ones.density == 1 and not dense.differences(ticket)
    own, mine = begun(run, "own", 2)
    assert mine == Mask.load(run.paths.round(0, "ticket", 2).mask) != mask
    assert torch.equal(own.weights["fc1.weight"], theta(run, 7).weights["fc1.weight"])
    assert torch.equal(own.weights["output.weight"], theta(run, 0).weights["output.weight"])


def test_tasks_need_only_the_dense_round(source: Experiment, run: Experiment) -> None:
    of = {task: task.needs for task in run.tasks}
    assert {need for task, needs in of.items() if "." in task.arm for need in needs} == {Task(0, 0, "ticket")}
    assert of[Task(2, 0, "own")] == (Task(1, 0, "ticket"),)
    some = Experiment.at(target(source, transfer={"rounds": 2}), run.paths.root)
    assert {t.round for t in some.tasks if "." in t.arm} == {2} and {t.round for t in some.tasks} == {0, 1, 2}


def test_hidden_leaves_the_input_layer_behind_too(source: Experiment, tmp_path: Path) -> None:
    changes = {"data": {"classes": "5-9", "shape": (1, 12, 12)}}
    with pytest.raises(UserError, match=r"fc1.weight is 20x64 in .* and 20x144 here; .*--data.shape=\[1, 8, 8\]"):
        Experiment.at(target(source, **changes), tmp_path)
    wanted = ("transfer", "transfer_dense")
    run = play(target(source, "hidden", **changes, run={"arms": ("ticket", *wanted)}), tmp_path)
    state, mask = begun(run, arm("transfer", run), 2)
    assert list(mask) == ["fc2.weight"]
    for name, weight in state.weights.items():
        assert torch.equal(
            weight,
            theta(run if name in (*OUTPUT, *INPUT) else source, 0 if name in (*OUTPUT, *INPUT) else 7).weights[name],
        )


def test_packed_tickets_are_as_good_as_the_run_they_are_from(
    source: Experiment, run: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    for number in (1, 2):
        tickets.pack(tickets.of_run(source.paths.root, 0, number), folder / f"{number}.safetensors")
    carried = target(source, transfer={"sources": [str(folder)]}, run={"arms": ("ticket", "transfer")})
    again = play(carried, tmp_path / "run", lambda task: task.round == 0 or "." in task.arm)
    assert again.config.transfer.places.keys() == run.config.transfer.places.keys()
    for number in (1, 2):
        assert (
            result(again, arm("transfer", run), number)["hashes"] == result(run, arm("transfer", run), number)["hashes"]
        )
    with pytest.raises(
        UserError, match=r"packed holds no ticket of seed 1 round 1; only seed 0 round 1, seed 0 round 2"
    ):
        Experiment.at(replace(carried, run=replace(carried.run, seeds=(0, 1))), tmp_path / "more")


def test_a_source_may_be_gone_once_all_is_done_but_not_before(source: Experiment, tmp_path: Path) -> None:
    moved = tmp_path / "source"
    shutil.copytree(source.paths.root, moved)
    config = target(
        source, transfer={"sources": [str(moved)]}, run={"arms": ("ticket", "transfer")}, prune={"rounds": 1}
    )
    play(config, tmp_path / "run")
    shutil.rmtree(moved)
    there = settings.load(tmp_path / "run" / "config.yaml")
    assert all(
        task.done(Experiment.at(there, tmp_path / "run").paths) for task in Experiment.at(there, tmp_path / "run").tasks
    )
    assert main(["status", str(tmp_path / "run")]) == 0
    with pytest.raises(UserError, match=r"transfer.sources: .*source is neither a run folder"):
        Experiment.at(replace(there, run=replace(there.run, seeds=(0, 1))), tmp_path / "run")


def test_a_label_binds_a_place_to_the_config_it_had(source: Experiment, tmp_path: Path) -> None:
    moved = tmp_path / "source"
    play(tiny(data={"classes": "0-4"}, prune={"rounds": 1}), moved)
    (label,) = Experiment.at(target(source), tmp_path / "run").config.transfer.places
    stale = target(source, transfer={"sources": [f"{label}={moved}"]})
    with pytest.raises(UserError, match=rf"holds tickets of digits\.\w+ now, no longer of {label}"):
        Experiment.at(stale, tmp_path / "run")
    named = transfer.with_labels(target(source).transfer, tmp_path)
    assert transfer.with_labels(named, tmp_path) == named


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transfer": {"layers": "all"}}, r"transfer.layers='all' is not valid with transfer.sources"),
        ({"transfer": {"rounds": "0-2"}}, r"transfer.rounds=.* round 0 is dense"),
        ({"transfer": {"rounds": "x"}}, r"transfer.rounds='x' is not valid"),
        ({"transfer": {"rounds": 4}}, r"no ticket of seed 0 round 4 .*; finish that run"),
        ({"run": {"seeds": (0, 7)}}, r"no ticket of seed 7 round 1"),
        ({"run": {"arms": ("ticket", "own")}}, r"run.arms=\['ticket', 'own'\] has none of: transfer, transfer_reinit"),
        ({"transfer": {"sources": []}}, r"run.arms: transfer, .* set transfer.sources"),
        ({"transfer": {"sources": ["/nowhere"]}}, r"/nowhere is neither a run folder"),
        ({"model": {"hidden": (21, 10)}}, r"fc1.weight is 20x64 .* 21x64 here|fc1.bias|fc2.weight"),
    ],
)
def test_what_cannot_be_transferred_is_refused_before_any_work(
    changes: dict[str, dict[str, Any]], message: str, source: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        Experiment.at(target(source, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_places_of_one_config_are_refused(source: Experiment, tmp_path: Path) -> None:
    shutil.copytree(source.paths.root, tmp_path / "copy")
    twice = [str(source.paths.root), str(tmp_path / "copy")]
    with pytest.raises(UserError, match=r"and .*copy hold tickets of one config"):
        Experiment.at(target(source, transfer={"sources": twice}), tmp_path / "run")


def test_damaged_theta_k_stops_the_round_with_its_name(source: Experiment, tmp_path: Path) -> None:
    moved = tmp_path / "source"
    shutil.copytree(source.paths.root, moved)
    run = established(target(source, transfer={"sources": [str(moved)]}), tmp_path / "run")
    lottery.run(run, [task for task in run.tasks if task.round == 0])
    (file,) = (moved / "seed_0" / "rewind" / "step_00000007").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"step_00000007"):
        lottery.run(run, [task for task in run.tasks if task.arm == arm("transfer", run)])


def test_the_command_makes_one_run_for_each_target_and_shape(source: Experiment, tmp_path: Path) -> None:
    other = play(tiny(data={"shape": (1, 6, 6)}, prune={"rounds": 1}), tmp_path / "other")
    places = [str(source.paths.root), str(other.paths.root)]
    fields = ["--model.hidden=[20,10]", "--prune.rounds=1", "--train.batch_size=100", "--jobs=1"]
    runs = as_runs([*places, *fields, f"--out={tmp_path}/out", "--to", "--data.classes=5-9", "--to", "--rewind.at=7it"])
    words = [[word for word in run if word.startswith(("--transfer", "--data.shape", "--run.arms"))] for run in runs]
    assert [w[1] for w in words] == [f'--transfer.sources=["{place}"]' for place in [*places, *places]]
    assert [any("shape=[1, 6, 6]" in word for word in w) for w in words] == [False, True, False, True]
    assert ['"own"' in w[-1] for w in words] == [False, False, True, True]
    assert len({run[-1] for run in runs}) == 4 and all("--jobs=1" in run for run in runs)
    hidden = as_runs([*places, *fields, "--transfer.layers=hidden", "--to", "--data.classes=5-9"])
    assert len(hidden) == 1 and not any("--data.shape" in word for word in hidden[0])


def test_it_is_submitted_as_arrays_that_wait_for_the_dense_round(
    source: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ["--model.hidden=[20,10]", "--prune.rounds=2", "--run.seeds=0-1", "--data.classes=5-9"]
    words = [
        str(source.paths.root),
        *fields,
        f"--out={tmp_path}/out",
        "--cluster=local",
        "--dry-run",
        "--to",
        "digits_lenet",
    ]
    assert main(["submit", "transfer", *words]) == 0
    said = capsys.readouterr().out
    (label,) = Experiment.at(target(source), tmp_path / "run").config.transfer.places
    assert f"transfer.{label}" in said and f"transfer_dense.{label}" in said
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("words", [[], ["SOURCE"], ["SOURCE", "--to"], ["--to", "digits_lenet"]])
def test_the_command_says_what_it_lacks(words: list[str], source: Experiment) -> None:
    with pytest.raises(UserError, match=r"transfer needs sources and targets: lth transfer RUN... --to CONFIG"):
        as_runs([str(source.paths.root) if word == "SOURCE" else word for word in words])


def test_the_section_is_part_of_the_run(source: Experiment) -> None:
    plain, moved = tiny(), tiny(transfer={"layers": "body"})
    assert settings.digest(plain) != settings.digest(moved)  # other tensors are pruned
    more = replace(target(source), transfer=Transfer("body", ("elsewhere",), 2))
    assert settings.digest(more) == settings.digest(target(source))  # further sources and rounds change no other arm
