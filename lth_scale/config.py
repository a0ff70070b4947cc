"""The configuration: frozen dataclasses, one per component, each checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lth_scale.errors import UserError, at_least, require
from lth_scale.ranges import expand


@dataclass(frozen=True)
class Data:
    """Which images, and how they reach the model. From ``crop`` on: for streamed data sets only.

    Args:
        name: a data set (``lth list datasets``).
        dir: its folder of shards; empty means the cache folder, where digits makes itself.
        augment: crop_flip pads by 4, crops back and mirrors; resized_crop cuts a random part of a streamed image.
        noise_per_round: whether later rounds see the order and augmentation of round 0 (same) or new ones (fresh).
        crop: side in pixels of what the model sees.
        held_out: training images set aside for validation, by a fixed seed; 0 leaves none to choose by.
        lanes: parts of the epoch order that are read side by side; divides the batch, is divided by the world size.
        window: samples within which each lane is shuffled, on top of the order of the shards.
        scaled_decode: whether training decodes JPEGs cheaply, at half size or less where the crop is larger still.
        randaugment: magnitude of RandAugment (two operations an image); 0 means none.
        faults: share of the samples that may be damaged and are replaced by others; 0 stops at the first.
        workers: processes that decode, per device; they change no result.
        cache: folder for shards from elsewhere (http, pipe:, compressed); empty means the cache folder.
        cache_gb: bound of that folder in GB.
    """

    name: str = "digits"
    dir: str = ""
    augment: Literal["none", "crop_flip", "resized_crop"] = "none"
    noise_per_round: Literal["same", "fresh"] = "same"
    crop: int = 224
    held_out: int = 0
    lanes: int = 64
    window: int = 512
    scaled_decode: bool = False
    randaugment: int = 0
    faults: float = 0.0
    workers: int = 2
    cache: str = ""
    cache_gb: float = 200.0

    def __post_init__(self) -> None:
        at_least(self, "data", crop=8, held_out=0, lanes=1, window=1, workers=0)
        require(0 <= self.randaugment <= 10, "data.randaugment", self.randaugment, "in 0..10")
        require(0 <= self.faults < 1, "data.faults", self.faults, "in [0, 1)")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "positive")


@dataclass(frozen=True)
class Model:
    """Which network.

    Args:
        name: a model (``lth list models``), or ``timm:NAME``.
        hidden: hidden layer sizes of lenet_300_100.
        width: channels of the first stage of the ResNets; 0 means the model's own.
        init: glorot_normal or kaiming_normal for weights with biases 0; own leaves the model's own.
        drop_path: rate at which timm's transformers leave out residual branches (stochastic depth).
    """

    name: str = "lenet_300_100"
    hidden: tuple[int, ...] = (300, 100)
    width: int = 0
    init: Literal["glorot_normal", "kaiming_normal", "own"] = "kaiming_normal"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        require(all(n > 0 for n in self.hidden), "model.hidden", self.hidden, "positive sizes")
        at_least(self, "model", width=0)
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "in [0, 1)")


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
        label_smoothing: share of each target that is spread evenly over all classes.
        mixup: alpha of mixup's Beta distribution; 0 means none.
        cutmix: the same of cutmix; with both, a coin decides for each batch.
        eval_every: the grid on which validation is measured (test, where nothing is held out).
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
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    eval_every: str = "100it"
    checkpoint_every: str = "2000it"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for key in ("batch_size", "lr", "gamma"):
            require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "positive")
        at_least(self, "train", micro_batch=0, weight_decay=0, mixup=0, cutmix=0)
        for key in ("momentum", "label_smoothing"):
            require(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "in [0, 1)")

    @property
    def drops(self) -> bool:
        """Whether the learning rate falls on the way, so that an early-stopping iteration would mostly tell where."""
        return self.schedule != "constant"


@dataclass(frozen=True)
class Rates:
    """Fractions of the surviving weights removed per round, by kind of tensor; unset: prune.rate; 0: never."""

    conv: float | None = None
    fc: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for kind in ("conv", "fc", "output"):
            rate = getattr(self, kind)
            require(rate is None or 0 <= rate < 1, f"prune.rates.{kind}", rate, "in [0, 1)")


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
        require(0 < self.rate < 1, "prune.rate", self.rate, "in (0, 1)")
        at_least(self, "prune", rounds=0, min_per_layer=0)
        require(self.to is None or 0 < self.to < 1, "prune.to", self.to, "in (0, 1)")


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
        require(bool(self.seeds), "run.seeds", self.seeds, "one number or more; a range runs upward, such as 0-4")
        object.__setattr__(self, "arms", tuple(dict.fromkeys(self.arms)))

    @property
    def replicates(self) -> tuple[int, ...]:
        """The seeds, expanded."""
        return expand(self.seeds)


@dataclass(frozen=True)
class Reinit:
    """Args: draws: how many fresh initialisations the reinit arm trains per ticket."""

    draws: int = 1

    def __post_init__(self) -> None:
        at_least(self, "reinit", draws=1)


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
        require(self.tolerance > 0, "report.tolerance", self.tolerance, "positive (points of accuracy)")


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
        channels_last: lay images and convolutions out with channels last, which GPUs prefer.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["ddp"] = "ddp"
    devices: int = 1
    nodes: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    deterministic: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        at_least(self, "hardware", devices=1, nodes=1, threads=1)


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
