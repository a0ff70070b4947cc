"""LeNet-300-100 and its kin: fully connected networks on flattened images (Frankle & Carbin 2019, section 2)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from lth_scale import config
from lth_scale.models.base import Shape, models


class LeNet(nn.Module):
    """Hidden layers ``fc1``, ``fc2``, ... with ReLU, then ``output``.

    Args:
        inputs: numbers in one image.
        hidden: units of each hidden layer.
        classes: logits.
    """

    output_layer = "output"

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int) -> None:
        super().__init__()
        for number, (before, after) in enumerate(pairwise((inputs, *hidden)), start=1):
            self.add_module(f"fc{number}", nn.Linear(before, after))
        self.output = nn.Linear((inputs, *hidden)[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, float [N, ...] -> logits, float [N, classes]."""
        x = images.flatten(1)
        for name, layer in self.named_children():
            x = layer(x) if name == self.output_layer else F.relu(layer(x))
        return x


@models.register("lenet_300_100")
def lenet_300_100(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    """266,200 weights on MNIST; ``model.hidden`` gives other sizes and depths."""
    return LeNet(math.prod(shape), model.hidden, classes)
