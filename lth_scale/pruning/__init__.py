"""Pure functions from weights to the next mask: a criterion (scores) within a scope (pools), removing exact counts."""

from __future__ import annotations

from lth_scale.pruning.criteria import INITIAL as INITIAL
from lth_scale.pruning.criteria import NOISE as NOISE
from lth_scale.pruning.criteria import SALIENCY as SALIENCY
from lth_scale.pruning.criteria import Criterion as Criterion
from lth_scale.pruning.criteria import criteria as criteria
from lth_scale.pruning.masking import next_masks as next_masks
from lth_scale.pruning.permuting import permuted as permuted
from lth_scale.pruning.planning import Budget as Budget
from lth_scale.pruning.planning import Planned as Planned
from lth_scale.pruning.planning import budgets as budgets
from lth_scale.pruning.planning import plan as plan
from lth_scale.pruning.planning import rounds as rounds
from lth_scale.pruning.schedules import removal as removal
from lth_scale.pruning.scopes import fits as fits
from lth_scale.pruning.scopes import scopes as scopes
from lth_scale.pruning.shard import Shard as Shard
from lth_scale.pruning.tensors import Tensor as Tensor
from lth_scale.pruning.tensors import Weights as Weights
