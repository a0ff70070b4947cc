"""Residual networks for small images: He et al. 2016, section 4.2, as Frankle & Carbin 2019 use them (appendix I)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lth_scale import config
from lth_scale.models.base import Constructor, Shape, models


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a strided 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False)).append(nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float [N, before, H, W] -> float [N, after, H / stride, W / stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks that halve the image from the second on, global average pooling, ``output``.

    Args:
        inputs: channels of an image.
        width: channels of the first stage; each further one has twice as many.
        stages: blocks of each stage.
        classes: logits.
    """

    output_layer = "output"

    def __init__(self, inputs: int, width: int, stages: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential()
        before = width
        for stage, count in enumerate(stages):
            for block in range(count):
                after, stride = width * 2**stage, 2 if stage and not block else 1
                self.blocks.append(Block(before, after, stride))
                before = after
        self.output = nn.Linear(before, classes)
        self.unprunable: dict[str, str] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, float [N, C, H, W] -> logits, float [N, classes]."""
        x = self.blocks(F.relu(self.bn1(self.conv1(images))))
        logits: torch.Tensor = self.output(x.mean((2, 3)))
        return logits


def _cifar(blocks: int) -> Constructor:
    """Three stages of 16, 32 and 64 channels; the 1x1 shortcuts are not pruned."""

    def construct(model: config.Model, shape: Shape, classes: int) -> nn.Module:
        network = ResNet(shape[0], model.width or 16, (blocks,) * 3, classes)
        shortcuts = [name for name, p in network.named_parameters() if "shortcut" in name and p.dim() == 4]
        network.unprunable = dict.fromkeys(shortcuts, "shortcut, not pruned in Frankle & Carbin 2019")
        return network

    return construct


for _blocks in (1, 2, 3, 5, 7, 9):
    models.register(f"resnet{6 * _blocks + 2}")(_cifar(_blocks))


@models.register("resnet18_cifar")
def resnet18_cifar(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    """ImageNet's ResNet-18 with a 3x3 stem and no max-pool; its shortcuts are pruned with the rest."""
    return ResNet(shape[0], model.width or 64, (2, 2, 2, 2), classes)
