"""What several processes do together in the tests of strategies, and how they are started."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from many_ranks import free_port, import_everything
from proofs import forks
from strategy_fits import fit, full, gather, micro_batch, net, same, state, weights, write
from torch import nn

from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.shards import Shards
from lth_scale.training.masking import Masking

LINEAR = nn.functional.linear
TIMEOUT = timedelta(seconds=97)


def training(strategy: str, optimizer: str, **options: Any) -> dict[str, Any]:
    """What a run saw and left: losses, every reduced gradient, weights, state."""
    seen: dict[str, Any] = {"gradients": []}

    def gradients(shards: Shards) -> None:
        if found := shards.gradients():
            seen["gradients"].append(gather(shards, found))

    def end(shards: Shards) -> None:
        seen["weights"], seen["state"] = weights(shards), state(shards)

    seen["losses"] = fit(strategy, optimizer, net(), gradients=gradients, end=end, **options).losses
    return seen


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(micro_batch(7)[0])


def writing(strategy: str) -> dict[str, Any]:
    """Other weights are written at the start and at the end; the model is asked before and after refresh."""
    seen: dict[str, Any] = {"stale": [], "fresh": []}

    def rewrite(seed: int) -> Callable[[Shards], None]:
        def do(shards: Shards) -> None:
            logits(shards.module)  # gathers
            write(shards, dict(net(seed).named_parameters()), {s.name: s.weights for s in shards.local()})
            seen["stale"].append(torch.equal(logits(shards.module), logits(net(seed))))
            shards.refresh()
            seen["fresh"].append(torch.equal(logits(shards.module), logits(net(seed))))

        return do

    seen["losses"] = fit(
        strategy, "sgd", net(), start=rewrite(5), step=lambda s: logits(s.module), end=rewrite(6)
    ).losses
    return seen


def carried(shards: Shards, left: Mapping[str, Any]) -> None:
    """Give an engine what another left, and prove that it reads the same there."""
    write(shards, left["weights"], {s.name: s.weights for s in shards.local()})
    entries: dict[str, dict[str, Any]] = {s.name: {} for s in shards.local()}
    for s in shards.local():
        for key in left["state"]:
            entries[s.name][key] = torch.tensor(2.0) if key == "step" else torch.float32
    shards.allocate(entries)
    for key, values in left["state"].items():
        parts = {s.name: shards.state(s)[key] for s in shards.local() if len(s)}
        assert key == "step" or not any(part.any() for part in parts.values())
        if key != "step":
            write(shards, values, parts)
    assert all(same(values, left["state"][key]) for key, values in state(shards).items() if key != "step")
    shards.refresh()


def continuing(strategy: str, optimizer: str, keep: bool = True) -> dict[str, torch.Tensor]:
    """The weights after two steps, a new engine that is given what they left, and two more."""
    left: dict[str, Any] = {}

    def leave(shards: Shards) -> None:
        left.update(weights=weights(shards), state=state(shards) if keep else {})

    fit(strategy, optimizer, net(), steps=2, end=leave)
    fit(strategy, optimizer, net(), first=2, steps=2, start=lambda shards: carried(shards, left), end=leave)
    return left["weights"]


def mask() -> Mask:
    generator = torch.Generator().manual_seed(3)
    return Mask({n: torch.rand(p.shape, generator=generator) < 0.3 for n, p in net().named_parameters() if p.ndim > 1})


def copies(shards: Shards) -> dict[str, torch.Tensor]:
    """The weights that the model computes with."""
    parameters = dict(shards.module.named_parameters())
    if all(hasattr(parameter, "ds_tensor") for parameter in parameters.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return {name: full(parameter.detach()).clone() for name, parameter in parameters.items()}


def masked(strategy: str, optimizer: str, clip: float = 0, work: str = "gradients weights", steps: int = 8) -> Any:
    """What came back of pruned weights in masters, state and copies; and norms as they should be and as they were."""
    seen: dict[str, Any] = {"expected": []}

    def start(shards: Shards) -> None:
        kept = mask()
        source = {n: p.where(kept[n], 0.0) if n in kept else p for n, p in net().named_parameters()}
        write(shards, source, {s.name: s.weights for s in shards.local()})
        shards.refresh()
        seen["masking"] = Masking(shards, kept)
        if "weights" in work:
            seen["masking"].install()

    def gradients(shards: Shards) -> None:
        if "gradients" in work:
            for s in shards.local():
                if s.name in seen["masking"]._masks and s.name in shards.gradients():
                    dropped = ~mask()[s.name].reshape(-1)[s.offset : s.offset + len(s)]
                    shards.gradients()[s.name].view(-1)[dropped.nonzero()[:1]] = float("inf")
            seen["masking"].gradients()
        whole = gather(shards, shards.gradients())
        seen["expected"].append(float(torch.cat([g.reshape(-1).double() for g in whole.values()]).norm()))

    def end(shards: Shards) -> None:
        seen["revived"] = sum(seen["masking"].revived().values())
        seen["weights"], seen["copies"] = weights(shards), copies(shards)

    seen["norms"] = fit(
        strategy, optimizer, net(), steps=steps, clip=clip, start=start, gradients=gradients, end=end
    ).norms
    del seen["masking"]
    revived: Any = [None] * dist.get_world_size()
    dist.all_gather_object(revived, seen["revived"])
    return seen | {"revived": sum(revived)}


def diverging(strategy: str, clip: float) -> Any:
    """The weights after a step with an infinite gradient, or the message of what was raised."""
    seen: dict[str, Any] = {}

    def poison(shards: Shards) -> None:
        place = 3 - next(s.offset for s in shards.local() if s.name == "head.weight")
        if place >= 0 and "head.weight" in shards.gradients():
            shards.gradients()["head.weight"].view(-1)[place] = float("inf")

    try:
        fit(strategy, "sgd", net(), clip=clip, gradients=poison, end=lambda s: seen.update(weights=weights(s)))
    except UserError as error:
        return str(error)
    return seen["weights"]


def sizes(strategy: str) -> list[int]:
    """How many numbers each rank holds, of parts that ``weights`` proves to make up the whole."""
    seen: dict[str, int] = {}

    def start(shards: Shards) -> None:
        assert same(weights(shards), dict(net().named_parameters()))
        assert [s.name for s in shards.local()] == [n for n, _ in net().named_parameters()]
        seen["held"] = sum(map(len, shards.local()))

    fit(strategy, "sgd", net(), steps=1, start=start)
    held: Any = [None] * dist.get_world_size()
    dist.all_gather_object(held, seen["held"])
    return held


def leftovers(strategy: str) -> dict[str, Any]:
    """What is still there after two trainings: engines and models, other groups' timeouts, another linear layer."""
    for _ in range(2):
        fit(strategy, "adamw", net(), steps=2, step=lambda s: logits(s.module))
    gc.collect()
    kinds = [type(thing).__name__ for thing in gc.get_objects()]
    timeouts = {
        group._get_backend(torch.device("cpu")).options._timeout
        for group in dist.distributed_c10d._world.pg_map
        if group.size() > 1
    }
    kept = [kinds.count(name) for name in ("DeepSpeedEngine", "Net", "FSDPNet")]
    return {"kept": kept, "timeouts": timeouts, "linear": nn.functional.linear is LINEAR}


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
    return function, arguments, options


def _rank(rank: int, ranks: int, port: int, calls: Sequence[Call], out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(ranks)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    answers = [function(*arguments, **options) for function, arguments, options in calls]
    if rank == 0:
        torch.save(answers, out)
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, calls: Sequence[Call], scratch: Path) -> list[Any]:
    """What the first of several processes answers to each call, all made by every process."""
    import_everything()
    port, out = free_port(), scratch / "answers.pt"
    assert forks(ranks, lambda rank: _rank(rank, ranks, port, calls, out), limit=280) == [0] * ranks
    answers: list[Any] = torch.load(out, weights_only=False)
    return answers
