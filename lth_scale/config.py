"""The configuration: frozen dataclasses, one per component, each checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from lth_scale.errors import UserError


def expand(values: str | int | Iterable[int | str]) -> tuple[int, ...]:
    """``"0-2,5"``, ``[0, 1, 2, 5]`` or ``0`` -> ``(0, 1, 2, 5)``; raises ValueError on anything else."""
    parts = [values] if isinstance(values, int) else values.split(",") if isinstance(values, str) else values
    numbers: list[int] = []
    for part in parts:
        first, _, last = str(part).strip().partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(numbers))


def _require(condition: bool, key: str, value: object, valid: str) -> None:
    if not condition:
        raise UserError(f"{key}={value!r} is not valid; it must be {valid}")


@dataclass(frozen=True)
class Data:
    """Which images, and how they reach the model.

    Args:
        name: a data set (``lth list datasets``).
        dir: its folder of shards; empty means the cache folder, where digits makes itself.
        augment: crop_flip pads by 4, crops back and mirrors at random.
        noise_per_round: whether later rounds see the order and augmentation of round 0 (same) or new ones (fresh).
    """

    name: str = "digits"
    dir: str = ""
    augment: Literal["none", "crop_flip"] = "none"
    noise_per_round: Literal["same", "fresh"] = "same"


@dataclass(frozen=True)
class Model:
    """Which network.

    Args:
        name: a model (``lth list models``), or ``timm:NAME``.
        hidden: hidden layer sizes of lenet_300_100.
        width: channels of the first stage of the ResNets; 0 means the model's own.
        init: glorot_normal or kaiming_normal for weights with biases 0; own leaves the model's own.
    """

    name: str = "lenet_300_100"
    hidden: tuple[int, ...] = (300, 100)
    width: int = 0
    init: Literal["glorot_normal", "kaiming_normal", "own"] = "kaiming_normal"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _require(all(n > 0 for n in self.hidden), "model.hidden", self.hidden, "positive sizes")
        _require(self.width >= 0, "model.width", self.width, "0 (the model's own) or positive")


@dataclass(frozen=True)
class Train:
    """How one round trains. Durations are ``"10ep"`` or ``"500it"``; one step is one global batch.

    Args:
        duration: T, the length of the dense round.
        batch_size: samples of one step, over all devices.
        micro_batch: samples of one forward on one device; 0 means batch_size / world size, fixed with the run folder.
        optimizer: sgd (with momentum), nesterov, adam or adamw.
        lr: peak learning rate.
        momentum: of sgd and nesterov.
        weight_decay: L2 (sgd, nesterov, adam) or decoupled (adamw).
        decay: all parameters decay, or weights only (neither biases nor norm layers).
        schedule: constant, multistep (times gamma at each milestone) or cosine (to 0 at T).
        milestones: of multistep.
        gamma: of multistep.
        warmup: linear from 0 over this many steps.
        eval_every: the grid on which validation is measured.
        checkpoint_every: how many steps a crash may cost.
    """

    duration: str = "600it"
    batch_size: int = 60
    micro_batch: int = 0
    optimizer: Literal["sgd", "nesterov", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: Literal["all", "weights"] = "all"
    schedule: Literal["constant", "multistep", "cosine"] = "constant"
    milestones: tuple[str, ...] = ()
    gamma: float = 0.1
    warmup: str = "0it"
    eval_every: str = "100it"
    checkpoint_every: str = "2000it"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _require(self.batch_size > 0, "train.batch_size", self.batch_size, "positive")
        _require(
            self.micro_batch >= 0, "train.micro_batch", self.micro_batch, "0 (batch_size / world size) or positive"
        )
        _require(self.lr > 0, "train.lr", self.lr, "positive")
        _require(0 <= self.momentum < 1, "train.momentum", self.momentum, "in [0, 1)")
        _require(self.gamma > 0, "train.gamma", self.gamma, "positive")
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or positive")


@dataclass(frozen=True)
class Rates:
    """Fractions of the surviving weights removed per round, by kind of tensor; unset: prune.rate; 0: never."""

    conv: float | None = None
    fc: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for kind in ("conv", "fc", "output"):
            rate = getattr(self, kind)
            _require(rate is None or 0 <= rate < 1, f"prune.rates.{kind}", rate, "in [0, 1)")


@dataclass(frozen=True)
class Prune:
    """How a mask becomes the next one.

    Args:
        rate: fraction of the surviving weights removed per round, in (0, 1).
        rates: the same by kind of tensor.
        rounds: R; rounds 0 (dense) to R are trained.
        to: instead of rounds: as many as it takes to reach this density.
        scope: global or layer (``lth list scopes``).
        criterion: what ranks the weights (``lth list criteria``).
        min_per_layer: weights that each tensor keeps at least.
    """

    rate: float = 0.2
    rates: Rates = field(default_factory=Rates)
    rounds: int = 16
    to: float | None = None
    scope: str = "global"
    criterion: str = "magnitude"
    min_per_layer: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.rate < 1, "prune.rate", self.rate, "in (0, 1)")
        _require(self.rounds >= 0, "prune.rounds", self.rounds, "0 or more")
        _require(self.to is None or 0 < self.to < 1, "prune.to", self.to, "in (0, 1)")
        _require(self.min_per_layer >= 0, "prune.min_per_layer", self.min_per_layer, "0 or more")


@dataclass(frozen=True)
class Rewind:
    """Where a later round starts.

    Args:
        at: the rewind point k: ``"0"``, ``"500it"`` or ``"2ep"``.
        keep: further points that the dense pass stores.
        recipe: what is restored (``lth list recipes``).
    """

    at: str = "0"
    keep: tuple[str, ...] = ()
    recipe: str = "continue"

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", str(self.at))
        object.__setattr__(self, "keep", tuple(map(str, self.keep)))


@dataclass(frozen=True)
class Run:
    """Which replicates and arms. Neither changes the others' results.

    Args:
        seeds: replicates: a list, or ranges such as ``0-4``.
        arms: what is trained at each density (``lth list arms``); ticket makes the masks.
    """

    seeds: tuple[int, ...] | str | int = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = ("ticket", "reinit", "random")

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "seeds", expand(self.seeds))
        except ValueError:
            raise UserError(f"run.seeds={self.seeds!r} is not valid; write numbers or ranges such as 0-4,7") from None
        _require(bool(self.seeds), "run.seeds", self.seeds, "one number or more; a range runs upward, such as 0-4")
        object.__setattr__(self, "arms", tuple(dict.fromkeys(self.arms)))

    @property
    def replicates(self) -> tuple[int, ...]:
        """The seeds, expanded."""
        assert isinstance(self.seeds, tuple)
        return self.seeds


@dataclass(frozen=True)
class Reinit:
    """Args: draws: how many fresh initialisations the reinit arm trains per ticket."""

    draws: int = 1

    def __post_init__(self) -> None:
        _require(self.draws >= 1, "reinit.draws", self.draws, "1 or more")


@dataclass(frozen=True)
class Seeds:
    """The random streams; unset means the replicate's own seed."""

    init: int | None = None
    order: int | None = None
    augment: int | None = None
    mask: int | None = None
    dropout: int | None = None


@dataclass(frozen=True)
class Report:
    """Args: tolerance: points of test accuracy that a matching ticket may fall short of its dense network."""

    tolerance: float = 0.2

    def __post_init__(self) -> None:
        _require(self.tolerance > 0, "report.tolerance", self.tolerance, "positive (points of accuracy)")


@dataclass(frozen=True)
class Hardware:
    """Where it runs.

    Args:
        accelerator: auto, cpu or gpu.
        strategy: how several devices share the work.
        devices: per node.
        nodes: machines.
        precision: fp32, or bf16 (mixed).
        threads: CPU threads per process; part of the bits, so never derived from the machine.
        deterministic: on GPU, deterministic kernels.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["ddp"] = "ddp"
    devices: int = 1
    nodes: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        for key in ("devices", "nodes", "threads"):
            _require(getattr(self, key) >= 1, f"hardware.{key}", getattr(self, key), "1 or more")


@dataclass(frozen=True)
class Config:
    """One experiment."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    prune: Prune = field(default_factory=Prune)
    rewind: Rewind = field(default_factory=Rewind)
    run: Run = field(default_factory=Run)
    reinit: Reinit = field(default_factory=Reinit)
    seeds: Seeds = field(default_factory=Seeds)
    report: Report = field(default_factory=Report)
    hardware: Hardware = field(default_factory=Hardware)
