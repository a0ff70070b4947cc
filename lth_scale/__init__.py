"""Lottery tickets at scale: found, proven, moved and made small."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth_scale.runs import open_run as open_run
    from lth_scale.training.pruning_callback import PruningCallback as PruningCallback

_EXPORTS = {"PruningCallback": "lth_scale.training.pruning_callback", "open_run": "lth_scale.runs"}


def __getattr__(name: str) -> Any:
    """Import what is exported when it is first asked for, so that ``import lth_scale`` stays light."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
