"""VGG for CIFAR: BatchNorm, global average pooling and one linear output (Frankle & Carbin 2019, section 4)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lth_scale import config
from lth_scale.models.base import Constructor, Shape, models, require_size

CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with BatchNorm and ReLU, a 2x2 max-pool between them, then ``output``.

    Args:
        inputs: channels of an image.
        stages: convolutions of each stage.
        classes: logits.
    """

    output_layer = "output"

    def __init__(self, inputs: int, stages: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for after, count in zip(CHANNELS, stages, strict=True):
            stage = nn.Sequential()
            for _ in range(count):
                stage.extend([nn.Conv2d(inputs, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()])
                inputs = after
            self.stages.append(stage)
        self.output = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, float [N, C, H, W] -> logits, float [N, classes]."""
        x = images
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if number else x)
        logits: torch.Tensor = self.output(x.mean((2, 3)))
        return logits


def _constructor(stages: tuple[int, ...]) -> Constructor:
    def construct(model: config.Model, shape: Shape, classes: int) -> nn.Module:
        require_size(model, shape, 16)
        return VGG(shape[0], stages, classes)

    return construct


for _stages in ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)):
    models.register(f"vgg{sum(_stages) + 3}")(_constructor(_stages))
