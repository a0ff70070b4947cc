"""Criteria: what ranks the weights. The lowest scores are removed first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lth_scale.pruning.shard import Shard
from lth_scale.registry import Registry

Floats = npt.NDArray[np.float32]

INITIAL, NOISE, SALIENCY = "initial", "noise", "saliency"


@dataclass(frozen=True)
class Criterion:
    """A ranking of the weights.

    Args:
        score: shard [n] -> float32 scores [n], none negative or -0.0. A weight's score depends on nothing but its own
            entries in the shard, because shards are scored piece by piece; a NaN score is reported as a NaN weight.
        needs: what the shard must hold in ``extra``: ``initial`` (theta_0), ``noise`` (float32 numbers in a uniformly
            random order) or ``saliency`` (scores computed before training).
        signed: whether the scores went through :func:`signed`, so that nothing but their order means anything.
    """

    score: Callable[[Shard], torch.Tensor]
    needs: tuple[str, ...] = ()
    signed: bool = False

    @property
    def before(self) -> bool:
        """Whether it ranks before training: every round's mask then comes from the dense network (one-shot)."""
        return SALIENCY in self.needs


criteria: Registry[Criterion] = Registry("prune.criterion")


def signed(scores: Floats) -> torch.Tensor:
    """A monotone map of finite float32 to those that are not negative; NaN for all others.

    It costs the last bit of the mantissa: two neighbouring floats may become equal, larger differences do not.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # the sum turns -0.0 into 0.0
    half = (bits & 0x7FFFFFFF) >> 1
    mapped = np.where(bits >= 0, 0x3FC00000 + half, 0x3FBFFFFF - half).astype(np.int32).view(np.float32)
    return torch.from_numpy(np.where(np.isfinite(scores), mapped, np.float32(np.nan)))


def _numbers(values: torch.Tensor) -> Floats:
    """For numpy: a piece is too small for torch's threads, whose barriers cost more than the work on a busy machine."""
    numbers: Floats = values.detach().cpu().numpy()
    return numbers


def _weights(shard: Shard) -> Floats:
    return _numbers(shard.weights)


def _extra(shard: Shard, name: str) -> Floats:
    return _numbers(shard.extra[name])


def magnitude(shard: Shard) -> torch.Tensor:
    """|w| (Frankle & Carbin 2019, section 1)."""
    return torch.from_numpy(np.abs(_weights(shard)))


def magnitude_at_init(shard: Shard) -> torch.Tensor:
    """|w_0| ("large init", Zhou et al. 2019, section 3)."""
    return torch.from_numpy(np.abs(_extra(shard, INITIAL)))


def magnitude_increase(shard: Shard) -> torch.Tensor:
    """|w| - |w_0| (Zhou et al. 2019, section 3)."""
    return signed(np.abs(_weights(shard)) - np.abs(_extra(shard, INITIAL)))


def movement(shard: Shard) -> torch.Tensor:
    """|w - w_0| (Zhou et al. 2019, section 3)."""
    return torch.from_numpy(np.abs(_weights(shard) - _extra(shard, INITIAL)))


def random(shard: Shard) -> torch.Tensor:
    """A random order, which no weight decides."""
    return torch.from_numpy(_extra(shard, NOISE))


def sensitivity(shard: Shard) -> torch.Tensor:
    """Scores that are stored and not negative."""
    return torch.from_numpy(np.abs(_extra(shard, SALIENCY)))


def signed_sensitivity(shard: Shard) -> torch.Tensor:
    """Scores of both signs that are stored."""
    return signed(_extra(shard, SALIENCY))


criteria.register("magnitude")(Criterion(magnitude))
criteria.register("magnitude_at_init")(Criterion(magnitude_at_init, (INITIAL,)))
criteria.register("magnitude_increase")(Criterion(magnitude_increase, (INITIAL,), signed=True))
criteria.register("movement")(Criterion(movement, (INITIAL,)))
criteria.register("random")(Criterion(random, (NOISE,)))
# What lth_scale.saliency computes under the same names.
criteria.register("snip")(Criterion(sensitivity, (SALIENCY,)))
criteria.register("grasp")(Criterion(signed_sensitivity, (SALIENCY,), signed=True))
criteria.register("synflow")(Criterion(sensitivity, (SALIENCY,)))
