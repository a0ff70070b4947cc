"""Criteria in a run: each gets the values that it names, on any number of ranks; and masks of a dense network's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from proofs import DONE
from states import spawned
from streamed_folders import NAME, make_folder
from tiny_runs import dense, final, play, theta, ticket_mask, tiny

from lth_scale import checkpoint, data, lottery, ranking, saliency
from lth_scale.config import Prune
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.pruning import criteria, plan, scopes
from lth_scale.saliency import Given
from lth_scale.tasks import Task

Named = dict[str, torch.Tensor]
QUICK = {"duration": "12it", "eval_every": "12it", "batch_size": 100, "lr": 0.05}
FIRST = Task(0, 0, "ticket")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The dense round only, rewound to step 7; never changed."""
    return play(tiny(train=QUICK, rewind={"at": "7it"}), tmp_path_factory.mktemp("dense"), dense)


def under(run: Experiment, **prune: object) -> Experiment:
    """The same run as if it had been asked to prune in another way."""
    return Experiment(replace(run.config, prune=Prune(**prune)), run.paths)  # type: ignore[arg-type]


def mask_of(run: Experiment, task: Task = FIRST) -> Mask:
    """The mask that a round leaves."""
    found = checkpoint.latest(run.paths.round(0, "ticket", task.round).checkpoints)
    assert found is not None
    return lottery.next_mask(run, task, run.ticket_mask(task), found[1])


def batches(run: Experiment, count: int) -> list[saliency.Batch]:
    """The first ones of the order, as they are."""
    settings = {"start": 0, "stop": count, "order": run.stream(0, "order"), "augment": 0, "noise": 0}
    return list(data.training_batches(run.dataset, run.config.data, run.config.train, **settings))  # type: ignore[arg-type]


def before(run: Experiment, name: str) -> Named:
    """Scores at the rewind point."""
    net, state = run.model(0), theta(run, 7)
    net.load_state_dict(state.weights | state.buffers)
    return saliency.methods[name](Given(net, run.prunable, batches(run, 1), run.description.shape, run.config.prune, 1))


SCORES: dict[str, Callable[[Experiment], Named]] = {
    "magnitude": lambda run: {n: w.abs() for n, w in final(run, "ticket", 0).weights.items()},
    "magnitude_at_init": lambda run: {n: w.abs() for n, w in theta(run, 0).weights.items()},
    "magnitude_increase": lambda run: {
        n: w.abs() - theta(run, 0).weights[n].abs() for n, w in final(run, "ticket", 0).weights.items()
    },
    "movement": lambda run: {
        n: (w - theta(run, 0).weights[n]).abs() for n, w in final(run, "ticket", 0).weights.items()
    },
    "random": lambda run: {
        p.name: ranking.noise(run.stream(0, "mask"), 0, p.name, 0, p.numel).view(p.shape) for p in run.prunable
    },
    **{name: lambda run, name=name: before(run, name) for name in ("snip", "grasp", "synflow")},  # type: ignore[misc]
}


@pytest.mark.parametrize("criterion", list(criteria))
def test_a_mask_keeps_the_highest_scores(criterion: str, trained: Experiment) -> None:
    run = under(trained, criterion=criterion, rate=0.4)
    mask, scores = mask_of(run), SCORES[criterion](run)
    kept, gone = (torch.cat([scores[n][mask[n] == side] for n in mask]) for side in (True, False))
    assert mask.kept == run.plan[1].kept and float(kept.min()) >= float(gone.max())
    others = [SCORES[other](run) for other in SCORES if other != criterion]
    for other in others:  # the control: these scores are of this criterion alone
        kept, gone = (torch.cat([other[n][mask[n] == side] for n in mask]) for side in (True, False))
        assert float(kept.min()) < float(gone.max())
    assert not run.paths.round(0, "ticket", 0).saliency.exists()


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_more_batches_are_other_scores(name: str, trained: Experiment) -> None:
    asked = [mask_of(under(trained, criterion=name, batches=count)) for count in (0, 1, 2)]
    assert asked[0] == asked[1] != asked[2]  # 10 samples of each of 10 classes are one batch of 100


ON_RANKS = [
    *({"criterion": name} for name in criteria),
    {"criterion": "movement", "scope": "erk", "schedule": "target", "to": 0.1, "rounds": 2},
    {"criterion": "snip", "scope": "uniform", "schedule": "list", "densities": (0.3, 0.2)},
    {"scope": "n:m"},
]


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 4])
def test_masks_are_equal_on_any_number_of_ranks(world: int, trained: Experiment, tmp_path: Path) -> None:
    alone = [mask_of(under(trained, **asked)).sha256() for asked in ON_RANKS]

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        for asked, expected in zip(ON_RANKS, alone, strict=True):
            mask = mask_of(under(trained, **asked))
            assert rank or mask.sha256() == expected, asked

    assert spawned(world, tmp_path / "group", work) == [DONE] * world


RUNS = {
    "magnitude": {"oneshot": True, "rounds": 2, "rate": 0.5},
    "movement": {"oneshot": True, "schedule": "list", "densities": (0.6, 0.2)},
    "random": {"oneshot": True, "rounds": 2},
    "snip": {"schedule": "target", "to": 0.1, "rounds": 2, "scope": "erk"},
    "synflow": {"schedule": "target", "to": 0.1, "rounds": 2},
}


SHORT = QUICK | {"duration": "8it", "eval_every": "8it"}


@pytest.mark.parametrize("criterion", RUNS)
def test_one_shot_masks_come_from_the_dense_network(criterion: str, tmp_path: Path) -> None:
    run = play(tiny(train=SHORT, rewind={"at": "7it"}, prune={"criterion": criterion, **RUNS[criterion]}), tmp_path)
    masks = [ticket_mask(run, number) for number in (1, 2)]
    assert [mask.kept for mask in masks] == [row.kept for row in plan(run.prunable, run.config.prune)[1:]]
    assert masks[1] == mask_of(run, Task(1, 0, "ticket"))
    if criterion != "synflow":  # which finds each density on a way of its own
        assert masks[1].within(masks[0])
    if run.config.prune.scope == "global" and criterion != "synflow":
        scores = SCORES[criterion](run)
        kept, gone = (torch.cat([scores[n][masks[1][n] == side] for n in masks[1]]) for side in (True, False))
        assert float(kept.min()) >= float(gone.max())


def test_rounds_of_one_shot_and_of_many_part_after_the_first(tmp_path: Path) -> None:
    prune = {"rounds": 2, "rate": 0.5}
    runs = [play(tiny(train=SHORT, prune={**prune, "oneshot": once}), tmp_path / str(once)) for once in (True, False)]
    first, second = ([ticket_mask(run, number) for run in runs] for number in (1, 2))
    assert first[0] == first[1] and second[0] != second[1] and second[0].kept == second[1].kept


def test_the_one_shot_masks_are_made_anew_from_what_is_there(tmp_path: Path) -> None:
    run = play(tiny(train=SHORT, prune={"oneshot": True, "rounds": 2, "criterion": "random"}), tmp_path)
    path = run.paths.round(0, "ticket", 2).mask
    before = path.read_bytes()
    path.unlink()
    lottery.run(run, run.tasks)
    assert path.read_bytes() == before


def test_iterative_rounds_draw_anew() -> None:
    """Random pruning in rounds: of the round's own numbers, so that round 2 does not go on with those of round 1."""
    numbers = [ranking.noise(1, number, "fc1.weight", 0, 1000) for number in (0, 1)]
    assert not torch.equal(*numbers)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_scores_of_a_residual_network_on_streamed_images(criterion: str, tmp_path: Path) -> None:
    """Images come as uint8, in micro-batches, and not augmented: the scores are of the plain ones, normalised."""
    make_folder(tmp_path / "shards", train=[7, 13, 11, 10], test=[6, 5])
    source = {"name": NAME, "dir": str(tmp_path / "shards"), "crop": 8, "lanes": 4, "window": 3, "workers": 0}
    run = play(
        tiny(
            data={**source, "augment": "resized_crop"},
            train={**SHORT, "batch_size": 8, "schedule": "cosine", "micro_batch": 4},
            model={"name": "resnet8", "width": 4, "hidden": ()},
            rewind={"at": "2it"},
            prune={"rounds": 1, "criterion": criterion, "batches": 2},
        ),
        tmp_path / "run",
        dense,
    )
    served = list(ranking.Served(run, 0, torch.device("cpu")))
    plain = data.load(replace(run.config.data, augment="none"))
    assert [len(labels) for _, labels in served] == [4] * 4 and served[0][0].dtype == torch.float32
    images = data.training_batches(
        plain, plain.data, run.config.train, start=0, stop=2, order=run.stream(0, "order"), augment=5, noise=0
    )
    assert all(torch.equal(mine, plain.normalise(x)) for (mine, _), (x, _) in zip(served, images, strict=True))
    net, state = run.model(0), theta(run, 2)
    net.load_state_dict(state.weights | state.buffers)
    given = Given(net, run.prunable, served, run.description.shape, run.config.prune, 1)
    scores, mask = saliency.methods[criterion](given), ticket_mask(run, 1)
    kept, gone = (torch.cat([scores[n][mask[n] == side] for n in mask]) for side in (True, False))
    assert mask.kept == run.plan[1].kept and float(kept.min()) >= float(gone.max())


def test_every_scope_and_criterion_is_tried_on_ranks() -> None:
    asked = {str(each.get("criterion", "magnitude")) for each in ON_RANKS}
    assert asked == set(criteria)
    assert {"erk", "uniform", "n:m"} <= {each.get("scope") for each in ON_RANKS} <= {*scopes, None}
