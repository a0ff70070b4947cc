"""Conv-2, Conv-4 and Conv-6: scaled-down VGGs (Frankle & Carbin 2019, section 3 and figure 2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lth_scale import config
from lth_scale.models.base import Constructor, Shape, models, require_size


class Conv(nn.Module):
    """Pairs of 3x3 convolutions, each pair followed by a 2x2 max-pool, then ``fc1``, ``fc2`` and ``output``.

    Args:
        shape: (channels, height, width) of an image.
        stages: channels of each pair: 64, 128, 256.
        classes: logits.
    """

    output_layer = "output"

    def __init__(self, shape: Shape, stages: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        channels, height, width = shape
        for out in stages:
            self.convolutions += [nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)]
            channels, height, width = out, height // 2, width // 2
        self.fc1 = nn.Linear(channels * height * width, 256)
        self.fc2 = nn.Linear(256, 256)
        self.output = nn.Linear(256, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, float [N, C, H, W] -> logits, float [N, classes]."""
        x = images
        for number, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            if number % 2:
                x = F.max_pool2d(x, 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: torch.Tensor = self.output(F.relu(self.fc2(x)))
        return logits


def _constructor(stages: tuple[int, ...]) -> Constructor:
    def construct(model: config.Model, shape: Shape, classes: int) -> nn.Module:
        require_size(model, shape, 2 ** len(stages))
        return Conv(shape, stages, classes)

    return construct


for _pairs in (1, 2, 3):
    models.register(f"conv{2 * _pairs}")(_constructor((64, 128, 256)[:_pairs]))
