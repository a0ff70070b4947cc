"""Markdown tables and numbers in them."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, with a newline at its end."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def signed(mean: float, low: float, high: float, n: int, digits: int = 2, sign: str = "+", unit: str = "points") -> str:
    """``+0.12 [-0.03, +0.27] points (n = 5)``; one value has no interval."""
    if n == 0:
        return "not run yet"
    form = f"{sign if sign == '+' else ''}.{digits}f"
    bounds = f" [{low:{form}}, {high:{form}}]" if n > 1 else ""
    return f"{mean:{form}}{bounds} {unit} (n = {n})"
