"""Run the jobs of ``rank_worker`` on several real processes: forks of this one, which has everything imported."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import rank_worker
from proofs import ended, fork, gone, kill

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed  # noqa: F401  # takes seconds, so not in every fork


def on_ranks(count: int, jobs: Sequence[dict[str, Any]], limit: float = 200) -> None:
    """Run the jobs on ``count`` gloo processes, which are told who they are as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}

    def work(rank: int) -> None:
        told = shared | {"RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({key: str(value) for key, value in told.items()})
        rank_worker.run(jobs)

    pids = [fork(lambda rank=rank: work(rank)) for rank in range(count)]  # type: ignore[misc]
    deadline = time.monotonic() + limit
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in pids:
        if not gone(pid):
            kill(pid)
    assert [ended(pid) for pid in pids] == [0] * count
