"""A vision transformer for small images: timm's (Dosovitskiy et al. 2021), which cuts them into 4x4 patches."""

from __future__ import annotations

from torch import nn

from lth_scale import config
from lth_scale.errors import UserError
from lth_scale.models.base import Shape, models

GRID = 4
DEPTH, EMBEDDING, HEADS, MLP_RATIO = 6, 64, 4, 2.0


@models.register("vit_4x4")
def vit_4x4(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    """16 patches, so of 7x7 pixels on MNIST; depth 6, 64 numbers a token: 0.2M weights."""
    from timm.models.vision_transformer import VisionTransformer  # slow to import, and only needed here

    channels, height, width = shape
    if height % GRID or width % GRID:
        raise UserError(
            f"model.name={model.name!r} needs images of a multiple of {GRID} pixels each way; "
            f"the data set's are {'x'.join(map(str, shape))} (channels x height x width)"
        )
    network: nn.Module = VisionTransformer(
        img_size=(height, width),
        patch_size=(height // GRID, width // GRID),
        in_chans=channels,
        num_classes=classes,
        embed_dim=EMBEDDING,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP_RATIO,
    )
    return network
