"""A data set made to fit an experiment: some of its classes alone, or its images in another shape."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_scale import config
from lth_scale.data.dataset import SPLITS, Dataset, Description, Split
from lth_scale.data.preparing import moments
from lth_scale.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BATCH = 5000
Shape = tuple[int, int, int]


def adapted(dataset: Dataset, data: config.Data) -> Dataset:
    """The data set as ``data.classes`` and ``data.shape`` ask, normalised by its own new moments.

    Raises UserError naming a class that there is not.
    """
    if not data.classes and not data.shape:
        return dataset
    chosen = _classes(data, dataset.classes)
    shape = _shape(data, dataset.shape)
    train, validation, test = (_converted(_some(getattr(dataset, name), chosen), shape) for name in SPLITS)
    mean, std = moments(train.images.numpy())
    return Dataset(
        name=dataset.name,
        classes=len(chosen) or dataset.classes,
        shape=shape,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        checksum=dataset.checksum,
    )


def described(known: Description, data: config.Data) -> Description:
    """What can be said of it without the images: all but the sizes of a choice of classes."""
    _classes(data, known.classes)
    return replace(known, shape=_shape(data, known.shape))


def _shape(data: config.Data, own: Shape) -> Shape:
    if not data.shape:
        return own
    channels, height, width = data.shape
    return channels, height, width


def _classes(data: config.Data, count: int) -> tuple[int, ...]:
    chosen = data.classes
    assert isinstance(chosen, tuple)
    if wrong := [number for number in chosen if number >= count]:
        raise UserError(
            f"data.classes={list(chosen)} is not valid: {data.name} has classes 0..{count - 1}, no {wrong[0]}"
        )
    return chosen


def _some(split: Split, chosen: tuple[int, ...]) -> Split:
    """The images of these classes, in their order; label i is the i-th class chosen."""
    if not chosen:
        return split
    places = torch.full((int(split.labels.max()) + 1 if len(split) else 1,), -1)
    for new, old in enumerate(chosen):
        if old < len(places):
            places[old] = new
    labels = places[split.labels]
    rows = (labels >= 0).nonzero().flatten()
    return Split(split.images[rows], labels[rows])


def _converted(split: Split, shape: Shape) -> Split:
    """uint8 images [N, *shape]: grey repeated or colours weighed (BT.601), resized bilinearly with antialiasing."""
    if tuple(split.images.shape[1:]) == shape or not len(split):
        return split
    return Split(torch.cat([_convert(piece, shape) for piece in split.images.split(BATCH)]), split.labels)


def _convert(images: Tensor, shape: Shape) -> Tensor:
    channels, *size = shape
    values = images.float()
    if images.shape[1] == 3 and channels == 1:
        values = (values * torch.tensor(LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
    values = values.expand(-1, channels, -1, -1)
    if list(images.shape[2:]) != size:
        values = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
    return values.round().clamp(0, 255).to(torch.uint8)
