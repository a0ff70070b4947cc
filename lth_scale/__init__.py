"""Lottery tickets at scale: found, proven, moved and made small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lth_scale.lazy import exports

if TYPE_CHECKING:
    from lth_scale.runs import open_run as open_run
    from lth_scale.training.pruning_callback import PruningCallback as PruningCallback

__getattr__ = exports(__name__, {"runs": "open_run", "training.pruning_callback": "PruningCallback"})
