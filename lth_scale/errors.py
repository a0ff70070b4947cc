"""The one exception that stands for a mistake of the user: shown in one line, without a traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the message names the key, the value and what would be valid."""


def unknown(key: str, value: object, choices: Iterable[str]) -> UserError:
    """The error for a value that is not one of ``choices``, with the nearest valid one suggested."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"{key}={value!r} is not known{hint}; choose from: {', '.join(names)}")
