"""Masks: counts, files of 1 bit a weight, and every kind of damage."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from lth_scale.errors import UserError
from lth_scale.files import sha256_file
from lth_scale.masks import Bits, Mask

SHAPES = {"conv.weight": (4, 3, 3, 3), "fc.weight": (5, 7), "out.weight": (1, 3)}


def random_mask(seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(shape, generator=generator) < 0.4 for name, shape in SHAPES.items()})


def test_ones_keeps_everything() -> None:
    mask = Mask.ones(SHAPES)
    assert (mask.kept, mask.numel, mask.density) == (146, 146, 1.0)
    assert mask.shapes == SHAPES


def test_counts_and_density() -> None:
    mask = Mask({"a": torch.tensor([True, False, True]), "b": torch.tensor([[False], [True]])})
    assert mask.counts() == {"a": (2, 3), "b": (1, 2)}
    assert mask.kept == 3 and mask.density == 3 / 5


def test_a_mask_is_a_copy() -> None:
    kept = torch.ones(20, dtype=torch.bool)
    mask = Mask({"a": kept})
    kept[3] = False
    mask["a"][4] = False
    assert mask.kept == 20 and bool(mask["a"].all())


def test_ranges_share_the_bits_of_the_whole() -> None:
    mask = random_mask()
    flat = mask["conv.weight"].flatten().numpy()
    for start, stop in ((0, 108), (13, 30), (50, 50)):
        assert mask.range("conv.weight", start, stop)[:].tolist() == flat[start:stop].tolist()
    with pytest.raises(AssertionError, match="beyond"):
        mask.range("conv.weight", 100, 109)


def test_only_bools() -> None:
    with pytest.raises(TypeError, match="float32"):
        Mask({"a": torch.ones(3)})


masks = st.dictionaries(
    st.text("ab.é", min_size=1, max_size=4),
    arrays.arrays(bool, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)).map(torch.from_numpy),
    max_size=4,
).map(Mask)


@given(mask=masks)
def test_file_gives_back_the_mask(mask: Mask, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    mask.save(path)
    loaded = Mask.load(path)
    assert loaded == mask and loaded.sha256() == mask.sha256() and loaded.counts() == mask.counts()


def test_equal_masks_give_equal_bytes(tmp_path: Path) -> None:
    mask = random_mask()
    written = set()
    for number in range(8):
        Mask({name: mask[name].clone() for name in sorted(mask, reverse=bool(number % 2))}).save(tmp_path / "m")
        written.add((tmp_path / "m").read_bytes())
    assert len(written) == 1


ODD = {"out.weight": (1, 3), "conv.weight": (4, 3, 3, 3), 'na"m\u00e9\n\x01': (2, 0, 3), "scalar": ()}


def test_the_format_stays(tmp_path: Path) -> None:
    """The bytes and the hash that were frozen when the format was."""
    mask = Mask({name: (torch.arange(math.prod(shape)) * 7 % 5 < 2).reshape(shape) for name, shape in ODD.items()})
    mask.save(tmp_path / "m")
    assert sha256_file(tmp_path / "m") == "6574e383653d9b369c478d521939d0040ef39365515fd8cd13aeb9180ebaed07"
    assert (
        mask.sha256()
        == Mask.load(tmp_path / "m").sha256()
        == "d18fbc7ec783e830a84406ead072815521e93e32ef488c1272b32e5c4bd7ec2f"
    )


@given(mask=masks)
def test_the_bytes_are_the_librarys(mask: Mask, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "library.safetensors"
    mask.save(path)
    with safe_open(path, framework="pt") as stream:
        assert path.read_bytes() == save(load_file(path), stream.metadata())


def test_loading_maps_the_file(tmp_path: Path) -> None:
    """A mapped mask outlives the replacement of its file, and cannot be written to."""
    random_mask().save(tmp_path / "m")
    mask = Mask.load(tmp_path / "m")
    bits = mask.range("fc.weight", 0, 35)
    assert isinstance(bits.data.base.base, np.memmap) and not bits.data.flags.writeable
    random_mask(1).save(tmp_path / "m")
    assert mask == random_mask() and Mask.load(tmp_path / "m") == random_mask(1)


def test_nothing_unpacks_a_whole_mask(tmp_path: Path) -> None:
    size = 80_000_000
    first, second = (Mask.of({"a": (size,)}, {"a": Bits.ones(size)}) for _ in range(2))
    tracemalloc.start()
    try:
        first.save(tmp_path / "m")
        loaded = Mask.load(tmp_path / "m")
        assert loaded == first and loaded.within(first) and loaded.kept == second.kept == size
        assert loaded.sha256() == second.sha256()
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < size // 8, "not even its bits are copied"
        assert bool(loaded["a"].all()) and tracemalloc.get_traced_memory()[1] >= size, (
            "whoever asks for bools gets them"
        )
    finally:
        tracemalloc.stop()


def test_one_bit_a_weight(tmp_path: Path) -> None:
    Mask.ones({"big": (1000, 1000)}).save(tmp_path / "m")
    assert 125_000 < (tmp_path / "m").stat().st_size < 125_600


def test_first_weight_is_the_lowest_bit(tmp_path: Path) -> None:
    Mask({"a": torch.tensor([True, False, False, True, False, False, False, False, True])}).save(tmp_path / "m")
    assert load_file(tmp_path / "m")["a"].tolist() == [0b1001, 1]


def test_hash_depends_on_names_shapes_and_bits() -> None:
    kept = torch.tensor([True, False, True, True])
    variants = [
        Mask({"a": kept}),
        Mask({"b": kept}),
        Mask({"a": kept.reshape(2, 2)}),
        Mask({"a": ~kept}),
        Mask({"a": kept, "b": kept}),
        Mask({"a": torch.cat([kept, torch.tensor([False])])}),
    ]
    assert len({mask.sha256() for mask in variants}) == len(variants)
    assert all((first == second) == (first is second) for first in variants for second in variants)
    assert Mask({"a": kept, "b": ~kept}).sha256() == Mask({"b": ~kept, "a": kept}).sha256()


def test_within() -> None:
    mask = random_mask()
    smaller = Mask({name: kept & random_mask(1)[name] for name, kept in mask.items()})
    assert smaller.within(mask) and mask.within(mask) and mask.within(Mask.ones(SHAPES))
    assert not mask.within(smaller)
    assert not Mask({"a": torch.ones(1, dtype=torch.bool)}).within(mask)


def test_check_model_names_what_differs() -> None:
    mask = random_mask()
    mask.check_model(SHAPES)
    with pytest.raises(UserError, match=r"extra\.weight is missing in the mask"):
        mask.check_model(SHAPES | {"extra.weight": (2,)})
    with pytest.raises(UserError, match=r"out\.weight is not a prunable tensor"):
        mask.check_model({name: shape for name, shape in SHAPES.items() if name != "out.weight"})
    with pytest.raises(UserError, match=r"fc\.weight has shape \(5, 7\) in the mask and \(7, 5\) in the model"):
        mask.check_model(SHAPES | {"fc.weight": (7, 5)})


def rewrite(path: Path, **changes: object) -> None:
    """Change the header of a mask file, its tensors as they are."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["mask"])
    save_file(tensors, path, {"mask": json.dumps(header | changes)})


def replace_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Change the tensors of a mask file, its header as it is."""
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    save_file(tensors, path, metadata)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 16
    path.write_bytes(data)


DAMAGES = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "bit flipped": flip,
    "not safetensors": lambda path: path.write_text("hello, this is no mask"),
    "wrong shape, other size": lambda path: rewrite(path, shapes=SHAPES | {"fc.weight": (50, 7)}),
    "wrong shape, same size": lambda path: rewrite(path, shapes=SHAPES | {"fc.weight": (7, 5)}),
    "missing tensor": lambda path: replace_tensors(
        path, {name: bits for name, bits in load_file(path).items() if name != "fc.weight"}
    ),
    "extra tensor": lambda path: replace_tensors(path, load_file(path) | {"more": torch.zeros(1, dtype=torch.uint8)}),
    "other dtype": lambda path: replace_tensors(path, {name: bits.char() for name, bits in load_file(path).items()}),
    "padding bits": lambda path: replace_tensors(
        path, load_file(path) | {"out.weight": load_file(path)["out.weight"] | 128}
    ),
    "other version": lambda path: rewrite(path, version="2"),
    "other checksum": lambda path: rewrite(path, sha256="0" * 64),
    "shapes are no table": lambda path: rewrite(path, shapes=[1, 2]),
    "weights, not a mask": lambda path: save_file({"fc.weight": torch.ones(3)}, path),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    random_mask().save(path)
    DAMAGES[damage](path)
    with pytest.raises(UserError, match=r"mask\.safetensors"):
        Mask.load(path)


def test_no_single_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    mask = random_mask()
    mask.save(path)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert Mask.load(path) == mask, f"byte {place}"
        except UserError:
            noticed += 1
    assert noticed >= 0.9 * len(whole)
