"""Ranges of whole numbers as users write them."""

from __future__ import annotations

from collections.abc import Iterable

from lth_scale.errors import UserError


def expand(values: str | int | Iterable[int | str]) -> tuple[int, ...]:
    """``"0-2,5"``, ``[0, 1, 2, 5]`` or ``0`` -> ``(0, 1, 2, 5)``, nothing -> ``()``; ValueError on anything else."""
    if values == "":
        return ()
    parts = [values] if isinstance(values, int) else values.split(",") if isinstance(values, str) else values
    numbers: list[int] = []
    for part in parts:
        first, _, last = str(part).strip().partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(numbers))


def numbers(key: str, value: str | int | Iterable[int | str], example: str = "0-4,7") -> tuple[int, ...]:
    """The value of a config field, expanded; raises UserError naming it."""
    try:
        return expand(value)
    except ValueError:
        raise UserError(f"{key}={value!r} is not valid; write numbers or ranges such as {example}") from None


def spans(numbers: Iterable[int]) -> list[str]:
    """``[0, 1, 2, 5]`` -> ``["0-2", "5"]``: :func:`expand` turned around."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
