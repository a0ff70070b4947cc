"""Criteria: what ranks the weights. The lowest scores are removed first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from lth_scale.pruning.shard import Shard
from lth_scale.registry import Registry

Criterion = Callable[[Shard], torch.Tensor]
"""Shard [n] -> float32 scores [n], none negative or -0.0. A weight's score depends on nothing but its own entries in
the shard, because shards are scored piece by piece; a NaN score is reported as a NaN weight."""

criteria: Registry[Criterion] = Registry("prune.criterion")


@criteria.register("magnitude")
def magnitude(shard: Shard) -> torch.Tensor:
    """|w| (Frankle & Carbin 2019, section 1).

    In numpy, as a piece is too small for torch's threads: on a busy machine their barriers cost more than the work.
    """
    return torch.from_numpy(np.abs(shard.weights.detach().cpu().numpy()))
