"""Compressed sparse rows (CSR) and blocks of them (BSR): views of a sparse file, for runtimes that compute with them.

They are made at load and never written: an index of each weight takes more room than one bit of all as soon as more
than a few percent survive. docs/export.md has which runtimes take them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from lth_scale.errors import UserError
from lth_scale.export.sealed import Tensors
from lth_scale.export.sparse import read_masked

Block = tuple[int, int]


def read_csr(path: Path) -> Tensors:
    """The state of a sparse file, what is masked as CSR matrices (:func:`csr`), all else as it was.

    Tensors of one dimension stay dense. Raises UserError as :func:`lth_scale.export.read_sparse`.
    """
    state, masks = read_masked(path)
    return state | {name: csr(state[name], kept) for name, kept in masks.items() if kept.dim() > 1}


def read_bsr(path: Path, block: Block) -> Tensors:
    """The same as BSR matrices (:func:`bsr`) with blocks of [outputs, inputs]; what they do not divide stays dense.

    Raises UserError as :func:`lth_scale.export.read_sparse`, or for a block that divides none.
    """
    state, masks = read_masked(path)
    fitting = {name: kept for name, kept in masks.items() if kept.dim() > 1 and _divides(block, kept)}
    if not fitting:
        raise UserError(f"block={block!r} divides none of the masked matrices of {path}; (1, 1) divides all")
    return state | {name: bsr(state[name], kept, block) for name, kept in fitting.items()}


def csr(weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """A weight as a sparse CSR matrix of [out, in], or of [out, in x kh x kw] for a convolution.

    It has one value for each survivor, also where that is exactly 0, in the weight's type, and int64 indices.

    Args:
        weight: [out, in, ...], pruned weights 0.
        kept: its mask, bool of the same shape.
    """
    values, found = weight.flatten(1), kept.flatten(1)
    places = found.nonzero()[:, 1]
    with _unwarned():
        return torch.sparse_csr_tensor(_starts(found), places, values[found], values.shape)


def bsr(weight: torch.Tensor, kept: torch.Tensor, block: Block) -> torch.Tensor:
    """A weight as a sparse BSR matrix: of the same shape as :func:`csr`, whole blocks with a survivor are stored.

    Args:
        weight: [out, in, ...], pruned weights 0.
        kept: its mask, bool of the same shape.
        block: its [outputs, inputs]; they divide the matrix. Torch multiplies square ones on a CPU, SciPy any.

    Raises:
        UserError: they do not.
    """
    found = _blocks(kept, block).any((2, 3))
    values = _blocks(weight, block)[found]
    with _unwarned():
        return torch.sparse_bsr_tensor(_starts(found), found.nonzero()[:, 1], values, weight.flatten(1).shape)


def block_density(kept: torch.Tensor, block: Block) -> float:
    """The share of a mask's blocks with a survivor; at density d, drawn at random, it is 1 - (1 - d)^size.

    Raises UserError for a block that does not divide the matrix.
    """
    return float(_blocks(kept, block).any((2, 3)).double().mean())


def _blocks(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """[out, in, ...] -> [rows of blocks, columns of blocks, outputs of a block, inputs of a block]."""
    if not _divides(block, tensor):
        shape = tuple(tensor.flatten(1).shape)
        raise UserError(f"block={block!r} is not valid; it must be two numbers that divide a matrix of {shape}")
    rows, columns = block
    return tensor.flatten(1).unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)


def _divides(block: Block, tensor: torch.Tensor) -> bool:
    matrix = tensor.flatten(1)
    return all(edge > 0 and size % edge == 0 for size, edge in zip(matrix.shape, block, strict=True))


def _starts(found: torch.Tensor) -> torch.Tensor:
    """Where each row's entries start, and where the last one's end."""
    return torch.nn.functional.pad(found.sum(1).cumsum(0), (1, 0))


def _unwarned() -> warnings.catch_warnings:
    """Without torch's note that CSR is in beta; docs/export.md says so."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
