"""Running a ticket on a CPU with its surviving weights only."""

from __future__ import annotations

from lth_scale.inference.running import Sparse as Sparse
from lth_scale.inference.running import compiled as compiled
