"""Where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lth_scale.errors import UserError, at_least


@dataclass(frozen=True)
class Hardware:
    """Where it runs.

    Args:
        accelerator: auto, cpu or gpu.
        strategy: how several devices share the work: everything on each (ddp), or in shards.
        devices: per node.
        nodes: machines.
        precision: fp32, or bf16 or fp16 (mixed: masters stay fp32).
        threads: CPU threads per process; part of the bits, so never derived from the machine.
        deterministic: on GPU, deterministic kernels.
        channels_last: lay images and convolutions out with channels last, which GPUs prefer.
        compile: whether the model goes through torch.compile.
        scratch: folder on each node through which checkpoints go, so that training need not wait for the file server;
            variables such as $TMPDIR are those of the node; empty: none.
        timeout: seconds after which a device that does not answer ends all.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3", "fsdp2"] = "ddp"
    devices: int = 1
    nodes: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = 1
    deterministic: bool = False
    channels_last: bool = False
    compile: bool = False
    scratch: str = ""
    timeout: int = 1800

    def __post_init__(self) -> None:
        at_least(self, "hardware", devices=1, nodes=1, threads=1, timeout=1)
        if self.sharded and self.precision == "fp16":
            raise self._refused("precision", "no gradient scaler works over shards here; choose bf16 or fp32")
        if self.sharded and self.channels_last:
            raise self._refused("channels_last", "shards are cut from tensors laid out row after row; choose false")
        if self.strategy == "deepspeed_stage_3" and self.compile:
            why = "DeepSpeed gathers each layer's weights in hooks, which torch compiles anew until it gives up"
            raise self._refused("compile", f"{why}; choose false, deepspeed_stage_2, fsdp2")

    def _refused(self, key: str, why: str) -> UserError:
        value = getattr(self, key)
        return UserError(f"hardware.{key}={value!r} is not valid with strategy {self.strategy}: {why}, or ddp")

    @property
    def sharded(self) -> bool:
        """Whether a device holds a part of the model only."""
        return self.strategy != "ddp"
