"""The one exception that stands for a mistake of the user: shown in one line, without a traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the message names the key, the value and what would be valid."""

    code = 2  # of the process that ends with it


class NotReady(UserError):
    """What a task needs is not done yet."""

    code = 3


def unknown(key: str, value: object, choices: Iterable[str]) -> UserError:
    """The error for a value that is not one of ``choices``, with the nearest valid one suggested."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"{key}={value!r} is not known{hint}; choose from: {', '.join(names)}")


def require(condition: bool, key: str, value: object, valid: str) -> None:
    """Raise UserError naming key, value and what is valid, unless the condition holds."""
    if not condition:
        raise UserError(f"{key}={value!r} is not valid; it must be {valid}")


def at_least(section: object, name: str, **least: float) -> None:
    """Require each named field of a section of the config to reach its bound."""
    for key, bound in least.items():
        value = getattr(section, key)
        require(value >= bound, f"{name}.{key}", value, f"{bound} or more")
