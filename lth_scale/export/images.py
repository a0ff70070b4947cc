"""A run's images, as exported programs take them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lth_scale import data, settings
from lth_scale.export.sources import Chosen

Floats = NDArray[np.float32]


def moved(chosen: Chosen, folder: str) -> Chosen:
    """The same state with its data in another folder than its config says; as it is for an empty one."""
    if not folder or not chosen.config:
        return chosen
    config = settings.read_text(chosen.config, "the config")
    return replace(chosen, config=settings.dump(replace(config, data=replace(config.data, dir=folder))))


def load(chosen: Chosen) -> data.AnyDataset:
    """The data set that a state's config names. Raises UserError where it is not."""
    return data.load(settings.read_text(chosen.config, "the config").data)


def batches(
    dataset: data.AnyDataset, split: data.SplitName, samples: int
) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """At most so many images of a split, evenly spread over it: float32 [N, C, H, W], normalised, and labels [N]."""
    for images, labels in data.evaluation_batches(dataset, split, samples, 0, 1):
        seen = dataset.normalise(images) if images.dtype == torch.uint8 else images
        yield np.ascontiguousarray(seen.numpy()), labels.numpy()
