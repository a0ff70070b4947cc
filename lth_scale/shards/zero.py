"""DeepSpeed ZeRO, stages 1 to 3: each rank owns a flat fp32 partition of every parameter group.

The optimizer that DeepSpeed steps is torch's own, on these partitions, which it then copies to the model. Private names
of DeepSpeed are used here and in the strategy only; its version is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lth_scale.errors import UserError
from lth_scale.shards.base import LocalShard, Shards, counts_on_device, plain


@dataclass(frozen=True)
class Place:
    """Where a parameter's part lies: ``length`` numbers from ``start`` of flat partition ``owner``.

    Args:
        owner: number of the flat partition.
        index: the parameter's place in the owner's list of gradients.
        start: in the partition.
        length: 0 where this rank has nothing of the parameter.
        offset: in the flattened parameter.
        shape: the whole parameter's.
    """

    owner: int
    index: int
    start: int
    length: int
    offset: int
    shape: tuple[int, ...]

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """This part of a tensor laid out like the partition."""
        return flat.narrow(0, self.start, self.length)


class ZeroShards(Shards):
    """The flat partitions of one rank, and what the optimizer keeps beside them.

    Args:
        module: the model within DeepSpeed's engine.
        zero: the engine's optimizer.

    Raises UserError naming a parameter that ZeRO does not train.
    """

    def __init__(self, module: nn.Module, zero: Any) -> None:
        super().__init__(module, [zero.optimizer])
        self.group = dist.group.WORLD
        self._zero, self._partitions = zero, hasattr(zero, "fp32_partitioned_groups_flat")
        owners = _owners(zero.fp16_groups if self._partitions else zero.bit16_groups)
        self._places: dict[str, Place] = {}
        for name, parameter in module.named_parameters():
            if id(parameter) not in owners:
                raise UserError(f"parameter {plain(name)} is frozen, which ZeRO cannot hold; choose ddp or fsdp2")
            find = _partitioned if self._partitions else _replicated
            self._places[plain(name)] = find(zero, parameter, owners[id(parameter)])
        self._local = [
            LocalShard(name, place.of(self._flat[place.owner].detach()), place.offset, place.shape)
            for name, place in self._places.items()
        ]

    @property
    def _flat(self) -> Sequence[torch.Tensor]:
        zero = self._zero
        flat: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat if self._partitions else zero.single_partition_of_fp32_groups
        )
        return flat

    def local(self) -> Sequence[LocalShard]:
        """Views into the flat partitions."""
        return self._local

    def gradients(self) -> dict[str, torch.Tensor]:
        """Empty between the micro-batches of one global batch: Lightning's hook fires after each of them."""
        averaged = self._zero.averaged_gradients
        if not self._zero.is_gradient_accumulation_boundary():
            return {}
        return {
            name: averaged[place.owner][place.index].reshape(-1)[: place.length]
            for name, place in self._places.items()
            if place.length and averaged.get(place.owner) is not None
        }

    def state(self, shard: LocalShard) -> dict[str, torch.Tensor]:
        """Views into the state of the flat partition; a step counter is the whole partition's."""
        place, state = self._places[shard.name], self.optimizers[0].state
        flat = self._flat[place.owner]
        if not place.length or flat not in state:
            return {}
        tensors = {key: value for key, value in state[flat].items() if isinstance(value, torch.Tensor)}
        return {key: place.of(value) if value.shape == flat.shape else value for key, value in tensors.items()}

    def allocate(self, entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]]) -> None:
        """One tensor per key and flat partition.

        Raises UserError where parameters that share a partition do not share their step counter.
        """
        optimizer = self.optimizers[0]
        optimizer.state.clear()
        self._zero._hp_optimizer_states_linked = False  # drops DeepSpeed's own views of the old state at the next step
        for owner, flat in enumerate(self._flat):
            names = [name for name, place in self._places.items() if place.owner == owner]
            if wanted := _shared(names, entries):
                optimizer.state[flat] = {key: _made(value, flat, optimizer.defaults) for key, value in wanted.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the partitions to the model, then gather. Collective."""
        zero = self._zero
        if not self._partitions:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for owner in range(len(self._flat)):
            zero._reassign_or_swap_out_partitioned_parameters(owner)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _owners(groups: Iterable[Iterable[nn.Parameter]]) -> dict[int, tuple[int, int]]:
    return {id(p): (owner, index) for owner, group in enumerate(groups) for index, p in enumerate(group)}


def _replicated(zero: Any, parameter: Any, owner: tuple[int, int]) -> Place:
    """Stages 1 and 2: the group, flattened as one, is cut into equal partitions; a parameter may lie across a cut."""
    mapping, shape = parameter._hp_mapping, tuple(parameter.shape)
    if mapping is None:
        return Place(owner[0], 0, 0, 0, 0, shape)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Place(owner[0], parameter._index_in_param_group, here.start, here.numel, there.start, shape)


def _partitioned(zero: Any, parameter: Any, owner: tuple[int, int]) -> Place:
    """Stage 3: each parameter is cut into equal partitions, the last ones padded or empty."""
    _, start, size = zero.grad_position[zero.get_param_id(parameter)]
    offset = zero._get_param_partition_rank(parameter) * size
    length = max(0, min(size, parameter.ds_numel - offset))
    return Place(*owner, start, length, offset if length else 0, tuple(parameter.ds_shape))


def _shared(
    names: Sequence[str], entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]]
) -> dict[str, torch.Tensor | torch.dtype]:
    found: dict[str, torch.Tensor | torch.dtype] = {}
    for name in names:
        for key, value in entries.get(name, {}).items():
            known = found.setdefault(key, value)
            if isinstance(value, torch.Tensor) and not (isinstance(known, torch.Tensor) and torch.equal(known, value)):
                raise UserError(
                    f"the optimizer's {key} of {name} differs from that of its parameter group, which ZeRO has one of; "
                    "choose hardware.strategy=ddp or fsdp2"
                )
    return found


def _made(value: torch.Tensor | torch.dtype, flat: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    if isinstance(value, torch.dtype):
        return torch.zeros_like(flat, dtype=value, requires_grad=False)
    return value.to(flat.device if counts_on_device(options) else value.device, copy=True)
