"""Several devices for every round: the ranks of one machine, started by torch's own launcher, and what a rank does."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.launch import die_with
from lth_scale.tasks import Task

LAUNCHER = "LTH_LAUNCHER"
"""In the environment of ranks that :func:`start` started: its pid."""


def start(words: Sequence[str], devices: int, threads: int) -> int:
    """Run ``lth WORDS`` as ``devices`` ranks; the exit code: 0, 2 for a mistake of the user's, 1 otherwise."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it tells of a failure in 30 lines
    os.environ |= {LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": str(threads)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        max_restarts=0,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "lth_scale", *words)
        return 0
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == 2:
            told = failure.error_file_data["message"]
            raise UserError((told["message"] if isinstance(told, dict) else told).removeprefix("UserError: ")) from None
        print(f"lth: rank {rank} failed (exit code {failure.exitcode}); the same command continues", file=sys.stderr)
        return 1


def record(error: UserError) -> bool:
    """Leave a rank's error to whoever started it, so that of many ranks one speaks; whether there is anybody."""
    if LAUNCHER not in os.environ or "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()
    handler.initialize()
    handler.record_exception(error)
    return True


def train(experiment: Experiment, tasks: Sequence[Task], job: str) -> bool:
    """All tasks in order, in this process, together with the other ranks; whether this is the one that reports."""
    import torch
    import torch.distributed as dist

    from lth_scale import lottery
    from lth_scale.training import first_rank, meet

    if LAUNCHER in os.environ:
        die_with(int(os.environ[LAUNCHER]))
    torch.set_num_threads(experiment.config.hardware.threads)
    meet(experiment.config.hardware)
    try:
        lottery.run(experiment, tasks, job)
        return first_rank()
    finally:
        dist.destroy_process_group()
