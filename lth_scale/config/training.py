"""What is trained, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lth_scale.errors import at_least, require
from lth_scale.ranges import numbers


@dataclass(frozen=True)
class Data:
    """Which images, and how they reach the model. From ``crop`` on: for streamed data sets only.

    Args:
        name: a data set (``lth list datasets``).
        dir: its folder of shards; empty means the cache folder, where digits makes itself.
        classes: keep these classes alone, such as 0-4 or [1, 7], renumbered from 0; empty means all. In memory only.
        shape: convert images to these (channels, height, width); empty means their own. In memory only.
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
        cache: folder for shards from elsewhere (http, pipe:, compressed); empty means the cache folder; variables such
            as $TMPDIR are those of the node.
        cache_gb: bound of that folder in GB.
        stage: whether shards that could be read where they lie go through that folder too.
    """

    name: str = "digits"
    dir: str = ""
    classes: tuple[int, ...] | str | int = ()
    shape: tuple[int, ...] = ()
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
    stage: bool = False

    def __post_init__(self) -> None:
        at_least(self, "data", crop=8, held_out=0, lanes=1, window=1, workers=0)
        require(0 <= self.randaugment <= 10, "data.randaugment", self.randaugment, "in 0..10")
        require(0 <= self.faults < 1, "data.faults", self.faults, "in [0, 1)")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "positive")
        object.__setattr__(self, "shape", tuple(self.shape))
        usable = (
            len(self.shape) in (0, 3) and all(size > 0 for size in self.shape) and self.shape[:1] in ((), (1,), (3,))
        )
        require(usable, "data.shape", list(self.shape), "[1 or 3, height, width], or empty")
        classes = numbers("data.classes", self.classes)
        object.__setattr__(self, "classes", classes)
        require(len(set(classes)) == len(classes) != 1, "data.classes", list(classes), "two different numbers or more")


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
        clip: largest norm of the gradient, of the surviving weights only; 0 means any.
        ema: decay per step of an average of the weights, which is what is evaluated; 0 means none.
        sync_batchnorm: batch statistics over all devices instead of one micro-batch; on GPUs only.
        compact: later rounds leave out units without any surviving weight, in or out; equal to rounding, and faster.
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
    clip: float = 0.0
    ema: float = 0.0
    sync_batchnorm: bool = False
    compact: bool = False
    eval_every: str = "100it"
    checkpoint_every: str = "2000it"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for key in ("batch_size", "lr", "gamma"):
            require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "positive")
        at_least(self, "train", micro_batch=0, weight_decay=0, mixup=0, cutmix=0, clip=0)
        for key in ("momentum", "label_smoothing", "ema"):
            require(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "in [0, 1)")

    @property
    def drops(self) -> bool:
        """Whether the learning rate falls on the way, so that an early-stopping iteration would mostly tell where."""
        return self.schedule != "constant"
