"""Rewind points compared by the stability of what is trained from them: the command, and the choice of one."""

from __future__ import annotations

from lth_scale.connectivity.auto import AUTO as AUTO
from lth_scale.connectivity.auto import decided as decided
from lth_scale.connectivity.sweep import as_runs as as_runs
from lth_scale.connectivity.sweep import connectivity as connectivity
