"""How ranks share the work: Lightning's strategies as we need them, and the adapter to what each rank holds."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from lth_scale import world
from lth_scale.config import Hardware, Train
from lth_scale.errors import UserError
from lth_scale.shards import ReplicatedShards, Shards

STAGES = {f"deepspeed_stage_{stage}": stage for stage in (1, 2, 3)}
BUCKET = 25_000_000  # gradients that ZeRO reduces together


def make(hardware: Hardware, train: Train, ranks: int) -> Strategy:
    """Lightning's strategy for several processes whose group exists already.

    It computes in full precision: autocast is the module's business.
    """
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # FSDP2's own calls, of names that change
    gpu = on_gpu(hardware)
    backend = None if gpu else "gloo"
    if hardware.strategy in STAGES:
        return Zero(STAGES[hardware.strategy], train.clip, gpu)
    if hardware.strategy == "fsdp2":
        return ModelParallelStrategy(ranks, tensor_parallel_size=1, process_group_backend=backend)
    return Replicated(process_group_backend=backend, broadcast_buffers=False)


def plugins(hardware: Hardware) -> list[MixedPrecision]:
    """What Trainer needs for fp16, which only replicated gradients can have: the loss scale, and autocast."""
    device = "cuda" if on_gpu(hardware) else "cpu"
    scaled = hardware.precision == "fp16"
    return [MixedPrecision("16-mixed", device, torch.amp.GradScaler(device))] if scaled else []


def clips(hardware: Hardware) -> bool:
    """Whether the strategy clips gradients by itself."""
    return hardware.strategy in STAGES and hardware.devices * hardware.nodes > 1


def on_gpu(hardware: Hardware) -> bool:
    """Whether it computes on GPUs."""
    return hardware.accelerator != "cpu" and torch.cuda.is_available()


def shard(model: nn.Module) -> None:
    """Shard a model for FSDP2, once; call it from ``configure_model``.

    Each composite layer of a list or sequence is gathered on its own, and the rest as one.
    """
    if isinstance(model, FSDPModule):
        return
    mesh = init_device_mesh("cuda" if "nccl" in str(dist.get_backend_config()) else "cpu", (world.size(),))
    for parent in reversed(list(model.modules())):  # innermost first
        for layer in parent.children() if isinstance(parent, nn.Sequential | nn.ModuleList) else ():
            if _is_block(layer):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _is_block(layer: nn.Module) -> bool:
    composite = any(True for _ in layer.children()) and not isinstance(layer, nn.ModuleList | nn.ModuleDict)
    return composite and not isinstance(layer, FSDPModule) and any(True for _ in layer.parameters())


def adapter(trainer: pl.Trainer, model: nn.Module) -> Shards:
    """What this rank holds of a model, from ``on_train_start`` on."""
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        from lth_scale.shards.zero import ZeroShards

        return ZeroShards(model, trainer.strategy.optimizers[0])
    if isinstance(trainer.strategy, ModelParallelStrategy):
        from lth_scale.shards.fsdp import FsdpShards

        return FsdpShards(model, trainer.optimizers)
    return ReplicatedShards(model, trainer.optimizers)


class Replicated(DDPStrategy):
    """DDP that adds the gradients of more than two ranks in the same order in every step.

    Torch's own puts them together anew after its first step, in the order in which they came. Of a round that goes on
    that is another step than of one that was never interrupted, and sums would differ in their last bits.
    """

    def configure_ddp(self) -> None:
        """Lightning's, and a step without data or effect."""
        super().configure_ddp()
        ddp: Any = self.model
        ddp.reducer.prepare_for_forward()
        ddp.reducer.prepare_for_backward([])
        torch.stack([(0 * p).sum() for p in ddp.parameters() if p.requires_grad]).sum().backward()
        ddp.reducer._rebuild_buckets()
        ddp.zero_grad(set_to_none=True)


class Zero(DeepSpeedStrategy):
    """DeepSpeed ZeRO as Lightning has it, on CPUs too, quietly, and without compiling anything.

    Args:
        stage: 1 shards the optimizer's state, 2 gradients too, 3 weights too.
        clip: largest norm of the gradient; 0 means any.
        gpu: whether it computes on GPUs.
    """

    def __init__(self, stage: int, clip: float, gpu: bool) -> None:
        if not gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
        import deepspeed.ops

        if not gpu:
            deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # else it compiles an all-reduce of its own
        super().__init__(
            stage=stage,
            overlap_comm=gpu,
            reduce_bucket_size=BUCKET,
            allgather_bucket_size=BUCKET,
            logging_batch_size_per_gpu=1,
            logging_level=logging.ERROR,
            process_group_backend=None if gpu else "gloo",
        )
        assert isinstance(self.config, dict)
        self.config["gradient_clipping"] = clip
        self._unclipped = not clip
        if self._unclipped and stage < 3:  # nobody needs the norm
            self.config["zero_optimization"]["compute_grad_norm"] = False

    @property
    def root_device(self) -> torch.device:
        """This rank's."""
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank]

    def setup_environment(self) -> None:
        """Lightning's, without its insistence on CUDA."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Tell DeepSpeed of the process group; one of its own would wait half an hour for a rank that hangs."""
        from deepspeed.utils import groups

        self.set_world_ranks()
        self._init_deepspeed_distributed()
        groups._WORLD_GROUP = dist.group.WORLD

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        """Lightning's cannot name the device where it is a CPU."""
        import deepspeed

        parameters = [p for p in model.parameters() if p.requires_grad]
        engine, zero, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,
            optimizer=optimizer,
            config=self.config,
            dist_init_required=False,
        )
        if self._unclipped and self.zero_stage_3:  # the same there, which has no setting for it
            zero._get_norm_groups = lambda: [torch.zeros((), device=self.root_device)]
        return engine, zero

    def backward(self, closure_loss: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Lightning has divided the loss by the number of micro-batches already."""
        return super().backward(closure_loss, *arguments, scale_wrt_gas=False, **options)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *arguments: Any, **options: Any) -> Any:
        """Raise UserError where DeepSpeed passes over steps, which it does silently and for ever."""
        result = super().optimizer_step(optimizer, closure, *arguments, **options)
        if getattr(self.optimizers[0], "overflow", False):
            raise UserError("the gradient's norm is infinite or NaN; choose a lower train.lr or a longer train.warmup")
        return result

    def teardown(self) -> None:
        """Lightning's, and undo what DeepSpeed does to the process, which a next round begins in."""
        engine: Any = self.model
        if hasattr(engine, "destroy"):
            engine.destroy()
        super().teardown()
        _forget()


def _forget() -> None:
    """Empty DeepSpeed's global lists and caches of what was trained, and put torch's own function back."""
    from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    coordinator: Any = partitioned_param_coordinator.PartitionedParameterCoordinator
    cached = inspect.getclosurevars(coordinator._PartitionedParameterCoordinator__params_to_release)
    cached.nonlocals["func"].cache_clear()
    patches = partition_parameters.InsertPostInitMethodToModuleSubClasses
    nn.functional.linear = getattr(patches, "linear_bk", nn.functional.linear)
