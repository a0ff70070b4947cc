"""Arms: the ticket and its controls. A new control is one file here: its start, its mask, its clock."""

from __future__ import annotations

import importlib
import pkgutil

from lth_scale.arms.base import Arm, Place, Sources, Start, arm_of, arms, beside, drawn, label, split_draw

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Arm", "Place", "Sources", "Start", "arm_of", "arms", "beside", "drawn", "label", "split_draw"]
