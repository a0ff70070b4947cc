"""CSR and BSR views of the sparse file: the same products, one entry for each survivor, only blocks that have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.nn import functional

from lth_scale.errors import UserError
from lth_scale.export import block_density, bsr, csr, read_bsr, read_csr, read_sparse
from lth_scale.export.sparse import write_sparse
from lth_scale.masks import Mask

SHAPES = {"fc.weight": (24, 40), "conv.weight": (8, 4, 3, 3), "output.weight": (10, 24), "bn.weight": (8,)}
BLOCKS = [(1, 1), (4, 4), (8, 2)]


def random_state(density: float) -> tuple[dict[str, torch.Tensor], Mask]:
    """Weights under a mask, one survivor of each exactly 0, and a bias that nothing masks."""
    generator = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()}
    state = {name: torch.randn(shape, generator=generator) * kept[name] for name, shape in SHAPES.items()}
    for name, found in kept.items():
        state[name].view(-1)[found.view(-1).nonzero()[:1]] = 0.0
    return state | {"bias": torch.ones(24)}, Mask(kept)


def packed(density: float, folder: Path) -> tuple[dict[str, torch.Tensor], Mask, Path]:
    state, mask = random_state(density)
    write_sparse(state, mask, folder / "x", {}, "fp32")
    return state, mask, folder / "x"


def images(matrix: torch.Tensor) -> torch.Tensor:
    return torch.randn(5, matrix.shape[1], generator=torch.Generator().manual_seed(1))


def assert_multiplies(found: torch.Tensor, weight: torch.Tensor) -> None:
    """In torch as a matrix and as a linear layer's weight; the control is another matrix."""
    given = images(weight.flatten(1))
    expected = given @ weight.flatten(1).T
    for product in (torch.sparse.mm(found, given.T).T, functional.linear(given, found)):
        assert torch.allclose(product, expected, atol=1e-5)
    assert not torch.allclose(functional.linear(given, found), given @ weight.flatten(1).flip(0).T, atol=1e-5)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_csr_has_an_entry_for_each_survivor(density: float, tmp_path: Path) -> None:
    state, mask, path = packed(density, tmp_path)
    found = read_csr(path)
    assert found.keys() == state.keys()
    for name in ("fc.weight", "conv.weight", "output.weight"):
        assert found[name].layout == torch.sparse_csr and found[name].shape == state[name].flatten(1).shape
        assert found[name].values().numel() == int(mask[name].sum()) == int((state[name] != 0).sum()) + 1
        assert torch.equal(found[name].to_dense(), state[name].flatten(1))
        assert_multiplies(found[name], state[name])
    assert all(torch.equal(found[name], state[name]) for name in ("bn.weight", "bias"))


def stored_blocks(kept: torch.Tensor, rows: int, columns: int) -> list[tuple[int, int]]:
    """Brute force: where a block with a survivor starts."""
    high, wide = kept.shape
    corners = [(row, column) for row in range(0, high, rows) for column in range(0, wide, columns)]
    return [(row, column) for row, column in corners if kept[row : row + rows, column : column + columns].any()]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_bsr_has_the_blocks_with_a_survivor(density: float, block: tuple[int, int], tmp_path: Path) -> None:
    state, mask, path = packed(density, tmp_path)
    found = read_bsr(path, block)
    for name in ("fc.weight", "conv.weight"):
        kept = mask[name].flatten(1)
        corners = stored_blocks(kept, *block)
        rows = np.repeat(range(len(kept) // block[0]), found[name].crow_indices().diff()) * block[0]
        columns = found[name].col_indices().numpy() * block[1]
        assert list(zip(rows, columns, strict=True)) == corners and found[name].layout == torch.sparse_bsr
        assert found[name].values().shape == (len(corners), *block)
        assert block_density(mask[name], block) == len(corners) * block[0] * block[1] / kept.numel()
        assert torch.equal(found[name].to_dense(), state[name].flatten(1))
        if block[0] == block[1]:  # others are for SciPy
            assert_multiplies(found[name], state[name])


def test_what_blocks_do_not_divide_stays_dense(tmp_path: Path) -> None:
    state, mask, path = packed(0.5, tmp_path)
    found = read_bsr(path, (4, 4))
    assert torch.equal(found["output.weight"], state["output.weight"])  # 10 outputs
    for block in ((4, 4), (0, 1)):
        with pytest.raises(UserError, match=r"block=.* must be two numbers that divide a matrix of \(10, 24\)"):
            bsr(state["output.weight"], mask["output.weight"], block)
    with pytest.raises(UserError, match=r"block=\(0, 1\) divides none of the masked matrices"):
        read_bsr(path, (0, 1))


def test_a_convolution_is_its_matrix_times_patches(tmp_path: Path) -> None:
    state, _, path = packed(0.3, tmp_path)
    given = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    columns = functional.unfold(given, 3, padding=1)
    matrix = read_csr(path)["conv.weight"]
    found = torch.stack([matrix @ patches for patches in columns]).unflatten(2, (6, 6))
    assert torch.allclose(found, functional.conv2d(given, state["conv.weight"], padding=1), atol=1e-5)


def test_a_linear_layer_takes_them(tmp_path: Path) -> None:
    state, _, path = packed(0.1, tmp_path)
    layer, given = nn.Linear(40, 24), images(state["fc.weight"])
    for found in (read_csr(path), read_bsr(path, (4, 4))):
        layer.weight = nn.Parameter(found["fc.weight"], requires_grad=False)
        expected = functional.linear(given, state["fc.weight"], layer.bias)
        assert torch.allclose(layer(given), expected, atol=1e-5)


@pytest.mark.parametrize("block", [None, *BLOCKS])
def test_scipy_takes_them(block: tuple[int, int] | None, tmp_path: Path) -> None:
    state, _, path = packed(0.1, tmp_path)
    matrix = (read_bsr(path, block) if block else read_csr(path))["fc.weight"]
    parts = tuple(part.numpy() for part in (matrix.values(), matrix.col_indices(), matrix.crow_indices()))
    found = (scipy.sparse.bsr_array if block else scipy.sparse.csr_array)(parts, matrix.shape)
    given = images(state["fc.weight"]).numpy().T
    assert np.allclose(found @ given, state["fc.weight"].numpy() @ given, atol=1e-5)


def test_a_mask_without_survivors_is_an_empty_matrix() -> None:
    weight, kept = torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.bool)
    assert csr(weight, kept).values().numel() == 0 and bsr(weight, kept, (2, 2)).values().shape == (0, 2, 2)
    assert torch.equal(functional.linear(torch.ones(3, 8), csr(weight, kept)), torch.zeros(3, 4))


def test_rounded_values_are_those_of_the_sparse_file(tmp_path: Path) -> None:
    state, mask = random_state(0.3)
    write_sparse(state, mask, tmp_path / "x", {}, "int8")
    expected = read_sparse(tmp_path / "x")["fc.weight"]
    assert torch.equal(read_csr(tmp_path / "x")["fc.weight"].to_dense(), expected)
    assert not torch.equal(expected, state["fc.weight"])
