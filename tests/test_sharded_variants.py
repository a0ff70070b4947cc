"""Ways to prune, tickets from elsewhere, children and early ends on two real ranks: the bits of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from many_ranks import on_ranks
from proofs import assert_same, proof

from lth_scale import lottery, settings
from lth_scale.experiment import Experiment
from lth_scale.files import read_json
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths

pytestmark = pytest.mark.distributed

COMMON = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=2", "--hardware.accelerator=cpu"),
    *("--train.batch_size=60", "--prune.rates.output=null", "--prune.scope=global", "--model.hidden=[21,10]"),
    *("--train.duration=16it", "--train.eval_every=8it", "--rewind.at=5it"),
)
SPARSE = ("deepspeed_stage_3", "fsdp2")
# name -> (strategies, further words); SOURCE is a run of one process
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "channel": (SPARSE, ("--prune.scope=channel", "--run.arms=[ticket,random,small]", "--prune.rate=0.4")),
    "transfer": (
        SPARSE,
        (
            *("--transfer.sources=[SOURCE]", "--transfer.layers=body", "--transfer.rounds=1", "--data.classes=0-4"),
            "--run.arms=[ticket,own,transfer,transfer_reinit,transfer_random,transfer_dense]",
        ),
    ),
    "movement": (SPARSE, ("--prune.criterion=movement", "--prune.oneshot=true")),
    "snip": (("fsdp2",), ("--prune.criterion=snip",)),
    "early_bird": (("ddp",), ("--train.duration=160it", "--prune.early_bird=0.9")),
}
CASES = [(name, strategy) for name, (strategies, _) in VARIANTS.items() for strategy in strategies]


def words(name: str, root: Path) -> list[str]:
    return [*COMMON, *(word.replace("SOURCE", str(root / "source")) for word in VARIANTS[name][1])]


def alone(asked: list[str], out: Path) -> None:
    run = Experiment.at(settings.parse([*asked, "--train.micro_batch=30"]), out).established()
    lottery.run(run, run.tasks)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    alone(list(COMMON), root / "source")
    ranks = ("--hardware.devices=2", "--hardware.strategy=")
    jobs = [
        {"words": [*words(name, root), ranks[0], ranks[1] + strategy], "out": str(root / name / strategy)}
        for name, strategy in CASES
    ]
    on_ranks(2, [job | {"losses": f"{job['out']}.json"} for job in jobs])
    for name in VARIANTS:
        alone(words(name, root), root / name / "one")
    return root


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_two_ranks_are_one_process_bit_for_bit(name: str, strategy: str, two: Path) -> None:
    assert_same(two / name / strategy, proof(two / name / "one"), strategy)


def test_they_are_not_what_plain_pruning_leaves(two: Path) -> None:
    plain = Mask.load(RunPaths(two / "source").round(0, "ticket", 1).mask)
    for name in ("channel", "movement", "snip"):
        assert Mask.load(RunPaths(two / name / "one").round(0, "ticket", 1).mask) != plain


def test_the_dense_round_ended_early_on_both_ranks(two: Path) -> None:
    ends = [
        read_json(RunPaths(two / "early_bird" / who).round(0, "ticket", 0).result)["early_bird"]
        for who in ("ddp", "one")
    ]
    assert ends[0] == ends[1] and ends[0]["step"] < ends[0]["planned"]
