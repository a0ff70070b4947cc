"""Zeros, clipping, precisions, running statistics and evaluation on several ranks, under every strategy."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import many_ranks
import pytest
import torch
from tiny_runs import final, ticket_mask
from torch._dynamo.utils import counters
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from lth_scale import lottery, settings, world
from lth_scale.config import Hardware
from lth_scale.data import serving
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.training import callbacks, environment, evaluation
from lth_scale.training.masking import Masking
from lth_scale.training.module import Classifier

pytestmark = pytest.mark.distributed

STRATEGIES = get_args(get_type_hints(Hardware)["strategy"])
COMMON = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=2", "--hardware.accelerator=cpu"),
    *("--train.batch_size=60", "--train.micro_batch=30", "--prune.rates.output=null", "--prune.scope=global"),
    *("--prune.rate=0.5", "--train.decay=weights", "--train.weight_decay=0.1", "--train.optimizer=nesterov"),
    *("--train.lr=0.1", "--train.duration=8it", "--train.eval_every=8it", "--rewind.at=3it"),
)
LENET = ("--model.hidden=[21,10]", "--train.clip=0.2")
RESNET = ("--model.name=resnet20", "--model.width=4", "--train.duration=3it", "--rewind.at=0", "--prune.rounds=0")


def experiment(out: Path, *more: str) -> Experiment:
    return Experiment.at(settings.parse([*COMMON, *more]), out)


def on(strategy: str, ranks: int = 2) -> tuple[str, str]:
    return f"--hardware.strategy={strategy}", f"--hardware.devices={ranks}"


Work = Callable[[], Any]


def on_every_rank(count: int, jobs: Mapping[str, Work], scratch: Path, limit: float = 280) -> dict[str, list[Any]]:
    """What each rank answers to each job, all in one launch."""
    kept = scratch / f"answers_{count}.pickle"

    def run(_: Sequence[Any]) -> None:
        torch.set_num_threads(1)
        environment.join(Hardware(accelerator="cpu", devices=count))
        try:
            answers = {name: world.gathered(job()) for name, job in jobs.items()}
            if world.first():
                kept.write_bytes(pickle.dumps(answers))
        finally:
            environment.leave()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_ranks.rank_worker, "run", run)
        many_ranks.on_ranks(count, [], limit)
    answers: dict[str, list[Any]] = pickle.loads(kept.read_bytes())
    return answers


def play(out: Path, *more: str, off: Mapping[str, type] | None = None) -> Any:
    """A whole run with some mechanisms off; the message, where a round is refused."""
    with pytest.MonkeyPatch.context() as patch:
        for mechanism, owner in (off or {}).items():
            patch.setattr(owner, mechanism, lambda *_: None)
        run = experiment(out, *more).established()
        try:
            lottery.run(run, run.tasks)
        except RuntimeError as error:
            return str(error)
    return None


# jobs


def half(out: Path, *more: str) -> Any:
    """What layers computed in, norms of the reduced gradients at three places, and calls of the optimizer's step."""
    seen: dict[str, Any] = {"dtypes": set(), "scaled": [], "unscaled": [], "clipped": []}

    def norm(module: Classifier) -> float:
        return float(torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None]).norm())

    def look(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        handle = self.model.output.register_forward_hook(lambda *a: seen["dtypes"].add(str(a[2].dtype)))
        try:
            return step(self, batch, index)
        finally:
            handle.remove()

    def backward(self: Classifier) -> None:
        seen["scaled"].append(norm(self))
        if len(seen["scaled"]) == 5:  # in the dense round
            next(iter(self.parameters())).grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]

    def clip(self: Classifier, optimizer: Any, *rest: Any, **named: Any) -> None:
        seen["unscaled"].append(norm(self))
        clipping(self, optimizer, *rest, **named)
        seen["clipped"].append(norm(self))

    step, clipping = Classifier.training_step, Classifier.configure_gradient_clipping
    with pytest.MonkeyPatch.context() as patch, steps_counted() as rates:
        patch.setattr(Classifier, "training_step", look)
        patch.setattr(Classifier, "on_after_backward", backward)
        patch.setattr(Classifier, "configure_gradient_clipping", clip)
        assert play(out, *more) is None
    return seen | {"rates": rates}


@contextmanager
def steps_counted() -> Iterator[list[float]]:
    """The learning rates of the steps that optimizers make."""
    rates: list[float] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        yield rates
    finally:
        handle.remove()


def statistics(out: Path, *more: str, averaged: bool = True) -> Any:
    """Running statistics of a rank before and after each step's averaging."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def stepped(self: callbacks.Statistics, *rest: Any) -> None:
        before = torch.cat(self._buffers).clone()
        if averaged:
            average(self, *rest)
        seen.append((before, torch.cat(self._buffers)))

    average = callbacks.Statistics.on_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Statistics, "on_step", stepped)
        assert play(out, *more) is None
    return seen


def compiled(out: Path, *more: str) -> int:
    """How many graphs torch has compiled for a whole run."""
    torch.compiler.reset()  # a strategy may reuse those of the one before
    counters.clear()
    assert play(out, *more, "--hardware.compile=true") is None
    return int(counters["stats"]["unique_graphs"])


BATCHES = (7, 100, 250, 1000)


def measured(run: Experiment) -> Any:
    """By size of the batches: (loss, accuracy, samples), forward passes, and what the mean of means over ranks is."""
    found = {}
    model = run.model(3)
    for size in BATCHES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "BATCH", size)
            serving._kept.cache_clear()
            passes: list[int] = []
            handle = model.register_forward_hook(lambda *a: passes.append(len(a[1][0])))  # noqa: B023
            measure = evaluation.evaluate(model, run.dataset, "test", torch.device("cpu"))
            handle.remove()
            serving._kept.cache_clear()
        found[size] = (measure, passes)
    return found


# two ranks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """Every strategy on two ranks, in one launch; and one process."""
    root = tmp_path_factory.mktemp("two")
    assert play(root / "one", *LENET) is None
    assert play(root / "unclipped", *LENET, "--train.clip=0") is None
    return root, on_every_rank(2, work(root), root)


def work(root: Path) -> dict[str, Work]:
    jobs: dict[str, Work] = {}

    def job(name: str, what: Callable[..., Any], *more: str, **options: Any) -> None:
        jobs[name] = lambda: what(root / name, *more, **options)

    for s in STRATEGIES:
        for precision in ("fp32", "bf16"):
            job(f"{s} {precision}", play, *LENET, *on(s), f"--hardware.precision={precision}")
        off = {"gradients": Masking, "weights": Masking}
        job(f"{s} unmasked", play, *LENET, *on(s), "--prune.rounds=1", off=off)
        job(f"{s} statistics", statistics, *RESNET, *on(s))
        job(f"{s} apart", statistics, *RESNET, *on(s), averaged=False)
    job("ddp fp16", half, *LENET, *on("ddp"), "--hardware.precision=fp16")
    return jobs


def assert_zeros(run: Experiment) -> None:
    """The zero proof of the rounds that are on disk, and masks that only shrink."""
    for number in (1, 2):
        state, mask = final(run, "ticket", number), ticket_mask(run, number)
        for name, kept in mask.items():
            assert not state.weights[name][~kept].view(torch.int32).any()
            assert state.weights[name][kept].any()
    assert ticket_mask(run, 2).within(ticket_mask(run, 1))
    assert [ticket_mask(run, number).kept for number in (1, 2)] == [row.kept for row in run.plan[1:]]


def overlap(one: Experiment, other: Experiment, number: int) -> float:
    """Share of the survivors that two masks of equal size have in common."""
    masks = [ticket_mask(run, number) for run in (one, other)]
    assert masks[0].counts().keys() == masks[1].counts().keys() and masks[0].kept == masks[1].kept
    return sum(int((masks[0][name] & masks[1][name]).sum()) for name in masks[0]) / masks[0].kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zeros_hold_with_clipping_decay_and_two_groups(
    strategy: str, precision: str, two: tuple[Path, dict[str, list[Any]]]
) -> None:
    root, answers = two
    assert answers[f"{strategy} {precision}"] == [None, None]
    run, one = (experiment(root / name, *LENET) for name in (f"{strategy} {precision}", "one"))
    assert_zeros(run)
    assert overlap(run, one, 1) > (0.99 if precision == "fp32" else 0.95)
    exact, found = final(one, "ticket", 0).weights, final(run, "ticket", 0).weights
    tolerance = 1e-5 if precision == "fp32" else 5e-3
    for name, weights in exact.items():
        torch.testing.assert_close(found[name], weights, rtol=tolerance, atol=tolerance)
    assert precision == "fp32" or any(not torch.equal(found[n], exact[n]) for n in exact), "it computed in bfloat16"


def test_clipping_made_a_difference(two: tuple[Path, dict[str, list[Any]]]) -> None:
    clipped, free = (final(experiment(two[0] / name, *LENET), "ticket", 0).weights for name in ("one", "unclipped"))
    assert max(float((clipped[n] - free[n]).abs().max()) for n in free) > 0.05


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_masking_every_strategy_refuses_the_round(
    strategy: str, two: tuple[Path, dict[str, list[Any]]]
) -> None:
    for message in two[1][f"{strategy} unmasked"]:
        assert message is not None and "are not zero" in message and "weight" in message


# fp16


def assert_half(seen: dict[str, Any], clip: float) -> None:
    """Layers computed in half; gradients were unscaled, then clipped; the step with an infinite one was left out."""
    assert seen["dtypes"] == {"torch.float16"}
    assert len(seen["clipped"]) == 8 + 5 + 5 and len(seen["rates"]) == 8 + 5 + 5 - 1
    scales = [s / u for s, u in zip(seen["scaled"], seen["unscaled"], strict=True) if math.isfinite(u)]
    assert len(scales) == 8 + 5 + 5 - 1
    assert scales[:4] == pytest.approx([65536.0] * 4, rel=1e-3)
    assert scales[4:7] == pytest.approx([32768.0] * 3, rel=1e-3), "the scale fell"
    finite = [(u, c) for u, c in zip(seen["unscaled"], seen["clipped"], strict=True) if math.isfinite(u)]
    assert all(c == pytest.approx(min(u, clip), rel=1e-3) for u, c in finite)
    assert max(u for u, _ in finite) > 2 * clip


def test_fp16_under_ddp(two: tuple[Path, dict[str, list[Any]]]) -> None:
    root, answers = two
    for seen in answers["ddp fp16"]:
        assert_half(seen, 0.2)
    assert_zeros(experiment(root / "ddp fp16", *LENET))


def test_fp16_alone_counts_a_step_that_is_left_out(tmp_path: Path) -> None:
    """k and the schedule count global batches, whether or not the optimizer made a step of one."""
    schedule = ("--train.schedule=cosine", "--train.micro_batch=60")
    assert play(tmp_path / "fp32", *LENET, *schedule) is None
    with steps_counted() as every:
        assert play(tmp_path / "again", *LENET, *schedule) is None
    seen = half(tmp_path / "fp16", *LENET, *schedule, "--hardware.precision=fp16")
    assert_half(seen, 0.2)
    assert seen["rates"] == every[:4] + every[5:]
    run = experiment(tmp_path / "fp16", *LENET, *schedule)
    assert_zeros(run)
    assert final(run, "ticket", 0).step == 8
    exact = final(experiment(tmp_path / "fp32", *LENET), "ticket", 0).weights
    assert all(weights.isfinite().all() for weights in final(run, "ticket", 0).weights.values())
    assert any(not torch.equal(weights, exact[n]) for n, weights in final(run, "ticket", 0).weights.items())


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize(
    ("word", "reason"), [("precision=fp16", "no gradient scaler"), ("channels_last=true", "row after row")]
)
def test_what_shards_cannot_do_is_refused(word: str, reason: str, strategy: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        experiment(tmp_path, *on(strategy), f"--hardware.{word}")
    experiment(tmp_path, *on("ddp"), f"--hardware.{word}")


# torch.compile

COMPILED = [s for s in STRATEGIES if s != "deepspeed_stage_3"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_model_finds_the_same_tickets(tmp_path: Path) -> None:
    """Under plain names, with zeros proven, and up to the rounding of other kernels."""
    settled = [*LENET, "--train.lr=0.05"]
    assert play(tmp_path / "plain", *settled) is None
    alone: dict[str, Work] = {"alone": lambda: compiled(tmp_path / "alone", *settled)}
    made = on_every_rank(1, alone, tmp_path, limit=400)
    jobs = {s: lambda s=s: compiled(tmp_path / s, *settled, *on(s)) for s in COMPILED}  # type: ignore[misc]
    made |= on_every_rank(2, jobs, tmp_path, limit=400)
    plain = experiment(tmp_path / "plain", *settled)
    for name, compilations in made.items():
        assert set(compilations) == {2}, f"{name} was compiled, for training and for evaluation, once for all rounds"
        run = experiment(tmp_path / name, *settled)
        assert_zeros(run)
        for number in (1, 2):
            assert ticket_mask(run, number).keys() == ticket_mask(plain, number).keys()
            assert overlap(run, plain, number) > 0.99
        assert final(run, "ticket", 2).entries() == final(plain, "ticket", 2).entries()
        stored = [path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert len(stored) > 10 and not any(b"_orig_mod" in text for text in stored)


def test_zero_3_refuses_to_be_compiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DeepSpeed gathers each layer's weights in hooks"):
        experiment(tmp_path, *on("deepspeed_stage_3"), "--hardware.compile=true")
    for strategy in COMPILED:
        experiment(tmp_path, *on(strategy), "--hardware.compile=true")


# BatchNorm


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_running_statistics_are_the_mean_over_ranks(strategy: str, two: tuple[Path, dict[str, list[Any]]]) -> None:
    for mine, theirs in zip(*two[1][f"{strategy} statistics"], strict=True):
        (here, after), (there, beside) = mine, theirs
        assert torch.equal(after, beside) and torch.equal(after, (here + there) / 2)
        assert not torch.equal(here, there), "each has seen other images"
    last = [seen[-1][1] for seen in two[1][f"{strategy} apart"]]
    assert not torch.equal(*last), "without averaging they part"


def test_synchronised_batchnorm_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch synchronises batch statistics on GPUs only"):
        experiment(tmp_path, *RESNET, *on("ddp"), "--train.sync_batchnorm=true")


# evaluation


def test_every_image_counts_once_at_any_rank_count_and_batch_size(tmp_path: Path) -> None:
    run = experiment(tmp_path, *LENET)
    images = run.dataset.normalise(run.dataset.test.images)
    with torch.no_grad():
        logits = run.model(3).eval()(images)
    labels = run.dataset.test.labels
    hits = int((logits.argmax(1) == labels).sum())
    loss = float(functional.cross_entropy(logits, labels, reduction="none").double().mean())
    alone = measured(run)
    for size, ((mean, accuracy, samples), passes) in alone.items():
        assert (accuracy, samples, sum(passes)) == (hits / 597, 597, 597)
        assert mean == pytest.approx(loss, rel=1e-6)
        assert len(passes) == -(-597 // size)
    for ranks in (2, 3):
        answers = on_every_rank(ranks, {"measured": lambda: measured(run)}, tmp_path)["measured"]
        for size, (expected, passes) in alone.items():
            every = [answer[size] for answer in answers]
            assert all(measure == expected for measure, _ in every)
            assert {len(theirs) for _, theirs in every} == {-(-len(passes) // ranks)}, "ranks compute in step"
            blank = [2] * (-len(passes) % ranks)  # passes of two images that have no weight
            assert sorted(n for _, theirs in every for n in theirs) == sorted([*passes, *blank])
