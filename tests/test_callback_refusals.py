"""What PruningCallback refuses, by name, before anything is trained."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import lr_scheduler

from lth_scale import PruningCallback
from lth_scale.errors import UserError
from lth_scale.training.foreign import RewindPoint, require_supported
from lth_scale.training.position import pack, unpack

PL = "pytorch_lightning"


def refused(folder: Path, match: str, net: Any = foreign.Odd, arguments: Any = None, **trainer: Any) -> None:
    callback = PruningCallback(folder / "t", **(arguments or {}))
    make = lambda: foreign.module(PL, net=net, **trainer.pop("module", {}))  # noqa: E731
    module = make()
    with pytest.raises(UserError, match=match):
        foreign.fit(PL, folder, [callback], lambda: module, **trainer)
    assert module.seen == []
    assert not list((folder / "t").glob("round_*"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rate": 1.5}, r"prune.rate=1.5 is not valid; it must be in \(0, 1\)"),
        ({"rates": {"output": 2}}, "prune.rates.output=2 is not valid"),
        ({"rates": {"cnov": 0.1}}, "rates='cnov' is not known .*did you mean 'conv'.*; choose from: conv, fc, output"),
        ({"rewind": "2"}, "rewind='2' is not valid; write whole epochs as '2ep', steps as '500it', or '0'"),
        ({"rewind": "1.5ep"}, "rewind='1.5ep' is not valid"),
    ],
)
def test_wrong_arguments(settings: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        PruningCallback(tmp_path, **settings)


@pytest.mark.parametrize(
    ("text", "point"), [("0", (0, "it")), ("2ep", (2, "ep")), ("500it", (500, "it")), ("0ep", (0, "ep"))]
)
def test_rewind_points(text: str, point: tuple[int, str]) -> None:
    assert RewindPoint.parse(text) == RewindPoint(*point)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scope": "globl"}, "prune.scope='globl' is not known .*did you mean 'global'"),
        ({"rates": {"fc": 0.1}}, "prune.rates.fc=0.1 is not valid with prune.scope='global'"),
        ({"rates": {"fc": 0.0}}, "no tensor is ever pruned"),
    ],
)
def test_arguments_that_do_not_fit_the_module(settings: Any, match: str, tmp_path: Path) -> None:
    refused(tmp_path, match, arguments=settings)


@pytest.mark.parametrize("rewind", ["3ep", "18it", "500it"])
def test_a_rewind_point_beyond_the_end(rewind: str, tmp_path: Path) -> None:
    refused(tmp_path, f"rewind={rewind} is not before the end of training: max_epochs=3", arguments={"rewind": rewind})


def test_a_rewind_epoch_beyond_the_last_step(tmp_path: Path) -> None:
    settings = {"rewind": "2ep"}
    refused(
        tmp_path, "rewind=2ep is not before the end .*max_steps=12", arguments=settings, max_steps=12, max_epochs=-1
    )


def test_a_later_round_that_is_too_short(tmp_path: Path) -> None:
    foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t", rewind="2ep")])
    with pytest.raises(UserError, match=r"rewind point \(epoch 2, step 12\) is not before the end .*max_epochs=2"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t", rewind="2ep")], max_epochs=2)


def test_training_that_stops_before_the_rewind_point_leaves_no_mask(tmp_path: Path) -> None:
    lightning = importlib.import_module(PL)

    class Stop(lightning.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = True

    with pytest.raises(UserError, match="training ended at step 1, before the rewind point 8it"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t", rewind="8it"), Stop()])
    assert not list((tmp_path / "t").glob("round_*"))


@pytest.mark.parametrize(
    ("key", "value"), [("rate", 0.3), ("rewind", "1ep"), ("scope", "layer"), ("rates", {"conv": 0})]
)
def test_a_folder_made_with_other_settings(key: str, value: Any, tmp_path: Path) -> None:
    foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], max_epochs=1)
    with pytest.raises(UserError, match=rf"the callback has {key}=.* has {key}=.*; choose another folder"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t", **{key: value})], max_epochs=1)


def test_a_module_with_other_weights(tmp_path: Path) -> None:
    foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], max_epochs=1)

    class Thawed(foreign.Odd):
        def __init__(self) -> None:
            super().__init__()
            self.frozen.requires_grad_(True)

    with pytest.raises(UserError, match=r"does not fit the model: net.frozen.weight is missing in the mask"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], lambda: foreign.module(PL, net=Thawed))


def test_other_schedulers_in_a_later_round(tmp_path: Path) -> None:
    foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], max_epochs=1)
    make = lambda: foreign.module(PL, scheduler=lambda o: lr_scheduler.StepLR(o, 1))  # noqa: E731
    with pytest.raises(UserError, match="stored with 0 schedulers; configure_optimizers now gives 1"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], make, max_epochs=1)


def test_a_damaged_mask_and_a_damaged_rewind_point(tmp_path: Path) -> None:
    foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], max_epochs=1)
    for file in ("round_01/mask.safetensors", "rewind/step_00000000/rank_00000.safetensors"):
        path = tmp_path / "t" / file
        right = path.read_bytes()
        path.write_bytes(right[:-3] + b"abc")
        with pytest.raises(UserError, match=f"{file} is damaged"):
            foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], max_epochs=1)
        path.write_bytes(right)


def test_a_trainer_that_has_trained_already(tmp_path: Path) -> None:
    trainer, module = foreign.trainer(PL, tmp_path, max_epochs=1), foreign.module(PL)
    trainer.fit(module, foreign.loader())
    trainer.callbacks.append(PruningCallback(tmp_path / "t"))
    with pytest.raises(UserError, match="make a new one for every round"):
        trainer.fit(module, foreign.loader())


def test_fast_dev_run(tmp_path: Path) -> None:
    refused(tmp_path, "fast_dev_run would leave a mask of an untrained network", fast_dev_run=True)


@pytest.mark.parametrize(
    ("strategy", "name"), [("FSDPStrategy", "FSDPStrategy"), ("ModelParallelStrategy", "ModelParallelStrategy")]
)
def test_strategies_that_shard(strategy: str, name: str) -> None:
    for namespace in foreign.NAMESPACES:
        kind = getattr(importlib.import_module(f"{namespace}.strategies"), strategy)
        trainer = SimpleNamespace(strategy=kind.__new__(kind))
        with pytest.raises(UserError, match=f"strategy {name} cannot be handled; choose from: a single device, ddp"):
            require_supported(trainer, nn.Linear(1, 1))


class With(nn.Module):
    """A net with one more parameter."""

    def __init__(self, **odd: Any) -> None:
        super().__init__()
        self.net = foreign.Odd()
        for name, value in odd.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    ("odd", "match"),
    [
        (lambda: nn.LazyLinear(3), r"net.odd.weight \(UninitializedParameter"),
        (lambda: nn.Parameter(torch.eye(3).to_sparse()), "net.odd .*cannot be handled"),
        (lambda: nn.Parameter(torch.zeros(3, dtype=torch.complex64)), "net.odd .*complex64.*cannot be handled"),
        (lambda: nn.Linear(3, 3).double(), "net.odd.weight cannot be handled: torch.float64 is not one of"),
    ],
)
def test_parameters_that_cannot_be_handled(odd: Any, match: str, tmp_path: Path) -> None:
    optimizer = lambda net: torch.optim.SGD(net.net.parameters(), 0.1)  # noqa: E731
    refused(tmp_path, match, net=lambda: With(odd=odd()), module={"optimizer": optimizer})


def test_a_dtensor_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        odd = nn.Parameter(DTensor.from_local(torch.zeros(3, 3), mesh))
        with pytest.raises(UserError, match=r"parameter odd \(.*DTensor.*cannot be handled|parameter odd .*cannot"):
            trainer = SimpleNamespace(strategy=foreign.trainer(PL, tmp_path).strategy, fast_dev_run=0, optimizers=[])
            require_supported(trainer, With(odd=odd))
    finally:
        dist.destroy_process_group()


def test_nothing_to_prune(tmp_path: Path) -> None:
    frozen = lambda: With().requires_grad_(False)  # noqa: E731
    optimizer = lambda net: torch.optim.SGD(net.parameters(), 0.1)  # noqa: E731
    refused(tmp_path, "Foreign has nothing to prune", net=frozen, module={"optimizer": optimizer})


def test_parameters_that_are_not_the_modules(tmp_path: Path) -> None:
    optimizer = lambda net: torch.optim.SGD([*net.parameters(), nn.Parameter(torch.ones(2))], 0.1)  # noqa: E731
    refused(tmp_path, "SGD trains parameters that are not the module's", module={"optimizer": optimizer})


def test_optimizer_state_that_cannot_be_stored(tmp_path: Path) -> None:
    optimizer = lambda net: torch.optim.LBFGS(net.parameters(), max_iter=2)  # noqa: E731
    make = lambda: foreign.module(PL, optimizer)  # noqa: E731
    with pytest.raises(UserError, match=r"of the LBFGS state of net.* is a Tensor, which cannot be stored"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t", rewind="8it")], make)


def test_a_schedule_that_cannot_be_stored(tmp_path: Path) -> None:
    class Odd(lr_scheduler.LRScheduler):
        def __init__(self, optimizer: Any) -> None:
            self.mystery = object()
            super().__init__(optimizer)

        def get_lr(self) -> Any:
            return self.base_lrs

    refused(tmp_path, "mystery of Odd is a object, which cannot be stored", module={"scheduler": Odd})


def values() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    inner = lambda v: st.lists(v) | st.lists(v).map(tuple) | st.dictionaries(st.integers() | st.text(), v)  # noqa: E731
    return st.recursive(plain, inner, max_leaves=8) | st.dictionaries(st.integers(), st.integers()).map(Counter)


@settings(max_examples=40)
@given(values())
def test_what_is_stored_comes_back(value: Any) -> None:
    back = unpack(json.loads(json.dumps(pack(value, "it"))))
    assert back == value and type(back) is type(value)


def test_a_rewind_point_of_another_process(tmp_path: Path) -> None:
    """Two processes in one folder: the later one's theta_k must not pass for the earlier one's."""
    for folder, seed in ((tmp_path / "t", 0), (tmp_path / "other", 1)):
        foreign.fit(PL, tmp_path, [PruningCallback(folder)], lambda seed=seed: foreign.module(PL, seed=seed))
    shutil.rmtree(tmp_path / "t" / "rewind")
    shutil.copytree(tmp_path / "other" / "rewind", tmp_path / "t" / "rewind")
    module = foreign.module(PL)
    with pytest.raises(UserError, match=r"not the rewind point of .*another process has used"):
        foreign.fit(PL, tmp_path, [PruningCallback(tmp_path / "t")], lambda: module)
    assert module.seen == []
