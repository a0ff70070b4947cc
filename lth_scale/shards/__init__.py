"""The one room that knows where a parameter's fp32 master weights and optimizer state are on this rank."""

from __future__ import annotations

from lth_scale.shards.base import LocalShard as LocalShard
from lth_scale.shards.base import Shards as Shards
from lth_scale.shards.base import plain as plain
from lth_scale.shards.replicated import ReplicatedShards as ReplicatedShards
from lth_scale.shards.state import EMA as EMA
from lth_scale.shards.state import capture as capture
from lth_scale.shards.state import chunks as chunks
from lth_scale.shards.state import differences as differences
from lth_scale.shards.state import held as held
from lth_scale.shards.state import parts as parts
from lth_scale.shards.state import restore as restore
