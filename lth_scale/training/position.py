"""Where a Trainer stands: read at the rewind point, set again at the start of every later round.

Lightning keeps its place in the progress counters of its loops, and reloads them only from its own checkpoint files.
What is read here is the same place between two steps, as JSON; so are the schedulers, the parameter groups (learning
rate, momentum), what an optimizer keeps beside tensors, and the scale of a gradient scaler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lth_scale.errors import UserError

_CONTAINERS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "Counter": lambda pairs: Counter(dict(pairs)),  # the milestones of MultiStepLR
}


def pack(value: Any, where: str) -> Any:
    """A value as JSON that keeps tuples, and keys other than strings. Raises UserError naming ``where``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    if kind not in _CONTAINERS:
        raise UserError(f"{where} is a {kind}, which cannot be stored; numbers, texts and containers of them can")
    items = value.items() if isinstance(value, dict) else value
    return {kind: [pack(item, where) for item in items]}


def unpack(value: Any) -> Any:
    """The inverse of :func:`pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    return _CONTAINERS[kind](unpack(item) for item in items)


def read(trainer: Any, module: nn.Module) -> dict[str, Any]:
    """The place after the last finished step; call it in ``on_train_batch_start``.

    Raises UserError naming a scheduler, a parameter group or an optimizer state that holds what cannot be stored.
    """
    scaler = trainer.precision_plugin
    counters = trainer.fit_loop.state_dict()
    del counters["state_dict"]  # of the loaders: skip() finds their place
    return {
        "counters": {key: _finished(value) for key, value in counters.items()},
        "schedulers": [_pack_entries(s.state_dict(), type(s).__name__) for s in _schedulers(trainer)],
        "groups": [_pack_entries(_settings(g), f"a parameter group of {kind}") for kind, g in _groups(trainer)],
        "scaler": _pack_entries(scaler.state_dict(), type(scaler).__name__),
        "extras": [
            {name: _pack_entries(held, f"the {type(o).__name__} state of {name}") for name, held in _extras(o, module)}
            for o in trainer.optimizers
        ],
    }


def _pack_entries(entries: Mapping[str, Any], owner: str) -> dict[str, Any]:
    return {key: pack(value, f"{key} of {owner}") for key, value in entries.items()}


def _unpack_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: unpack(value) for key, value in entries.items()}


def _finished(progress: Any) -> Any:
    """The counters without the batch (and epoch) that is about to begin."""
    if not isinstance(progress, dict):
        return False if isinstance(progress, bool) else progress  # is_last_batch is known once a batch is fetched
    if "completed" in progress:
        return dict.fromkeys(progress, progress["completed"])
    return {key: _finished(value) for key, value in progress.items()}


def _schedulers(trainer: Any) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _groups(trainer: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            yield type(optimizer).__name__, group


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _extras(optimizer: Optimizer, module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """(parameter name, optimizer state of it that is no tensor)."""
    for name, parameter in module.named_parameters():
        held = {k: v for k, v in optimizer.state.get(parameter, {}).items() if not isinstance(v, torch.Tensor)}
        if held:
            yield name, held


def set_counters(trainer: Any, place: Mapping[str, Any]) -> None:
    """Let ``fit`` go on from a place; call it in ``on_fit_start``. Raises UserError if nothing is left to train."""
    loop = trainer.fit_loop
    loop.load_state_dict(place["counters"])
    loop._restarting = loop.epoch_loop.restarting = False  # the epoch begins as any other, its hooks included
    epochs, steps = loop.max_epochs, loop.max_steps
    if (epochs not in (None, -1) and trainer.current_epoch >= epochs) or trainer.global_step >= steps != -1:
        raise UserError(
            f"the rewind point (epoch {trainer.current_epoch}, step {trainer.global_step}) is not before the end of"
            f" training: max_epochs={epochs}, max_steps={steps}"
        )


def _consumed(place: Mapping[str, Any]) -> int:
    """Micro-batches of its epoch before the place."""
    return int(place["counters"]["epoch_loop.batch_progress"]["current"]["completed"])


def skip(trainer: Any, place: Mapping[str, Any]) -> None:
    """Leave out the batches of the epoch that come before the place; call it in the first ``on_train_epoch_start``.

    Lightning made its iterator before it told the sampler which epoch it is; this makes a new one.
    """
    fetcher, batches = trainer.fit_loop._data_fetcher, _consumed(place)
    iter(fetcher)
    for _ in range(batches):
        next(fetcher)
    fetcher.fetched -= batches  # Lightning adds them itself, by its counter ...
    progress = trainer.fit_loop.epoch_loop.batch_progress

    def reset() -> None:  # ... which it zeroes as it enters an epoch: not this time
        del progress.reset_on_run
        progress.reset_on_run()
        progress.current.increment_by(batches)

    progress.reset_on_run = reset


def restore(trainer: Any, module: nn.Module, place: Mapping[str, Any]) -> None:
    """Set schedulers, parameter groups, what optimizers keep beside tensors and the gradient scaler.

    Raises UserError if the number of optimizers, groups or schedulers has changed.
    """
    parameters, groups, schedulers = dict(module.named_parameters()), list(_groups(trainer)), _schedulers(trainer)
    _require_same_number("optimizers", trainer.optimizers, place["extras"])
    _require_same_number("parameter groups", groups, place["groups"])
    _require_same_number("schedulers", schedulers, place["schedulers"])
    trainer.precision_plugin.load_state_dict(_unpack_entries(place["scaler"]))
    for optimizer, extras in zip(trainer.optimizers, place["extras"], strict=True):
        for name, held in extras.items():
            optimizer.state[parameters[name]].update(_unpack_entries(held))
    for (_, group), held in zip(groups, place["groups"], strict=True):
        group.update(_unpack_entries(held))
    for scheduler, held in zip(schedulers, place["schedulers"], strict=True):
        scheduler.load_state_dict(_unpack_entries(held))


def _require_same_number(what: str, here: list[Any], there: list[Any]) -> None:
    if len(here) != len(there):
        raise UserError(
            f"the rewind point was stored with {len(there)} {what}; configure_optimizers now gives {len(here)}"
        )
