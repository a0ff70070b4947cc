"""The values of one parameter of a sweep: all of them, or one for a number in [0, 1)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lth_scale.errors import UserError, unknown

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "int_uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
}
"""Those of W&B's distributions that are played here, and the entries that each needs."""

ENTRIES = ("distribution", "max", "min", "parameters", "probabilities", "q", "value", "values")
"""What a parameter of a file may hold; ``parameters`` are nested ones."""


@dataclass(frozen=True)
class Parameter:
    """One field of the config, and what a sweep does with it.

    Args:
        key: ``section.field``.
        distribution: one of DISTRIBUTIONS.
        values: the choices; of a range its numbers where they can be counted, else nothing.
        weights: the probability of each choice.
        low, high: the ends of a range that cannot be counted.
    """

    key: str
    distribution: str
    values: Sequence[Any] = ()
    weights: Sequence[float] = ()
    low: float = 0.0
    high: float = 0.0

    def every(self) -> Sequence[Any]:
        """All values, for a grid. Raises UserError where they cannot be counted."""
        if not self.values:
            raise UserError(
                f"parameters.{self.key}: distribution={self.distribution!r} has no list of values that method=grid "
                "could go through; write values, or q_uniform, or method: random"
            )
        return self.values

    def at(self, u: float) -> Any:
        """The value for u in [0, 1), which is uniform: the inverse of the distribution function."""
        if self.values:
            ends = list(accumulate(self.weights))
            return self.values[min(bisect_right(ends, u * ends[-1]), len(ends) - 1)]
        if self.distribution == "log_uniform_values":
            return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return self.low + u * (self.high - self.low)


def read(key: str, told: Mapping[str, Any]) -> Parameter:
    """A parameter as the file has it. Raises UserError naming the key, the entry and what would be valid."""
    for entry in told:
        if entry not in ENTRIES:
            raise unknown(f"parameters.{key}", entry, ENTRIES)
    kind = told.get("distribution") or _meant(key, told)
    if kind not in DISTRIBUTIONS:
        raise unknown(f"parameters.{key}.distribution", kind, DISTRIBUTIONS)
    told = {"q": 1, **told} if kind == "q_uniform" else told
    for entry in DISTRIBUTIONS[kind]:
        if entry not in told:
            raise UserError(f"parameters.{key}: distribution={kind!r} lacks {entry}")
    if kind == "constant":
        return Parameter(key, kind, [told["value"]], [1.0])
    return _choice(key, kind, told) if "values" in DISTRIBUTIONS[kind] else _range(key, kind, told)


def _meant(key: str, told: Mapping[str, Any]) -> str:
    """The distribution where none is named, by W&B's rules."""
    if "values" in told:
        return "categorical"
    if "value" in told:
        return "constant"
    ends = [told.get("min"), told.get("max")]
    if all(type(end) is int for end in ends):
        return "int_uniform"
    if all(type(end) is float for end in ends):
        return "uniform"
    raise UserError(
        f"parameters.{key}={dict(told)!r} is not valid; it must hold value, values, or min and max as two whole "
        "numbers or two with a point (W&B reads 1e-3 as text: write 1.0e-3)"
    )


def _choice(key: str, kind: str, told: Mapping[str, Any]) -> Parameter:
    values = told["values"]
    if not isinstance(values, list) or not values:
        raise UserError(f"parameters.{key}.values={values!r} is not valid; it must be a list of one value or more")
    weights = told.get("probabilities", [1.0] * len(values))
    valid = isinstance(weights, list) and all(isinstance(each, int | float) and each >= 0 for each in weights)
    even = "probabilities" not in told
    if not valid or len(weights) != len(values) or not (even or math.isclose(sum(weights), 1, abs_tol=1e-6)):
        raise UserError(
            f"parameters.{key}.probabilities={weights!r} is not valid; it must be {len(values)} numbers that sum to 1"
        )
    return Parameter(key, kind, values, weights)


def _range(key: str, kind: str, told: Mapping[str, Any]) -> Parameter:
    allowed = int if kind == "int_uniform" else int | float
    for entry in DISTRIBUTIONS[kind]:
        if not isinstance(told[entry], allowed) or isinstance(told[entry], bool):
            need = "a whole number" if allowed is int else "a number (YAML reads 1e-3 as text: write 1.0e-3)"
            raise UserError(f"parameters.{key}.{entry}={told[entry]!r} is not valid; it must be {need}")
    low, high = told["min"], told["max"]
    if low >= high or (kind == "log_uniform_values" and low <= 0):
        positive = "positive and " if kind == "log_uniform_values" else ""
        raise UserError(f"parameters.{key}.min={low!r} is not valid; it must be {positive}below max={high!r}")
    if kind == "int_uniform":
        values: Sequence[Any] = range(low, high + 1)
    elif kind == "q_uniform":
        values = _steps(key, low, high, told["q"])
    else:
        return Parameter(key, kind, low=low, high=high)
    return Parameter(key, kind, values, [1.0] * len(values))


def _steps(key: str, low: float, high: float, q: float) -> list[float]:
    """The multiples of q from low to high."""
    if q <= 0 or q > high - low:
        raise UserError(f"parameters.{key}.q={q!r} is not valid; it must be positive and at most {high - low:g}")
    first, last = math.ceil(low / q - 1e-9), math.floor(high / q + 1e-9)
    return [round(number * q, 12) if isinstance(q, float) else number * q for number in range(first, last + 1)]
