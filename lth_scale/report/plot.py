"""A figure of the page with its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from markupsafe import Markup
from matplotlib.figure import Figure

from lth_scale.report.style import NARROW, WIDE, Size, draw, inline, svg_bytes


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Args:
        slug: its file name.
        title: above it.
        caption: below it; says what the marks and bands are.
        drawing: size -> figure.
    """

    slug: str
    title: str
    caption: str
    drawing: Callable[[Size], Figure]

    @cached_property
    def wide(self) -> Figure:
        """For a paper or a desktop."""
        return draw(self.drawing, WIDE)

    def inline(self, name: str) -> Markup:
        """The wide and the narrow form as inline SVG; the page shows the one that fits."""
        drawn = {"wide": self.wide, "narrow": draw(self.drawing, NARROW)}
        parts = [(form, inline(svg_bytes(made, "none"), f"{name}-{form}")) for form, made in drawn.items()]
        return Markup("".join(f'<div class="{form}">{svg}</div>' for form, svg in parts))
