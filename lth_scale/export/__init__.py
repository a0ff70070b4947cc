"""States out of run folders, and into files for other programs."""

from __future__ import annotations

from lth_scale.export.layouts import block_density as block_density
from lth_scale.export.layouts import bsr as bsr
from lth_scale.export.layouts import csr as csr
from lth_scale.export.layouts import read_bsr as read_bsr
from lth_scale.export.layouts import read_csr as read_csr
from lth_scale.export.multiplying import load_sparse as load_sparse
from lth_scale.export.semi_structured import load_semi_structured as load_semi_structured
from lth_scale.export.semi_structured import read_semi_structured as read_semi_structured
from lth_scale.export.sources import Chosen as Chosen
from lth_scale.export.sources import choose as choose
from lth_scale.export.sparse import read_sparse as read_sparse
from lth_scale.export.taking import take as take
from lth_scale.export.writing import write as write
