"""PruningCallback on a module, a loader and a Trainer that are not ours: the science, exactly."""

from __future__ import annotations

import importlib
import itertools
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from tiny_runs import captured
from torch.optim import lr_scheduler

import lth_scale
from lth_scale import PruningCallback, pruning, shards
from lth_scale.checkpoint import Source, State
from lth_scale.config import Prune, Rates
from lth_scale.masks import Mask
from lth_scale.models import prunable
from lth_scale.training.masking import Masking
from lth_scale.training.tickets import Tickets

pytestmark = pytest.mark.filterwarnings("error:You're resuming")  # Lightning's own way would lose the place in the data

PL = "pytorch_lightning"
NOTHING = 1e-9  # a rate at which no weight is removed


def final(module: Any) -> State:
    return captured(module, module.trainer.optimizers, module.trainer.global_step)


class Spy:
    """What another callback sees: the state before each step."""

    def __init__(self, namespace: str = PL) -> None:
        lightning = sys.modules[namespace]

        class Watch(lightning.Callback):  # type: ignore[name-defined, misc]
            def on_train_batch_start(inner, trainer: Any, module: Any, batch: Any, index: int) -> None:
                self.states.append(captured(module, trainer.optimizers, trainer.global_step))

        self.states: list[State] = []
        self.callback = Watch()


@pytest.mark.parametrize("namespace", foreign.NAMESPACES)
@pytest.mark.parametrize("optimizer", [foreign.sgd, foreign.adamw])
def test_three_rounds(namespace: str, optimizer: Any, tmp_path: Path) -> None:
    tickets, masks, theta = Tickets(tmp_path / "t"), [], None
    for number in range(3):
        callback, spy = PruningCallback(tmp_path / "t", rate=0.2, rewind="8it"), Spy(namespace)
        make = lambda number=number: foreign.module(namespace, optimizer, seed=number)  # noqa: E731
        module = foreign.fit(namespace, tmp_path, [callback, spy.callback], make)
        end, started = final(module), spy.states[0]
        theta = theta or next(state for state in spy.states if state.step == 8)
        masks.append(callback.mask)
        if number == 0:
            assert tickets.theta().differences(theta) == []
        else:
            assert started.differences(theta.masked(callback.mask)) == []
            assert started.step == 8 and started.buffers["net.norm.num_batches_tracked"] == 8
            assert started.optimizer["net.first.weight"].keys() >= (
                {"momentum_buffer"} if optimizer is foreign.sgd else {"exp_avg", "exp_avg_sq", "step"}
            )
        assert module.trainer.global_step == 18 and module.trainer.current_epoch == 3
        for name, kept in callback.mask.items():
            held = [end.weights[name], *(t for t in end.optimizer[name].values() if t.shape == kept.shape)]
            assert all(int(tensor[~kept].count_nonzero()) == 0 for tensor in held)
            assert int(end.weights[name][kept].count_nonzero()) == int(kept.sum())
    masks.append(tickets.mask(3, masks[0].shapes))
    tensors = [p for p in prunable(module) if p.name in masks[0]]
    assert [mask.kept for mask in masks] == [planned.kept for planned in pruning.plan(tensors, Prune(rounds=3))]
    assert all(later.within(earlier) for earlier, later in itertools.pairwise(masks))
    result = json.loads(tickets.round(2).result.read_text())
    assert result["density"] == masks[2].density and result["next"]["kept"] == masks[3].kept
    assert result["clock"] == {"start": 8, "end": 18} and result["zeros"]["pruned"] == masks[2].numel - masks[2].kept


def test_what_is_pruned_in_a_foreign_module(tmp_path: Path) -> None:
    untouched = foreign.module(PL)
    for _ in range(2):
        callback = PruningCallback(tmp_path / "t", rate=0.5)
        module = foreign.fit(PL, tmp_path, [callback])
    assert {*callback.mask} == {*foreign.PRUNED} and callback.mask.numel == foreign.NUMEL
    assert callback.mask["net.attention.in_proj_weight"].shape == (24, 8)
    assert module.net.second.weight is module.net.first.weight
    assert torch.equal(module.net.frozen.weight, untouched.net.frozen.weight)
    listed = json.loads((tmp_path / "t/round_01/result.json").read_text())["unpruned"]
    assert listed["net.frozen.weight"] == listed["net.frozen.bias"] == "frozen"
    named = {name for name, _ in module.named_parameters()}
    assert named == {*callback.mask, *listed} and not {*callback.mask} & {*listed}


def test_layer_scope_with_rates_by_kind(tmp_path: Path) -> None:
    for number in range(2):
        callback = PruningCallback(tmp_path / "t", rate=0.5, scope="layer", rates={"conv": 0.1})
        foreign.fit(PL, tmp_path, [callback], max_epochs=1)
        assert callback.round == number
    assert [kept / numel for kept, numel in callback.mask.counts().values()] == [0.5] * 5
    assert callback._prune == Prune(rate=0.5, scope="layer", rates=Rates(conv=0.1))


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "one_cycle": lambda o: {"scheduler": lr_scheduler.OneCycleLR(o, 0.2, total_steps=30), "interval": "step"},
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 0.3),
    "lambda": lambda o: {"scheduler": lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s)), "interval": "step"},
    "warmup": lambda o: {
        "scheduler": lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(o, 14)], [4]
        ),
        "interval": "step",
    },
    "plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
        "monitor": "validation",
    },
    "plateau_by_step": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, patience=1, threshold=10.0),
        "monitor": "loss",
        "interval": "step",
    },
}


def replayed(folder: Path, rewind: str, make: Any, **settings: Any) -> tuple[Any, Any]:
    """Rounds 0 and 1, in which nothing is pruned."""
    rounds = []
    for _ in range(2):
        rounds.append(foreign.fit(PL, folder, [PruningCallback(folder / "t", NOTHING, rewind)], make, **settings))
    return rounds[0], rounds[1]


def assert_same_end(dense: Any, again: Any, skipped: int) -> None:
    """Round 1 ends in the bits that round 0 ended in, having seen the batches that round 0 saw after k."""
    assert final(again).differences(final(dense)) == []
    assert again.seen == dense.seen[skipped:] and len(set(dense.seen)) > 6
    rates = [[group["lr"] for group in module.trainer.optimizers[0].param_groups] for module in (dense, again)]
    assert rates[0] == rates[1]
    assert (
        again.trainer.fit_loop.epoch_loop._batches_that_stepped
        == dense.trainer.fit_loop.epoch_loop._batches_that_stepped
    )


@pytest.mark.parametrize("optimizer", [foreign.sgd, foreign.adamw])
@pytest.mark.parametrize(("rewind", "skipped"), [("0", 0), ("8it", 8), ("6it", 6), ("1ep", 6), ("17it", 17)])
def test_with_nothing_pruned_a_round_repeats_the_dense_one(
    optimizer: Any, rewind: str, skipped: int, tmp_path: Path
) -> None:
    assert_same_end(*replayed(tmp_path, rewind, lambda: foreign.module(PL, optimizer)), skipped)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("rewind", "skipped"), [("8it", 8), ("1ep", 6)])
def test_schedules_go_on_where_they_were(schedule: str, rewind: str, skipped: int, tmp_path: Path) -> None:
    make = lambda: foreign.module(PL, foreign.sgd, SCHEDULES[schedule])  # noqa: E731
    dense, again = replayed(tmp_path, rewind, make, val=True)
    assert_same_end(dense, again, skipped)
    assert dense.trainer.optimizers[0].param_groups[0]["lr"] != 0.1


@pytest.mark.parametrize(("rewind", "skipped"), [("2it", 4), ("3it", 6), ("4it", 8)])
def test_accumulated_batches(rewind: str, skipped: int, tmp_path: Path) -> None:
    make = lambda: foreign.module(PL)  # noqa: E731
    assert_same_end(*replayed(tmp_path, rewind, make, accumulate_grad_batches=2), skipped)


def test_validation_in_mid_epoch_at_the_rewind_point(tmp_path: Path) -> None:
    make = lambda: foreign.module(PL, foreign.sgd, SCHEDULES["plateau_by_step"])  # noqa: E731
    assert_same_end(*replayed(tmp_path, "8it", make, val=True, val_check_interval=2), 8)


def test_steps_end_training_too(tmp_path: Path) -> None:
    make = lambda: foreign.module(PL)  # noqa: E731
    dense, again = replayed(tmp_path, "8it", make, max_steps=11, max_epochs=-1)
    assert_same_end(dense, again, 8)
    assert len(again.seen) == 3


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    def make() -> Any:
        module = foreign.module(PL)
        embed = list(module.net.embed.parameters())
        rest = [p for p in module.net.parameters() if not any(p is e for e in embed)]
        module.automatic_optimization = False
        module.configure_optimizers = lambda: [torch.optim.Adam(embed, 0.01), torch.optim.SGD(rest, 0.1, momentum=0.9)]
        forward = module.training_step

        def training_step(batch: Any, batch_idx: int) -> None:
            for optimizer in module.optimizers():
                optimizer.zero_grad()
                module.manual_backward(forward(batch, batch_idx))
                optimizer.step()

        module.training_step = training_step
        return module

    dense, again = replayed(tmp_path, "16it", make)  # Lightning counts a step of either optimizer
    assert dense.trainer.global_step == again.trainer.global_step == 36
    assert final(again).differences(final(dense)) == []
    assert again.seen == dense.seen[16:]


def scaled() -> Any:
    plugin = importlib.import_module(f"{PL}.plugins").MixedPrecision
    return plugin("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=5))


@pytest.mark.parametrize("how", [{"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"plugins": scaled}])
def test_other_precisions(how: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for number in range(3):
        settings = {key: value() if callable(value) else value for key, value in how.items()}
        callback = PruningCallback(tmp_path / "t", NOTHING, "8it")
        ends.append(foreign.fit(PL, tmp_path, [callback], **settings))
        assert ends[-1].seen == ends[0].seen[0 if number == 0 else 8 :]
    assert final(ends[1]).differences(final(ends[0])) == final(ends[2]).differences(final(ends[0])) == []
    if "plugins" in how:
        assert [end.trainer.precision_plugin.scaler.get_scale() for end in ends] == [16.0] * 3


def test_gradients_of_pruned_weights_are_gone_before_clipping(tmp_path: Path) -> None:
    norms = []

    class Watch(sys.modules[PL].Callback):  # type: ignore[name-defined, misc]
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            grads = [(n, p.grad) for n, p in module.named_parameters() if p.grad is not None]
            norms.append(sum(float(g.pow(2).sum()) for _, g in grads) ** 0.5)
            assert all(not g[~callback.mask[n]].any() for n, g in grads if n in callback.mask)

    for _ in range(2):
        callback = PruningCallback(tmp_path / "t", 0.9, "1ep")
        foreign.fit(PL, tmp_path, [callback, Watch()], gradient_clip_val=1e-3)
    assert norms[-11:] == pytest.approx([1e-3] * 11, rel=1e-3)  # masked after clipping, they would be shorter


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["callback.py", str(tmp_path)])
    runpy.run_path(str(Path(__file__).parent.parent / "examples/callback.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%")[0] for line in lines[:3]] == ["round 0: 100.0 ", "round 1:  50.0 ", "round 2:  25.0 "]
    assert all(float(line.split()[-1]) > 0.85 for line in lines[:3])
    source = (Path(__file__).parent.parent / "examples/callback.py").read_text()
    assert source.count("  # ticket\n") == 3


def test_a_reused_trainer_trains(tmp_path: Path) -> None:
    callback, module = PruningCallback(tmp_path / "t", NOTHING, "1ep"), foreign.module(PL)
    trainer = foreign.trainer(PL, tmp_path, callback)  # alone, not in a list
    for _ in range(2):
        trainer.fit(module, foreign.loader())
    assert module.seen[18:] == module.seen[6:18]


@pytest.mark.parametrize("namespace", foreign.NAMESPACES)
def test_both_trainers_take_it_for_their_own(namespace: str) -> None:
    assert issubclass(PruningCallback, sys.modules[namespace].Callback)


def two_rounds(folder: Path) -> None:
    for _ in range(3):
        foreign.fit(PL, folder, [PruningCallback(folder / "t", 0.2, "8it")])


def broken_restore(part: str) -> Any:
    """A rewind that forgets one thing."""
    right = shards.restore

    def restore(held: shards.Shards, source: Source) -> None:
        now = shards.capture(held, source.step)
        right(held, replace(source.whole(), **{part: getattr(now, part)}))

    return restore


@pytest.mark.parametrize("part", ["weights", "buffers", "optimizer"])
def test_control_a_rewind_that_forgets_is_caught(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "restore", broken_restore(part))
    with pytest.raises(RuntimeError, match=rf"does not start from its source state.*{part}/"):
        two_rounds(tmp_path)


def test_control_a_rewind_that_aliases_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[State] = []
    right = shards.restore

    def aliasing(held: shards.Shards, source: Source) -> None:
        right(held, source)
        kept.append(source.whole())
        for name, parameter in held.module.named_parameters():
            parameter.data = kept[0].weights[name].mul_(kept[-1].weights[name] != 0)

    monkeypatch.setattr(shards, "restore", aliasing)
    with pytest.raises(RuntimeError, match="does not start from its source state"):
        two_rounds(tmp_path)
    assert len(kept) == 2  # in the first later round an alias still looks right


@pytest.mark.parametrize("off", [["gradients"], ["weights", "gradients"]])
def test_control_without_masking_weights_or_momentum_come_back(
    off: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in off:
        monkeypatch.setattr(Masking, method, lambda self: None)
    with pytest.raises(RuntimeError, match=r"are not zero: .*net.first.weight"):
        two_rounds(tmp_path)
    assert not (tmp_path / "t/round_01/result.json").exists()


def test_the_package_stays_light_and_exports_two_names() -> None:
    code = "import sys, lth_scale; assert 'torch' not in sys.modules; assert not hasattr(lth_scale, 'other')"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert lth_scale.open_run.__module__ == "lth_scale.runs"
    assert isinstance(Mask({}), Mask)
