"""Every strategy on real processes: what the adapter hands out is what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import strategy_jobs as jobs
import torch
from strategy_fits import STEPS, net, same
from strategy_jobs import call, on_ranks

pytestmark = pytest.mark.distributed

ZERO = ["deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"]
SHARDED = [*ZERO, "fsdp2"]
PLAIN = ["sgd", "nesterov", "adamw"]


@pytest.mark.parametrize("strategy", SHARDED)
def test_training_is_that_of_ddp_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    calls = [call(jobs.training, name, optimizer) for name in ("ddp", strategy) for optimizer in PLAIN]
    calls += [call(jobs.training, name, "sgd", precision="bf16") for name in ("ddp", strategy)]
    answers = on_ranks(2, calls, tmp_path)
    pairs = [*zip(answers[:3], answers[3:6], strict=True), (answers[6], answers[7])]
    for expected, found in pairs:
        assert found["losses"] == expected["losses"]
        assert len(found["gradients"]) == len(expected["gradients"]) == STEPS
        assert all(same(a, b) for a, b in zip(found["gradients"], expected["gradients"], strict=True))
        assert same(found["weights"], expected["weights"])
        for key in set(expected["state"]) - {"step"}:
            assert same(found["state"][key], expected["state"][key])
    assert not same(answers[0]["weights"], answers[6]["weights"])  # autocast did something
    alone = jobs.training("ddp", "sgd", accumulate=2)
    assert same(alone["weights"], answers[3]["weights"])


@pytest.mark.parametrize("strategy", SHARDED)
def test_what_is_written_to_masters_is_what_the_model_computes_with(strategy: str, tmp_path: Path) -> None:
    expected, found = on_ranks(2, [call(jobs.writing, name) for name in ("ddp", strategy)], tmp_path)
    assert found["fresh"] == [True, True]
    assert found["stale"] == [False, False]  # the control: without refresh it goes on with what it had
    assert found["losses"] == expected["losses"]  # evaluating in between changed nothing


@pytest.mark.parametrize("strategy", SHARDED)
def test_state_carried_to_a_new_engine_goes_on_as_if_nothing_had_happened(strategy: str, tmp_path: Path) -> None:
    names = ["sgd", "fused adamw"]
    calls = [call(jobs.training, strategy, name) for name in names]
    calls += [call(jobs.continuing, strategy, name, keep=keep) for keep in (True, False) for name in names]
    answers = on_ranks(2, calls, tmp_path)
    for unbroken, carried, dropped in zip(answers[:2], answers[2:4], answers[4:], strict=True):
        assert same(carried, unbroken["weights"])
        assert not same(dropped, unbroken["weights"])


def dirty(weights: dict[str, torch.Tensor]) -> int:
    """Pruned places that are not +0.0."""
    kept = jobs.mask()
    return sum(int((weights[name].view(torch.int32)[~mask] != 0).sum()) for name, mask in kept.items())


@pytest.mark.parametrize("strategy", SHARDED)
def test_pruned_weights_stay_exactly_zero(strategy: str, tmp_path: Path) -> None:
    names = ["nesterov", "adam", *(["fused sgd"] if strategy in ZERO else []), "fused adamw"]
    calls = [call(jobs.masked, strategy, name) for name in names]
    *answers, control = on_ranks(2, [*calls, call(jobs.masked, strategy, "sgd", work="", steps=3)], tmp_path)
    for found in answers:
        assert found["revived"] == dirty(found["weights"]) == dirty(found["copies"]) == 0
        assert all(weights.isfinite().all() for weights in found["weights"].values())
    assert control["revived"] > 0 and dirty(control["weights"]) > 0 and dirty(control["copies"]) > 0


@pytest.mark.parametrize("strategy", SHARDED)
def test_the_clip_norm_counts_surviving_gradients_only(strategy: str, tmp_path: Path) -> None:
    options = {"clip": 0.05, "steps": 4}
    calls = [call(jobs.masked, name, "sgd", **options) for name in ("ddp", strategy)]
    calls.append(call(jobs.masked, strategy, "sgd", work="weights", **options))
    expected, found, control = on_ranks(2, calls, tmp_path)
    assert found["norms"] == pytest.approx(found["expected"], rel=1e-5)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    assert control["norms"][0] > 1.2 * found["norms"][0]
    assert min(found["norms"]) > options["clip"]
    for name, weights in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", SHARDED)
def test_accumulation_counts_and_scales_global_batches(strategy: str, tmp_path: Path) -> None:
    calls = [call(jobs.training, name, "sgd", accumulate=2) for name in ("ddp", strategy)]
    expected, found = on_ranks(2, calls, tmp_path)
    assert len(found["gradients"]) == STEPS  # once a global batch
    for name, weights in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", SHARDED)
def test_an_infinite_gradient_is_not_passed_over_in_silence(strategy: str, tmp_path: Path) -> None:
    calls = [call(jobs.diverging, name, 0.0) for name in ("ddp", strategy)]
    calls += [call(jobs.diverging, strategy, 1.0)] if strategy in ZERO else []
    expected, found, *clipped = on_ranks(2, calls, tmp_path)
    for name, weights in expected.items():
        assert torch.equal(weights.isfinite(), found[name].isfinite())
    assert not found["conv.weight"].isfinite().all()
    assert all("train.lr" in message for message in clipped)


def test_parts_make_up_every_tensor_on_three_ranks(tmp_path: Path) -> None:
    total = sum(p.numel() for p in net().parameters())
    for held in on_ranks(3, [call(jobs.sizes, strategy) for strategy in SHARDED], tmp_path):
        assert sum(held) == total
        assert max(held) < 0.5 * total


@pytest.mark.parametrize("strategy", SHARDED)
def test_a_training_leaves_nothing_behind(strategy: str, tmp_path: Path) -> None:
    (found,) = on_ranks(2, [call(jobs.leftovers, strategy)], tmp_path)
    assert found == {"kept": [0, 0, 0], "timeouts": {jobs.TIMEOUT}, "linear": True}


@pytest.mark.parametrize("ranks", [1, 2])
def test_fp16_scales_and_clips(ranks: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"precision": "fp16", "clip": 0.05, "accumulate": 3 - ranks}
    found = on_ranks(2, [call(jobs.training, "ddp", "sgd", **options)], tmp_path) if ranks == 2 else None
    single = found[0] if found else jobs.training("ddp", "sgd", **options)
    exact = jobs.training("ddp", "sgd", clip=0.05, accumulate=2)
    for name, weights in exact["weights"].items():
        assert not torch.equal(weights, single["weights"][name]) or name == "scale"
        torch.testing.assert_close(single["weights"][name], weights, rtol=0.02, atol=2e-3)
