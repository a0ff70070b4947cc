"""Ranks are killed, stopped, frozen and robbed of files in the middle of real runs; the same command ends in the same
bits, under every strategy.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from commands import cut, flip
from failing_ranks import (
    Fault,
    Run,
    at_step,
    before_removal,
    both,
    die,
    die_within,
    hang,
    in_file,
    slow_from,
    without_statistics,
)
from proofs import assert_same, gone, kill, leftovers, proof

from lth_scale import checkpoint
from lth_scale.checkpoint import MANIFEST
from lth_scale.checkpoint.layout import file_name
from lth_scale.data import serving
from lth_scale.paths import RunPaths
from lth_scale.training import environment

pytestmark = [pytest.mark.distributed, pytest.mark.kill]

K, T, EVERY = 2, 14, 5  # steps: theta_k, a round's end, the grid of checkpoints
TOTAL = T + T - K  # of two rounds
FILES = 3  # checkpoints of a round: at 5, 10 and 14
CONTINUES = "; the same command continues\n"
COMMON = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=1", "--hardware.accelerator=cpu"),
    *("--train.batch_size=60", f"--train.duration={T}it", f"--rewind.at={K}it", f"--train.eval_every={T}it"),
    *(f"--train.checkpoint_every={EVERY}it", "--train.decay=weights", "--train.weight_decay=0.01"),
    *("--prune.rates.output=null", "--prune.scope=global"),
)
LENET, RESNET = "lenet adamw ema", "resnet nesterov"
NETS = {
    LENET: (
        *("--model.hidden=[21,10]", "--train.optimizer=adamw", "--train.lr=0.002"),
        *("--train.ema=0.9", "--prune.weights=ema"),
    ),
    RESNET: (
        *("--model.name=resnet8", "--model.width=4", "--train.optimizer=nesterov", "--train.lr=0.05"),
        "--data.augment=crop_flip",
    ),
}
ZERO_1, ZERO_2, ZERO_3 = (f"deepspeed_stage_{stage}" for stage in (1, 2, 3))


@pytest.fixture(scope="module", autouse=True)
def every_rank_evaluates() -> Iterator[None]:
    """Batches so small that each has some: what its own buffers hold is seen in the curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "BATCH", 100)
        yield


def words(net: str, strategy: str, *more: str) -> list[str]:
    return [*COMMON, *NETS[net], f"--hardware.strategy={strategy}", *more]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Undisturbed runs, whose bits are those of every strategy on two ranks."""
    root, found = tmp_path_factory.mktemp("undisturbed"), {}
    for net in NETS:
        run = Run(words(net, "ddp"), root / net)
        assert run.wait() == 0, run.told
        assert run.steps == TOTAL
        found[net] = proof(root / net)
    return found


def assert_goes_on(asked: list[str], root: Path, reference: dict[str, Any]) -> Run:
    """The same command ends well, in the bits of the undisturbed run."""
    run = Run(asked, root)
    assert run.wait() == 0, run.told
    assert_same(root, reference)
    assert leftovers(root) == []
    return run


def checkpoints(root: Path, number: int) -> list[Path]:
    """Of a round, latest first."""
    return checkpoint.candidates(RunPaths(root).round(0, "ticket", number).checkpoints)


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", ZERO_1, ZERO_2, ZERO_3, "fsdp2"])
def test_a_rank_killed_at_a_random_step(strategy: str, references: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    chance = Random(strategy)
    rank, step = chance.randrange(2), chance.randrange(3, TOTAL)
    asked, root = words(LENET, strategy), tmp_path / "run"
    run = Run(asked, root, at_step(rank, step, lambda: die_within(chance.uniform(0, 0.02))))
    assert run.wait() == 1
    assert run.lasted < 20
    assert run.told == f"lth: rank {rank} was killed by SIGKILL{CONTINUES}"
    assert_goes_on(asked, root, references[LENET])


@pytest.mark.parametrize(
    ("strategy", "net", "rank", "name"),
    [
        ("ddp", RESNET, 1, file_name(1)),
        (ZERO_3, LENET, 1, file_name(1)),
        ("fsdp2", LENET, 0, MANIFEST),
    ],
)
def test_a_rank_killed_while_it_writes_a_checkpoint(
    strategy: str, net: str, rank: int, name: str, references: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The second one of round 1: training goes on from the first."""
    asked, root = words(net, strategy), tmp_path / "run"
    run = Run(asked, root, in_file(rank, name, FILES + 2, die))
    assert run.wait() == 1
    assert run.lasted < 20
    assert run.told == f"lth: rank {rank} was killed by SIGKILL{CONTINUES}"
    assert [path.name for path in checkpoints(root, 1)] == ["step_00000005.attempt_1"]
    assert assert_goes_on(asked, root, references[net]).steps == T - EVERY


@pytest.mark.parametrize("strategy", [ZERO_3, "fsdp2"])
def test_ranks_end_with_their_launcher(strategy: str, references: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    asked, root = words(LENET, strategy), tmp_path / "run"
    run = Run(asked, root, slow_from(T + EVERY, 0.2))
    pids = run.reached()
    kill(run.launcher.pid)
    limit = time.monotonic() + 10
    while not all(map(gone, pids)):
        assert time.monotonic() < limit, "they train on unseen"
        time.sleep(0.01)
    assert run.wait() == -signal.SIGKILL
    assert assert_goes_on(asked, root, references[LENET]).steps == T - EVERY


# --- stopped ----------------------------------------------------------------------------------------------------------


def term_then_usr1(launcher: int, pids: list[int]) -> None:
    os.kill(pids[0], signal.SIGTERM)
    time.sleep(0.5)
    os.kill(pids[1], signal.SIGUSR1)


def usr1_then_term(launcher: int, pids: list[int]) -> None:
    os.kill(pids[1], signal.SIGUSR1)
    time.sleep(0.5)
    os.kill(pids[0], signal.SIGTERM)


def term_second_only(launcher: int, pids: list[int]) -> None:
    os.kill(pids[1], signal.SIGTERM)


def usr1_first_only(launcher: int, pids: list[int]) -> None:
    os.kill(pids[0], signal.SIGUSR1)


def usr1_launcher(launcher: int, pids: list[int]) -> None:
    os.kill(launcher, signal.SIGUSR1)


def stopped(asked: list[str], root: Path, send: Callable[[int, list[int]], None], fault: Fault) -> int:
    """Stop a run in round 1, by signals sent in a step that takes a while; the step of its one checkpoint."""
    run = Run(asked, root, both(slow_from(T + EVERY - K + 1, 0.4), fault))
    send(run.launcher.pid, run.reached())
    code = run.wait()
    (saved,) = checkpoints(root, 1)
    step = checkpoint.Stored.open(saved).step
    assert EVERY < step < 2 * EVERY, "off the grid"
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGUSR1), run.told
    name = signal.Signals(code - 128).name
    assert run.told == f"lth: stopped by {name} at step {step}, checkpoint saved{CONTINUES}"
    assert name.removeprefix("SIG").lower() in send.__name__
    return step


@pytest.mark.parametrize(
    ("strategy", "send"),
    [
        ("ddp", term_then_usr1),
        (ZERO_3, usr1_then_term),
        ("fsdp2", usr1_then_term),
        ("ddp", term_second_only),
        (ZERO_3, usr1_first_only),
        ("fsdp2", term_second_only),
        ("fsdp2", usr1_launcher),
    ],
)
def test_a_run_with_batchnorm_stopped_off_the_grid_goes_on(
    strategy: str,
    send: Callable[[int, list[int]], None],
    references: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    asked, root = words(RESNET, strategy), tmp_path / "run"
    step = stopped(asked, root, send, lambda rank: None)
    assert assert_goes_on(asked, root, references[RESNET]).steps == T - step


def test_with_running_statistics_of_its_own_it_does_not(tmp_path: Path) -> None:
    """The control: then a checkpoint has one rank's, and the other goes on with them too."""
    asked = words(RESNET, "ddp")
    assert Run(asked, tmp_path / "whole", without_statistics).wait() == 0
    expected = proof(tmp_path / "whole")
    stopped(asked, tmp_path / "run", term_second_only, without_statistics)
    assert Run(asked, tmp_path / "run", without_statistics).wait() == 0
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "run", expected)


# --- frozen -----------------------------------------------------------------------------------------------------------


def test_a_frozen_rank_ends_all_after_the_timeout(references: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """In a step, or in the middle of a checkpoint; several runs at a time, as they only wait."""
    faults = {
        ZERO_1: (0, at_step(0, T + EVERY, hang)),
        "ddp": (1, in_file(1, file_name(1), FILES + 2, hang)),
        ZERO_3: (1, at_step(1, T + EVERY, hang)),
        "fsdp2": (0, at_step(0, T + EVERY, hang)),
    }
    runs = {}
    for strategy, (_, fault) in faults.items():
        runs[strategy] = Run(words(LENET, strategy, "--hardware.timeout=5"), tmp_path / strategy, fault)
        runs[strategy].reached("met", 1)
    for strategy, run in runs.items():
        assert run.wait() == 1
        assert 5 < run.lasted < 25, "its own timeout, and the launcher's patience"
        hung = f"rank {faults[strategy][0]} hung: no answer from another rank for 5 s (hardware.timeout)"
        assert run.told == f"lth: {hung}{CONTINUES}"
    for strategy in runs:
        asked = words(LENET, strategy, "--hardware.timeout=5")
        assert assert_goes_on(asked, tmp_path / strategy, references[LENET]).steps == T - EVERY


def test_a_connection_that_another_collective_closed_is_a_loss() -> None:
    assert environment.lost(RuntimeError(environment.PAIR_CLOSED), 5) == (
        "no answer from another rank for 5 s (hardware.timeout)"
    )
    assert environment.lost(RuntimeError("a bug"), 5) is None


# --- damaged ----------------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("strategy", "net", "name", "harm", "what"),
    [
        ("ddp", RESNET, file_name(1), cut, "its checksum is not the manifest's"),
        (ZERO_3, LENET, file_name(1), damage, "its checksum is not the manifest's"),
        ("fsdp2", LENET, file_name(0), Path.unlink, "it is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    strategy: str,
    net: str,
    name: str,
    harm: Callable[[Path], None],
    what: str,
    references: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Killed when the second checkpoint of round 1 has come and the first has not yet gone."""
    asked, root = words(net, strategy), tmp_path / "run"
    assert Run(asked, root, before_removal(FILES + 2, die)).wait() == 1
    newest, before = checkpoints(root, 1)
    assert [checkpoint.Stored.open(path).step for path in (newest, before)] == [2 * EVERY, EVERY]
    harm(newest / name)
    run = assert_goes_on(asked, root, references[net])
    assert f"{newest / name} is damaged: {what}" in run.told
    assert run.told.count("warning: ") == 1 and "going back to an earlier checkpoint" in run.told
    assert run.steps == T - EVERY
