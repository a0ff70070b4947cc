"""Pure functions from weights to the next mask: a criterion (scores) within a scope (pools), removing exact counts."""

from __future__ import annotations

from lth_scale.pruning.criteria import criteria as criteria
from lth_scale.pruning.masking import next_masks as next_masks
from lth_scale.pruning.planning import Planned as Planned
from lth_scale.pruning.planning import plan as plan
from lth_scale.pruning.planning import removal as removal
from lth_scale.pruning.planning import rounds as rounds
from lth_scale.pruning.scopes import scopes as scopes
from lth_scale.pruning.shard import Shard as Shard
