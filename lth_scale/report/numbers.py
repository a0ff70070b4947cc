"""Numbers and verdicts as people read them, in every table and figure."""

from __future__ import annotations

import pandas as pd

NONE = "\N{EN DASH}"
MARKS = {
    "matching": ("✓", "green"),
    "not matching": ("✗", "red"),
    "undecided": ("?", "yellow"),
    "no verdict": ("·", "dim"),
}
LEGEND = "  ".join(f"{mark} {name}" for name, (mark, _) in MARKS.items())


def value(row: pd.Series, column: str = "test_accuracy") -> str:
    """``97.41 ±0.12``: a mean and half its 95 % interval, which one replicate has not."""
    half = (row[f"{column}_high"] - row[f"{column}_low"]) / 2
    return f"{row[column]:.2f}" + (f" ±{half:.2f}" if half == half else "")


def signed(number: float) -> str:
    """Two decimals and a sign, with a true minus."""
    rounded = round(number, 2) + 0.0  # -0.0 + 0.0 is +0.0
    return f"{rounded:+.2f}".replace("-", "\N{MINUS SIGN}")


def with_interval(row: pd.Series, column: str) -> str:
    """``+0.32 [+0.22, +0.41]``; without the interval for one replicate."""
    mean, low, high = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
    if mean != mean:
        return NONE
    return signed(mean) + (f" [{signed(low)}, {signed(high)}]" if low == low else "")


def scaled(number: float, unit: str = "") -> str:
    """``1.23 T``: three digits and a decimal prefix."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``4 min 10 s`` or ``2.5 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
