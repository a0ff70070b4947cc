"""Run folders -> verdicts, tables, figures and a page. Reads files only: no Lightning, no training code."""

from __future__ import annotations

from lth_scale.report.connectivity import connectivity_table, instabilities
from lth_scale.report.page import picture, write_report
from lth_scale.report.reading import RunResults, curves, read_run, read_runs
from lth_scale.report.table import summary, tidy
from lth_scale.report.terminal import terminal, terminal_methods, terminal_table
from lth_scale.report.words import headline

__all__ = [
    "RunResults",
    "connectivity_table",
    "curves",
    "headline",
    "instabilities",
    "picture",
    "read_run",
    "read_runs",
    "summary",
    "terminal",
    "terminal_methods",
    "terminal_table",
    "tidy",
    "write_report",
]
