"""Weights & Biases, which nobody else knows: one run a round, logged beside its attempt's files and sent from there."""

from __future__ import annotations

from lth_scale.tracking.identity import Identity, Mode, mode
from lth_scale.tracking.runs import Tracked, tracked
from lth_scale.tracking.uploading import pending, sync

__all__ = ["Identity", "Mode", "Tracked", "mode", "pending", "sync", "tracked"]
