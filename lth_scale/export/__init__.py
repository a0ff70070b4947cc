"""Tickets out of run folders, and into files: for other programs, to be carried, or from elsewhere."""

from __future__ import annotations

from lth_scale.export.places import find as find
from lth_scale.export.places import of_run as of_run
from lth_scale.export.sources import Chosen as Chosen
from lth_scale.export.sources import choose as choose
from lth_scale.export.taking import take as take
from lth_scale.export.writing import write as write
