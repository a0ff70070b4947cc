"""Tickets of other runs: where they come from, and what of them is carried over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lth_scale.lazy import exports

if TYPE_CHECKING:
    from lth_scale.transfer.layers import carried_over as carried_over
    from lth_scale.transfer.layers import fresh as fresh
    from lth_scale.transfer.origins import Origin as Origin
    from lth_scale.transfer.origins import check as check
    from lth_scale.transfer.origins import origin as origin
    from lth_scale.transfer.origins import with_labels as with_labels
    from lth_scale.transfer.splicing import Spliced as Spliced

__getattr__ = exports(
    __name__, {"layers": "carried_over fresh", "origins": "Origin check origin with_labels", "splicing": "Spliced"}
)
