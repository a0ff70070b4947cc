"""Scores before training, from a network and a few batches: what the criteria of the same names rank by."""

from __future__ import annotations

from lth_scale.saliency import gradients as _gradients
from lth_scale.saliency import synflow as _synflow
from lth_scale.saliency.base import Batch as Batch
from lth_scale.saliency.base import Given as Given
from lth_scale.saliency.base import methods as methods

# Imported for their entries in the registry.
FAMILIES = (_gradients, _synflow)
