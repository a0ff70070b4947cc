"""What a score before training is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lth_scale.config import Prune
from lth_scale.pruning import Weights
from lth_scale.registry import Registry

Batch = tuple[Tensor, Tensor]
"""Images float32 [B, C, H, W] and labels int64 [B]."""


@dataclass(frozen=True)
class Given:
    """What is scored.

    Args:
        network: at the rewind point, dense; it is used up.
        tensors: its prunable weights.
        batches: on the network's device; they may be asked for again.
        shape: of one image, (C, H, W).
        prune: the prune section.
        number: the round whose mask the scores are for.
    """

    network: nn.Module
    tensors: Sequence[Weights]
    batches: Iterable[Batch]
    shape: tuple[int, ...]
    prune: Prune
    number: int

    def weights(self) -> list[nn.Parameter]:
        """The prunable parameters, in the order of ``tensors``."""
        return [self.network.get_parameter(tensor.name) for tensor in self.tensors]

    def named(self, scores: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scores of the weights under their names, float32 on the CPU."""
        return {t.name: score.detach().float().cpu() for t, score in zip(self.tensors, scores, strict=True)}


Method = Callable[[Given], dict[str, Tensor]]
"""Name -> float32 scores of the parameter's shape; the lowest are removed first."""

methods: Registry[Method] = Registry("prune.criterion")
