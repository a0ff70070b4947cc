"""States out of run folders, and into files for other programs."""

from __future__ import annotations

from lth_scale.export.sources import Chosen as Chosen
from lth_scale.export.sources import choose as choose
from lth_scale.export.sparse import read_sparse as read_sparse
from lth_scale.export.taking import take as take
from lth_scale.export.writing import write as write
