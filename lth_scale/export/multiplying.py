"""A sparse file as a program on a CPU: the network that its metadata describe, run with its surviving weights only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lth_scale import data, models, settings
from lth_scale.errors import UserError
from lth_scale.export.network import fill
from lth_scale.export.sparse import read_described
from lth_scale.inference import Sparse, compiled
from lth_scale.models.base import Shape
from lth_scale.models.compacting import compacted

PROBES, TOLERANCE = 3, 1e-3  # images of noise, and how far outputs may be from the network's, of the largest


def description(config: str) -> dict[str, str]:
    """What a file has to say so that its network can be built from it: the config, and what its data are like.

    Empty where there is no config; without shape and classes where the data are not here to be asked.
    """
    if not config:
        return {}
    try:
        seen = data.describe(settings.read_text(config, Path("the config")).data)
    except UserError:
        return {"config": config}
    return {"config": config, "shape": json.dumps(seen.shape), "classes": str(seen.classes)}


def described(about: Mapping[str, str], path: Path) -> tuple[nn.Module, Shape]:
    """The network of a :func:`description`, not yet filled, in eval mode; and the shape of an image.

    Raises:
        UserError: the file says too little.
    """
    if missing := [key for key in ("config", "shape", "classes") if key not in about]:
        raise UserError(
            f"{path} does not tell its network ({', '.join(missing)} missing); export it from a run folder whose data"
            " are there"
        )
    channels, height, width = json.loads(about["shape"])
    shape = (channels, height, width)
    config = settings.read_text(about["config"], path)
    return models.build(config.model, shape, int(about["classes"]), 0).eval(), shape


def load_sparse(path: Path | str) -> Sparse:
    """The program of a file that ``lth ticket export --format sparse`` made; called with images, it gives logits.

    Images are float32 [N, channels, height, width], normalised as in training; logits float32 [N, classes]. It is run
    beside the network itself on images of noise before it is given away.

    Raises:
        UserError: a damaged file, one that does not tell its network, a network of which sparse inference does not
            know every function, or llvmlite is not installed.
    """
    path = Path(path)
    state, about = read_described(path)
    model, shape = described(about, path)
    fill(model, state)
    run = compiled(compacted(model, shape).model, shape)
    noise = torch.randn(PROBES, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(noise)
    away = float((torch.from_numpy(run(noise.numpy())) - expected).abs().max())
    if not away <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the sparse program of {path} differs from its network by {away:.3g}; please report this")
    return run
