"""Children of one start, and the error between them: what is shared, what differs, whether the numbers are right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import K, Spy, established, final, play, result, theta, ticket_mask, tiny
from tiny_runs import spy as spy
from torch import nn

from lth_scale import cli, interpolation, lottery, settings
from lth_scale.config import Config, Data
from lth_scale.connectivity import decided
from lth_scale.data import Dataset, Split, evaluation_batches, load
from lth_scale.errors import NotReady, UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json, write_json, write_text
from lth_scale.interpolation import ALPHAS, errors, instability, place, reestimate_statistics
from lth_scale.models import models
from lth_scale.paths import RunPaths
from lth_scale.report import connectivity_table, instabilities, read_run, read_runs, write_report
from lth_scale.report.connectivity import verdict
from lth_scale.report.reading import RunResults
from lth_scale.report.verdict import interval
from lth_scale.rewinding import recipes
from lth_scale.slurm import queue, state
from lth_scale.slurm.chains import arrays
from lth_scale.tasks import Task, tasks
from lth_scale.tracking import segments

SHORT: dict[str, Any] = {"duration": f"{K + 2}it", "batch_size": 100, "eval_every": f"{K + 2}it", "lr": 0.05}
BOTH: dict[str, Any] = {"children": 2, "next": True, "origin": True}


def config(**changes: dict[str, Any]) -> Config:
    base: dict[str, dict[str, Any]] = {"rewind": {"at": f"{K}it"}, "prune": {"rounds": 1}, "connectivity": BOTH}
    return tiny(**(base | {"data": {"augment": "crop_flip"}} | changes))


def line(run: Experiment, arm: str, number: int, seed: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run.paths.round(seed, arm, number).line)
    return found


# --- the graph --------------------------------------------------------------------------------------------------------


def test_what_is_asked_for() -> None:
    three = config(connectivity={"children": 3}, prune={"rounds": 4}, run={"seeds": (0,), "arms": ("ticket",)})
    beside = [(task.arm, task.round) for task in tasks(three, 4) if task.arm != "ticket"]
    names = ("child", "child-1", "child-2", "pair.0.1", "pair.0.2", "pair.1.2")
    assert sorted(beside) == sorted((name, number) for name in names for number in (0, 4))
    assert [task.arm for task in tasks(config(connectivity={}), 1)] == ["ticket", "ticket"]


def test_what_a_task_needs() -> None:
    def needs(arm: str, number: int) -> list[tuple[str, int]]:
        return [(need.arm, need.round) for need in Task(number, 3, arm).needs]

    assert needs("ticket", 0) == []
    assert needs("child-1", 0) == [("ticket", 0)]
    assert needs("child-1", 4) == [("ticket", 3)]
    assert needs("pair.0.2", 4) == [("child", 4), ("child-2", 4)]
    assert needs("next", 4) == [("ticket", 3), ("ticket", 4)]
    assert needs("origin", 4) == [("ticket", 4)]


def test_tasks_come_after_what_they_need() -> None:
    every = tasks(config(run={"seeds": (0, 1), "arms": ("ticket", "random")}, prune={"rounds": 2}), 2)
    for number, task in enumerate(every):
        assert all(need in every[:number] for need in task.needs), task


def test_a_round_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"connectivity.rounds=\[0, 7\] is not valid; it must be in 0..1"):
        Experiment.at(config(connectivity={"children": 2, "rounds": (0, 7)}), tmp_path)
    with pytest.raises(UserError, match=r"connectivity.children=1 is not valid"):
        config(connectivity={"children": 1})
    with pytest.raises(UserError, match=r"connectivity.vary='augment' is not valid with data.augment='none'"):
        Experiment.at(config(data={}, connectivity={"children": 2, "vary": "augment"}), tmp_path)


class Normed(nn.Module):
    """A little network with statistics."""

    output_layer = "output"

    def __init__(self, pixels: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.scale, self.norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.output = nn.Linear(2 * pixels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output(self.norm(self.scale(images)).flatten(1))
        return out


@pytest.fixture
def normed() -> Iterator[dict[str, Any]]:
    models.register("normed")(lambda config, shape, classes: Normed(shape[1] * shape[2], classes))
    yield {"name": "normed"}
    del models._entries["normed"]


# --- children ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return play(config(), tmp_path_factory.mktemp("connectivity"))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_children_start_as_their_round_does(number: int, momentum: float, spy: Spy, tmp_path: Path) -> None:
    run = established(config(train={**SHORT, "momentum": momentum}), tmp_path)
    trained = [task for task in run.tasks if task.trains]
    lottery.run(run, trained)
    fits = dict(zip(trained, spy.fits, strict=True))
    at_k = theta(run, K)
    expected = at_k.masked(ticket_mask(run, 1)).whole() if number else at_k
    assert bool(expected.optimizer) == bool(momentum)
    for arm in ("child", "child-1"):
        assert fits[Task(number, 0, arm)].start.differences(expected) == []
        assert len(fits[Task(number, 0, arm)].rates) == 2
    one, other = (fits[Task(number, 0, arm)].inputs for arm in ("child", "child-1"))
    assert not set(one) & set(other)
    assert not set(one) & set(fits[Task(number, 0, "ticket")].inputs)


@pytest.mark.parametrize(("vary", "same"), [("order", "augment"), ("augment", "order")])
def test_one_stream_alone_can_be_varied(vary: str, same: str, tmp_path: Path) -> None:
    run = established(config(connectivity={"children": 2, "vary": vary}), tmp_path)
    ticket, one, other = (run.streams(Task(0, 0, arm)) for arm in ("ticket", "child", "child-1"))
    assert [name for name in ticket if one[name] != other[name]] == [vary]
    assert one[same] == ticket[same] and one[vary] != ticket[vary]


def test_identical_children_are_the_round_again_and_have_no_instability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normed: dict[str, Any]
) -> None:
    """Their streams are those of the ticket here; with their own the same numbers are not 0."""
    own = Experiment.streams
    monkeypatch.setattr(Experiment, "streams", lambda self, task: own(self, Task(task.round, task.seed, "ticket")))
    run = play(config(model=normed, train=SHORT, connectivity={"children": 2}), tmp_path)
    for number in (0, 1):
        ends = [final(run, arm, number) for arm in ("ticket", "child", "child-1")]
        assert ends[0].differences(ends[1]) == ends[1].differences(ends[2]) == []
        found = line(run, "pair.0.1", number)
        assert found["batchnorm"]
        for how in ("stored", "reestimated"):
            assert set(found["instability"][how].values()) == {0.0}
            assert all(len(set(values)) == 1 for values in found["error"][how].values())


@pytest.mark.parametrize("recipe", tuple(recipes))
def test_a_child_with_the_tickets_noise_is_the_ticket(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever later rounds restore, and whether or not the dense pass drops its momentum at k."""
    own = Experiment.streams
    monkeypatch.setattr(Experiment, "streams", lambda self, task: own(self, Task(task.round, task.seed, "ticket")))
    rewind = {"at": f"{K}it", "recipe": recipe}
    run = established(config(train=SHORT, rewind=rewind, data={"noise_per_round": "fresh"}), tmp_path)
    lottery.run(run, [task for task in run.tasks if task.trains and task.arm != "child-1"])
    for number in (0, 1):
        weights = [result(run, arm, number)["hashes"]["weights"] for arm in ("ticket", "child")]
        assert weights[0] == weights[1]


def test_different_children_end_apart(played: Experiment) -> None:
    for number in (0, 1):
        assert final(played, "child", number).differences(final(played, "child-1", number))
        found = line(played, "pair.0.1", number)
        assert len(set(found["error"]["stored"]["train"])) > 1
        assert found["ends"] == [f"seed=0 arm=child round={number}", f"seed=0 arm=child-1 round={number}"]


# --- the line ---------------------------------------------------------------------------------------------------------


def test_thirty_even_steps_with_their_ends() -> None:
    assert len(ALPHAS) == 30 and (ALPHAS[0], ALPHAS[-1]) == (0.0, 1.0)
    assert all(after - before == pytest.approx(1 / 29) for before, after in pairwise(ALPHAS))


def test_instability_is_the_highest_error_minus_the_mean_of_the_ends() -> None:
    bump = [4 * 30 * alpha * (1 - alpha) + 10 * alpha for alpha in ALPHAS]  # a parabola of height 30 on a slope
    assert instability(bump) == pytest.approx(max(bump) - 5) and max(bump) > 35
    assert instability([7.0] * 30) == 0
    assert instability([6.0, *[1.0] * 28, 2.0]) == 2.0, "the higher end alone, where a line is a valley"


class Point(nn.Module):
    """Answers class 1 for an image iff its weight, moved along a line, is on the image's side."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = images.flatten(1)[:, :2] @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def test_errors_on_a_line_are_those_of_every_point_by_itself() -> None:
    """Two linear classifiers that turn by 120 degrees: the error at each alpha is counted by hand."""
    angles = torch.arange(360) * torch.pi / 180
    images = torch.stack([angles.cos(), angles.sin()], 1).mul(100).add(128).round().to(torch.uint8).reshape(-1, 1, 1, 2)
    split = Split(images, torch.ones(360, dtype=torch.int64))
    data = Dataset("circle", 2, (1, 1, 2), split, Split(images[:0], split.labels[:0]), split, (0.5,), (0.25,), "")
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 0.75**0.5])
    found = errors(Point().eval(), {"weight": one}, {"weight": other}, data)
    assert set(found) == {"train", "test"}, "nothing is said of a split without images"
    for alpha, error in zip(ALPHAS, found["test"], strict=True):
        scores = data.normalise(images).flatten(1) @ ((1 - alpha) * one + alpha * other)
        assert error == pytest.approx(100 * float((scores <= 0).sum()) / 360, abs=0.3)


def test_ends_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = ({"weight": torch.randn(2, generator=generator) * 1e3} for _ in range(2))
    model = Point()
    for first, second, alpha, expected in [(one, other, 0.0, one), (one, other, 1.0, other), (one, one, 1 / 3, one)]:
        place(model, first, second, alpha)
        assert torch.equal(model.weight.data, expected["weight"])
    naive = (1 - 1 / 3) * one["weight"] + 1 / 3 * one["weight"]
    assert not torch.equal(naive, one["weight"]), "the plain formula moves where there is nothing to move"


def test_statistics_are_those_of_the_interpolated_network() -> None:
    """Opposite weights cancel half way; statistics that are interpolated like them know nothing of it."""
    model, dataset = Normed().eval(), load(Data())
    batches = [images for images, _ in evaluation_batches(dataset, "train", 5000, 0, 1)]
    with torch.no_grad():
        model.scale.weight.copy_(torch.tensor([0.5, -2.0]).reshape(2, 1, 1, 1))
        reestimate_statistics(model, dataset)
        seen = [model.scale(images) for images in batches]
    mean, variance = (
        torch.stack(held).mean(0) for held in zip(*((s.mean((0, 2, 3)), s.var((0, 2, 3))) for s in seen), strict=True)
    )
    assert torch.allclose(model.norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(model.norm.running_var, variance, rtol=1e-4)
    assert model.norm.momentum == 0.1 and not model.training and not model.norm.training
    before = model.norm.running_mean.clone()
    reestimate_statistics(model, dataset)
    assert torch.equal(before, model.norm.running_mean), "the same images in the same order"


def test_statistics_matter(tmp_path: Path, normed: dict[str, Any]) -> None:
    run = play(config(model=normed, train=SHORT, prune={"rounds": 0}, connectivity={"origin": True}), tmp_path)
    found = line(run, "origin", 0)["error"]
    assert found["stored"]["train"][1:-1] != found["reestimated"]["train"][1:-1]
    assert found["stored"]["test"][-1] == 100 * (1 - result(run, "ticket", 0)["end"]["test"]["accuracy"])


def test_every_kind_of_line_has_the_ends_it_names(played: Experiment) -> None:
    error = {
        arm: 100 * (1 - result(played, arm, 1)["end"]["test"]["accuracy"]) for arm in ("child", "child-1", "ticket")
    }
    dense = 100 * (1 - result(played, "ticket", 0)["end"]["test"]["accuracy"])
    for arm, first, last in [
        ("pair.0.1", error["child"], error["child-1"]),
        ("next", dense, error["ticket"]),
        ("origin", None, error["ticket"]),
    ]:
        found = line(played, arm, 1)["error"]["stored"]["test"]
        assert first in (None, found[0]) and found[-1] == last
    first, _ = interpolation.ends(played, Task(1, 0, "origin"))
    assert first.differences(theta(played, K).masked(ticket_mask(played, 1))) == []


def test_a_measure_made_again_is_the_same_file(played: Experiment) -> None:
    task = Task(1, 0, "pair.0.1")
    marker = task.marker(played.paths)
    before = marker.read_bytes()
    marker.unlink()
    assert not task.done(played.paths) and Task(1, 0, "child").done(played.paths)
    lottery.run(played, [task])
    assert marker.read_bytes() == before
    assert not task.paths(played.paths).result.exists()


def test_a_line_without_its_ends_is_not_ready(tmp_path: Path) -> None:
    run = established(config(), tmp_path)
    with pytest.raises(NotReady, match=r"pair.0.1 round=1 is not ready: seed=0 arm=child round=1 is not done"):
        lottery.play(run, Task(1, 0, "pair.0.1"))


# --- who waits for whom -----------------------------------------------------------------------------------------------


def test_arrays_wait_for_both_ends(tmp_path: Path) -> None:
    made = Experiment.at(config(run={"seeds": (0, 1), "arms": ("ticket",)}, prune={"rounds": 1}), tmp_path)
    found, blocked = arrays(made.tasks, set(), {})
    assert not blocked
    named = [(array.arm, array.round) for array in found]
    for array in found:
        after = {named[number] for number in array.after if isinstance(number, int)}
        assert after == {(need.arm, need.round) for need in Task(array.round, 0, array.arm).needs}
    assert found[named.index(("pair.0.1", 1))].after == (named.index(("child", 1)), named.index(("child-1", 1)))


def test_seeds_with_other_predecessors_are_another_array() -> None:
    every = [Task(1, seed, arm) for seed in (0, 1, 2) for arm in ("child", "child-1", "pair.0.1")]
    done = {Task(0, seed, "ticket") for seed in (0, 1, 2)} | {Task(1, 1, "child")}
    found, _ = arrays(every, done, {Task(1, 2, "child-1"): "77"})
    pairs = [(array.seeds, array.after) for array in found if array.arm == "pair.0.1"]
    assert pairs == [((0,), (0, 1)), ((1,), (1,)), ((2,), (0, "77"))]
    for array in found:
        for before in array.after:
            assert isinstance(before, str) or set(array.seeds) <= set(found[before].seeds)


def test_sbatch_is_told_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "available", lambda: False)
    words = ["digits_lenet", "--prune.rounds=0", "--run.seeds=0", "--run.arms=[ticket]", "--connectivity.children=2"]
    assert cli.main(["submit", *words, "--out", str(tmp_path / "run"), "--cluster", "local", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert '"--dependency=aftercorr:$job2:$job3"' in said and ":pair.0.1:0" in said


def test_status_names_what_blocks(tmp_path: Path) -> None:
    run = established(config(connectivity={"children": 2}), tmp_path)
    found = {known.task: known for known in state.known(run)}
    assert found[Task(0, 0, "ticket")].state == "ready"
    assert found[Task(0, 0, "pair.0.1")].state == "blocked" or found[Task(0, 0, "pair.0.1")].state == "waiting"
    both = "seed=0 arm=child round=0 and seed=0 arm=child-1 round=0"
    waiting = state._behind(
        replace(found[Task(0, 0, "pair.0.1")], state="waiting"),
        [replace(found[Task(0, 0, arm)], state="queued", by=None) for arm in ("child", "child-1")],
        state.Heard(),
    )
    assert (waiting.state, waiting.why) == ("waiting", f"for {both}")


# --- what is said -----------------------------------------------------------------------------------------------------


def lines_of(root: Path, at: str, k: int, values: dict[int, list[float]], **more: Any) -> RunResults:
    """A run folder with nothing but measured pairs: seed -> instabilities of its pairs."""
    run = RunPaths(root)
    write_text(run.config, settings.dump(config(rewind={"at": at})))
    for seed, pairs in values.items():
        for number, value in enumerate(pairs):
            every = {"train": value, "validation": value, "test": more.get("test", value)}
            row = {"schema": 1, "seed": seed, "arm": f"pair.0.{number}", "kind": "pair", "round": 1, "density": 0.8}
            found = {"reestimated": every, "stored": {split: v + 1 for split, v in every.items()}}
            write_json(run.round(seed, f"pair.0.{number}", 1).line, {**row, "k": k, "instability": found})
    return read_run(root)


def test_pairs_of_one_initialisation_are_one_value(tmp_path: Path) -> None:
    rows = instabilities([lines_of(tmp_path, "5it", 5, {0: [0.0, 3.0], 1: [1.0, 1.0], 2: [1.25, 1.25]})])
    row = rows[rows["split"] == "train"].iloc[0]
    expected = interval([1.5, 1.0, 1.25])
    assert (row["n"], row["instability"], row["instability_high"]) == (3, expected.mean, expected.high)
    assert (row["k"], row["stored"], row["verdict"]) == (5, expected.mean + 1, "stable")
    assert interval([0.0, 3.0, 1.0, 1.0, 1.25, 1.25]).high > 2, "all pairs as if they were independent say otherwise"


@pytest.mark.parametrize(
    ("values", "told"),
    [([0.9, 1.0, 1.1], "stable"), ([4.0, 4.1, 4.2], "not stable"), ([0.0, 2.0], "undecided"), ([0.1], "no verdict")],
)
def test_verdicts(values: list[float], told: str) -> None:
    assert verdict(interval(values)) == told


def test_the_table_and_the_page(tmp_path: Path) -> None:
    runs = [lines_of(tmp_path / f"k_{k}", f"{k}it", k, {0: [9.0 / k], 1: [9.1 / k]}) for k in (1, 9)]
    table = connectivity_table(runs)
    assert table is not None and table.row_count == 2
    assert [cell for column in table.columns[5:6] for cell in column.cells][1].endswith("✓")
    assert connectivity_table([]) is None
    page = write_report(runs, tmp_path / "out")
    assert "Instability against the rewind point" in page.read_text()
    assert (tmp_path / "out" / "figures" / "instability.svg").exists()


@pytest.mark.kill  # starts the client's own service
def test_a_line_is_a_run_of_its_own(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"prune": {"rounds": 0}, "train": SHORT, "tracking": {"wandb": "offline"}}
    run = play(config(connectivity={"origin": True}, **changes), tmp_path)
    (path,) = run.paths.round(0, "origin", 0).folder.glob("attempts/*/wandb/offline-run-*/run-*.wandb")
    records = [record for record in segments.records(path) if record.WhichOneof("record_type") == "summary"]
    told = {item.key: json.loads(item.value_json) for record in records for item in record.summary.update}
    found = line(run, "origin", 0)["instability"]
    assert {key: told[key] for key in told if key.startswith("instability")} == {
        f"instability/{split}_{how}": value for how, splits in found.items() for split, value in splits.items()
    }


# --- the commands -----------------------------------------------------------------------------------------------------

TINY = [
    *("digits_lenet", "--model.hidden=[20,10]", "--train.duration=12it", "--train.batch_size=100"),
    *("--train.eval_every=12it", "--prune.rounds=1", "--tracking.wandb=off", "--hardware.accelerator=cpu"),
]


class Ran:
    """Stands for ``lth run``: leaves what a run of its rewind point is said to have measured."""

    def __init__(self, values: dict[str, list[float]], test: float = 0.0) -> None:
        self.values, self.test, self.words = values, test, list[list[str]]()

    def __call__(self, words: list[str]) -> int:
        self.words.append(words)
        at = [word.removeprefix("--rewind.at=") for word in words if word.startswith("--rewind.at=")][-1]
        out, each = Path(words[words.index("--out") + 1]), dict(enumerate(self.values[at]))
        lines_of(out, at, 1, {seed: [value] for seed, value in each.items()}, test=self.test)
        return 0


def choose(ran: Ran, out: Path, *words: str, candidates: str = "[8it,0,4it]") -> str:
    fields = [*TINY, "--run.seeds=0-1", "--rewind.at=auto", f"--rewind.candidates={candidates}", *words]
    return decided(settings.parse(fields), out, fields, SimpleNamespace(plan=False, throughput=None, jobs=None), ran)


def test_the_first_stable_candidate_is_chosen(tmp_path: Path) -> None:
    ran = Ran({"0": [3.0, 3.1], "4it": [1.0, 1.1], "8it": [0.1, 0.1]})
    assert choose(ran, tmp_path) == "4it"
    assert [words[words.index("--out") + 1] for words in ran.words] == [
        str(tmp_path / "auto" / name) for name in ("k_0", "k_4it")
    ], "from the smallest on, and no further than needed"
    record = read_json(tmp_path / "auto" / "auto.json")
    assert (record["chosen"], record["by"], list(record["measured"])) == ("4it", "imp", ["0", "4it"])
    assert record["measured"]["4it"]["train"]["high"] == interval([1.0, 1.1]).high


def test_what_was_not_measured_is_not_stable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0: not measured, as the tickets ended earlier"):
        choose(Ran({"0": []}), tmp_path, candidates="[0]")


def test_test_is_never_read(tmp_path: Path) -> None:
    assert choose(Ran({"0": [1.0, 1.1]}, test=50.0), tmp_path, candidates="[0]") == "0"
    assert "test" not in read_json(tmp_path / "auto" / "auto.json")["measured"]["0"]


def test_without_a_stable_one_it_says_so_and_stops(tmp_path: Path) -> None:
    ran = Ran({"0": [3.0, 3.1], "4it": [1.0, 2.5], "8it": [2.0, 2.0]})
    with pytest.raises(UserError, match=r"none of rewind.candidates is stable .* 0: train 3.05 \[.*8it: train 2.00"):
        choose(ran, tmp_path)
    assert read_json(tmp_path / "auto" / "auto.json")["chosen"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rewind.candidates=[]"], r"rewind.candidates=\(\) is not valid"),
        (["--run.seeds=0"], r"run.seeds=\(0,\) is not valid; it must be 2 or more with rewind.at=auto"),
        (["--rewind.candidates=[0,40it]"], "rewind.at='40it' is step 40"),
    ],
)
def test_what_cannot_be_decided_is_refused_before_anything_runs(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        choose(ran := Ran({}), tmp_path, *words)
    assert not ran.words


def test_auto_is_no_rewind_point_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rewind.at='auto' is for `lth run`"):
        Experiment.at(config(rewind={"at": "auto"}), tmp_path)


def test_the_plan_prices_every_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *TINY,
        "--run.seeds=0-1",
        "--rewind.at=auto",
        "--rewind.candidates=[0,4it]",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main(["run", *words, "--plan", "--throughput=100"]) == 0
    said = capsys.readouterr().out
    # two seeds, each a dense round, a ticket from k, three children, and what is measured between these
    assert re.search(rf"0 +│ +0 │ +16 │ +{2 * (12 + 12 + 3 * 12)} │", said)
    assert re.search(rf"4it +│ +4 │ +16 │ +{2 * (12 + 8 + 3 * 8)} │", said)
    assert not (tmp_path / "run").exists()


def test_a_submission_is_one_for_each_rewind_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "available", lambda: False)
    words = ["connectivity", *TINY, "--at", "0,6it", "--out", str(tmp_path / "out"), "--cluster", "local", "--dry-run"]
    assert cli.main(["submit", *words]) == 0
    said = capsys.readouterr().out
    assert all(f"--job-name=k_{at}.pair.1.2-r00" in said for at in ("0", "6it"))
    assert not (tmp_path / "out").exists()


@pytest.mark.distributed
def test_several_ranks_measure_the_same(tmp_path: Path) -> None:
    words = [
        *TINY,
        "--train.micro_batch=50",
        "--train.eval_every=6it",
        "--prune.rounds=0",
        "--run.seeds=0",
        "--run.arms=[ticket]",
    ]
    words = ["run", *words, "--connectivity.children=2", "--out", str(tmp_path)]
    assert cli.main([*words, "--jobs=1"]) == 0
    marker = RunPaths(tmp_path).round(0, "pair.0.1", 0).line
    alone = marker.read_bytes()
    marker.unlink()
    assert cli.main([*words, "--hardware.devices=2"]) == 0
    assert marker.read_bytes() == alone


@pytest.mark.slow
def test_rewind_at_auto_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--run.seeds=0-1", "--run.arms=[ticket]", "--rewind.at=auto", "--rewind.candidates=[0,11it]"]
    words = ["run", *words, "--rewind.auto=dense", "--jobs=1", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    record = read_json(tmp_path / "run" / "auto" / "auto.json")
    chosen = record["chosen"]
    assert chosen == next(at for at, found in record["measured"].items() if found["train"]["high"] < 2)
    assert settings.load(tmp_path / "run" / "config.yaml").rewind.at == chosen
    assert not (tmp_path / "run" / "auto" / f"k_{chosen}" / "seed_0" / "ticket" / "round_01" / "result.json").exists()
    assert f"rewind.at={chosen} (an upper bound" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("l*ne.json")}
    assert cli.main(words) == 0 and before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_the_command_sweeps_rewind_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    words = ["connectivity", *TINY, "--run.seeds=0-1", "--at=0,6it", "--out", str(out), "--jobs=1"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("children") == 2 * (2 + 2), "each run's own table, and the one over both"
    assert "Instability against the rewind point" in (out / "report.html").read_text()
    rows = instabilities(read_runs([out / "k_0", out / "k_6it"]))
    assert sorted(set(rows["k"])) == [0, 6]
    assert set(rows["kind"]) == {"pair", "next", "origin"} and set(rows["n"]) == {2}
    assert (out / "report.html").exists()
    assert settings.load(out / "k_6it" / "config.yaml").connectivity.children == 3
