"""Weights & Biases, which nobody else knows: one run a round, logged beside its attempt's files and sent from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lth_scale.lazy import exports

if TYPE_CHECKING:
    from lth_scale.tracking.identity import Identity as Identity
    from lth_scale.tracking.identity import Mode as Mode
    from lth_scale.tracking.identity import mode as mode
    from lth_scale.tracking.runs import Tracked as Tracked
    from lth_scale.tracking.runs import tracked as tracked
    from lth_scale.tracking.uploading import pending as pending
    from lth_scale.tracking.uploading import sync as sync

# The processes that only send have no use for most of it.
__getattr__ = exports(
    __name__, {"identity": "Identity Mode mode", "runs": "Tracked tracked", "uploading": "pending sync"}
)
