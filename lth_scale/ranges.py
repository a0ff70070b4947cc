"""Ranges of whole numbers as users write them."""

from __future__ import annotations

from collections.abc import Iterable


def expand(values: str | int | Iterable[int | str]) -> tuple[int, ...]:
    """``"0-2,5"``, ``[0, 1, 2, 5]`` or ``0`` -> ``(0, 1, 2, 5)``; raises ValueError on anything else."""
    parts = [values] if isinstance(values, int) else values.split(",") if isinstance(values, str) else values
    numbers: list[int] = []
    for part in parts:
        first, _, last = str(part).strip().partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(numbers))
