"""Tickets made for use outside: one file, plain names."""

from __future__ import annotations

from lth_scale.export.sources import Chosen as Chosen
from lth_scale.export.sources import choose as choose
from lth_scale.export.writing import write as write
