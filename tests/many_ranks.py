"""Run the jobs of ``rank_worker`` on several real processes: forks of this one, which has everything imported."""

from __future__ import annotations

import gc
import importlib
import os
import socket
from collections.abc import Sequence
from functools import cache
from typing import Any

import rank_worker
from proofs import forks

LATE = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # a decorator in it imports torch's compiler
    "lth_scale.shards.fsdp",
    "lth_scale.shards.zero",
    "torch.distributed.algorithms.ddp_comm_hooks",
)
"""What rounds import once they need it, which takes seconds."""


@cache
def import_everything() -> None:
    """In this process, so that no fork has to."""
    os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    for name in LATE:
        importlib.import_module(name)
    gc.freeze()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def on_ranks(count: int, jobs: Sequence[dict[str, Any]], limit: float = 280) -> None:
    """Run the jobs on ``count`` gloo processes, which are told who they are as torchrun does."""
    import_everything()
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MASTER_PORT": free_port()}
    shared |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}

    def work(rank: int) -> None:
        told = shared | {"RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({key: str(value) for key, value in told.items()})
        rank_worker.run(jobs)

    assert forks(count, work, limit) == [0] * count
