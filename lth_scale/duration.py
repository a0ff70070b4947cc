"""``"10ep"``, ``"500it"`` -> steps. One step is one global batch consumed."""

from __future__ import annotations

import re

from lth_scale.errors import UserError

_FORM = re.compile(r"(\d+(?:\.\d+)?)(ep|it)?")


def steps(text: str, steps_per_epoch: int, key: str) -> int:
    """Steps of a duration; a bare number counts only when it is 0. Raises UserError naming ``key``.

    >>> steps("2ep", 429, "rewind.at"), steps("500it", 429, "rewind.at"), steps("0", 429, "rewind.at")
    (858, 500, 0)
    """
    match = _FORM.fullmatch(text.strip())
    if match is None or (match[2] is None and float(match[1]) != 0) or (match[2] == "it" and "." in match[1]):
        raise UserError(f"{key}={text!r} is not a duration; write iterations as '500it', epochs as '2ep', or '0'")
    return round(float(match[1]) * steps_per_epoch) if match[2] == "ep" else int(float(match[1]))
