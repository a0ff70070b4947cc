"""Mixup and CutMix of a micro-batch, as a pure function of (augment seed, noise, step, place in the global batch)."""

from __future__ import annotations

from torch import Tensor

from lth_scale.config import Train
from lth_scale.streams import derive, torch_seeded


class Mixing:
    """Mixes images with the same batch's images in reverse or shifted order, and their targets likewise.

    Args:
        config: ``train.mixup`` and ``train.cutmix``, the alphas of their Beta distributions.
        classes: length of a target.
        seed: of the ``augment`` stream.
        noise: the round's noise.
    """

    def __init__(self, config: Train, classes: int, seed: int, noise: int) -> None:
        from torchvision.transforms import v2

        self._seed, self._noise = seed, noise
        kinds = [(config.mixup, v2.MixUp), (config.cutmix, v2.CutMix)]
        self._choice = v2.RandomChoice([kind(alpha=alpha, num_classes=classes) for alpha, kind in kinds if alpha])

    def __call__(self, images: Tensor, labels: Tensor, step: int, part: int) -> tuple[Tensor, Tensor]:
        """float32 [B, C, H, W] and int64 [B] -> mixed images and float32 [B, classes] targets."""
        with torch_seeded(derive(self._seed, "mixing", self._noise, step, part)):  # draws are on the CPU
            mixed, targets = self._choice(images, labels)
        return mixed, targets
