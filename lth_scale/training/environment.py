"""Which processes train together, and how they find one another: as torchrun starts them, as srun does, or alone."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from lth_scale.config import Hardware
from lth_scale.errors import UserError


class Srun(SLURMEnvironment):
    """Tasks of one ``srun`` as ranks.

    Lightning's own requeues the job from a signal handler, which deadlocks; takes a batch script for a task; insists on
    ``--ntasks-per-node``; and looks for the first rank on the job's first node, where the step may have no task.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    @staticmethod
    def detect() -> bool:
        """Whether this is one of several tasks; a batch script, or a shell under ``srun --pty``, is none."""
        inside = "SLURM_STEP_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ
        return inside and int(os.environ["SLURM_NTASKS"]) > 1

    @property
    def main_address(self) -> str:
        """The step's first node."""
        first = self.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
        return os.environ.setdefault("MASTER_ADDR", first)

    @property
    def main_port(self) -> int:
        """One for each step of each job."""
        own = int(os.environ["SLURM_JOB_ID"]) + 1000 * int(os.environ["SLURM_STEP_ID"])
        return int(os.environ.setdefault("MASTER_PORT", str(15000 + own % 10000)))

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Nothing: :func:`join` has compared what counts."""

    @staticmethod
    def _validate_srun_used() -> None:
        pass

    @staticmethod
    def _validate_srun_variables() -> None:
        pass


def cluster() -> ClusterEnvironment:
    """What started this process; one of the Trainer's plugins, so that it does not guess."""
    for kind in (TorchElasticEnvironment, Srun):  # torchrun may itself run under srun
        if kind.detect():
            return kind()
    return LightningEnvironment()


def launched() -> bool:
    """Whether a launcher started this process as one rank of several."""
    return not isinstance(cluster(), LightningEnvironment)


def join(hardware: Hardware) -> None:
    """Meet the other ranks of a launched job; CPU tensors travel over gloo on any device.

    Raises UserError when they are not as many as the config says.
    """
    place, expected = cluster(), hardware.devices * hardware.nodes
    if place.world_size() != expected:
        raise UserError(
            f"hardware.devices={hardware.devices} times hardware.nodes={hardware.nodes} are {expected} processes, but "
            f"{place.world_size()} were started; set the config, or srun --ntasks, or torchrun --nproc-per-node"
        )
    gpu = hardware.accelerator != "cpu" and torch.cuda.is_available()
    if gpu:  # one that srun lets see its own device only finds it as the first
        torch.cuda.set_device(place.local_rank() % torch.cuda.device_count())
    os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        rank=place.global_rank(),
        world_size=expected,
        timeout=timedelta(seconds=hardware.timeout),
    )


def leave() -> None:
    """Part in good order, all ranks at the same place; gloo aborts a process that ends without it.

    After an error it would wait for collectives that nobody answers: end the process instead (``os._exit``).
    """
    dist.destroy_process_group()


PAIR_CLOSED = "Application timeout caused pair closure"
"""All that gloo says where another collective over the same connection was the first to time out."""


def lost(error: BaseException, timeout: int) -> str | None:
    """What to say of an error that only means that another rank is gone or hangs; None of any other error.

    Args:
        error: raised while ranks talked to one another.
        timeout: ``hardware.timeout``.
    """
    told = str(error)
    ours = isinstance(error, dist.DistError) or PAIR_CLOSED in told
    if not ours and ("gloo/transport" not in told or "enforce fail" in told):
        return None
    if "timeout" in told.lower() or "timed out" in told.lower():
        return f"no answer from another rank for {timeout} s (hardware.timeout)"
    return "another rank ended"
