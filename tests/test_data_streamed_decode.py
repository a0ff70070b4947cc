"""What the model sees of an encoded image: torchvision's crops of Pillow's pixels, drawn purely."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional

from lth_scale.data.streamed import decode, looks
from lth_scale.data.streamed.decode import Look, eval_image, train_image
from lth_scale.data.streamed.looks import DRAWS, Box, central_box, random_box, reduction, scaled_box
from lth_scale.streams import uniforms

CROP = 32
WHOLE, SCALED = Look(CROP, "resized_crop", False, 0), Look(CROP, "resized_crop", True, 0)


@cache
def pixels(height: int = 150, width: int = 200, seed: int = 0) -> Image.Image:
    """Shapes and noise, like a photograph's spectrum."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    noise = generator.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "jpeg", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1).contiguous()


def seen(data: bytes, look: Look = WHOLE, sample: int = 0, seed: int = 0, noise: int = 0, epoch: int = 0) -> Tensor:
    return train_image(data, look, seed, noise, epoch, sample)


def box_and_flip(data: bytes, sample: int) -> tuple[Box, bool]:
    """The draws of a sample, taken again."""
    uniform = iter(uniforms(DRAWS, 0, "augment", 0, 0, sample)).__next__
    height, width = by_pillow(data).shape[1:]
    return random_box(height, width, uniform), uniform() < 0.5


@pytest.mark.parametrize("height, width", [(150, 200), (47, 33), (20, 300), (300, 20), (1, 1), (CROP, CROP)])
def test_a_crop_is_torchvisions_crop_of_the_whole_image(height: int, width: int) -> None:
    data = encoded(pixels(height, width))
    flips = set()
    for sample in range(12):
        box, flip = box_and_flip(data, sample)
        expected = functional.resized_crop(by_pillow(data), *box, [CROP, CROP], antialias=True)
        assert torch.equal(seen(data, sample=sample), expected.flip(2) if flip else expected)
        flips.add(flip)
    assert flips == {False, True}


@pytest.mark.parametrize("height, width", [(150, 200), (40, 30), (33, 500)])
@pytest.mark.parametrize("look", [WHOLE, SCALED], ids=["whole", "scaled"])
def test_evaluation_is_torchvisions_resize_and_centre_of_the_whole_image(height: int, width: int, look: Look) -> None:
    data = encoded(pixels(height, width))
    expected = v2.Compose([v2.Resize(round(CROP / 0.875), antialias=True), v2.CenterCrop(CROP)])(by_pillow(data))
    assert torch.equal(eval_image(data, CROP), expected)
    unaugmented = Look(CROP, "none", look.scaled, 9)
    assert torch.equal(seen(data, unaugmented), expected)


@pytest.mark.parametrize("look", [WHOLE, SCALED, Look(CROP, "resized_crop", False, 9)], ids=["whole", "scaled", "rand"])
def test_the_same_arguments_give_the_same_bits_and_no_global_state_moves(look: Look) -> None:
    data = encoded(pixels())
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    first = [seen(data, look, sample) for sample in range(4)]
    torch.rand(3), np.random.rand(3), random.random()
    moved = torch.get_rng_state()
    again = [seen(data, look, sample) for sample in reversed(range(4))][::-1]
    assert torch.equal(torch.get_rng_state(), moved) and not torch.equal(moved, states[0])
    assert torch.equal(torch.stack(first), torch.stack(again))
    torch.set_rng_state(states[0]), np.random.set_state(("MT19937", states[1], 624, 0, 0.0)), random.setstate(states[2])
    seen(data, look)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize("counter", ["seed", "noise", "epoch", "sample"])
def test_every_argument_counts(counter: str) -> None:
    data = encoded(pixels())
    assert not torch.equal(seen(data), seen(data, **{counter: 1}))


@pytest.mark.parametrize("look", [WHOLE, SCALED, Look(CROP, "resized_crop", False, 9), Look(CROP, "none", False, 0)])
def test_an_image_is_put_where_it_belongs_in_a_batch(look: Look) -> None:
    data = encoded(pixels())
    batch = torch.zeros((3, 3, CROP, CROP), dtype=torch.uint8).to(memory_format=torch.channels_last)
    for sample in range(4):  # mirrored ones among them
        out = batch[1]
        assert train_image(data, look, 0, 0, 0, sample, out=out) is out
        assert torch.equal(batch[1], seen(data, look, sample)) and batch[1].any() and not batch[0::2].any()


def test_results_are_uint8_and_channels_last() -> None:
    for image in (seen(encoded(pixels())), seen(encoded(pixels()), sample=1), eval_image(encoded(pixels()), CROP)):
        assert image.dtype == torch.uint8 and image.shape == (3, CROP, CROP)
        assert image.stride(0) == 1 and image.stride(2) == 3


@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (100, 900), (900, 100), (10, 12)])
def test_boxes_are_those_of_torchvision_given_its_draws(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uniform_ and randint are fed from our numbers; float32 against float64 leaves a pixel in places."""
    generator = random.Random(0)
    exact = 0
    for _ in range(40):
        draws = [generator.random() for _ in range(40)]
        feed = iter(draws)

        def uniform_(tensor: Tensor, low: float, high: float, feed: Any = feed) -> Tensor:
            return tensor.fill_(float(low) + (float(high) - float(low)) * next(feed))

        def randint(low: int, high: int, size: Any, feed: Any = feed) -> Tensor:
            return torch.tensor([low + int(next(feed) * (high - low))])

        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "uniform_", uniform_)
            patch.setattr(torch, "randint", randint)
            image = torch.empty(3, height, width, dtype=torch.uint8)
            theirs = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        mine = random_box(height, width, iter(draws).__next__)
        exact += tuple(theirs) == mine
        assert np.abs(np.subtract(theirs, mine)).max() <= 1
    assert exact >= 37


@pytest.mark.parametrize("side", range(4))
def test_boxes_are_distributed_as_torchvisions(side: int) -> None:
    torch.manual_seed(0)
    image, uniform = torch.empty(3, 375, 500, dtype=torch.uint8), random.Random(0).random
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])[side] for _ in range(2000)]
    mine = [random_box(375, 500, uniform)[side] for _ in range(2000)]
    assert stats.ks_2samp(mine, theirs).pvalue > 0.01
    control = [random_box(375, 500, lambda: uniform() ** 1.2)[side] for _ in range(2000)]
    assert side < 2 or stats.ks_2samp(control, theirs).pvalue < 0.01


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 1000), st.integers(1, 300))
def test_boxes_lie_inside_also_scaled(height: int, width: int, seed: int, crop: int) -> None:
    for box in (random_box(height, width, random.Random(seed).random), central_box(height, width)):
        factor = reduction(box, crop)
        scaled = scaled_box(box, factor)
        assert scaled.top >= 0 and scaled.left >= 0 and scaled.height > 0 and scaled.width > 0
        assert scaled.top + scaled.height <= -(-height // factor)
        assert scaled.left + scaled.width <= -(-width // factor)
        assert factor == 1 or min(scaled.height, scaled.width) >= crop
        assert factor > 1 or scaled == box


@pytest.mark.parametrize("side, factor", [(447, 1), (448, 2), (895, 2), (896, 4), (1792, 8), (9000, 8)])
def test_the_reduction_is_the_largest_that_leaves_the_crop(side: int, factor: int) -> None:
    assert reduction(Box(0, 0, side, 2 * side), 224) == factor


def test_scaled_decoding_changes_pixels_within_bounds() -> None:
    factors = set()
    for data in (encoded(pixels(600, 800)), encoded(pixels(60, 70))):
        for sample in range(8):
            difference = (seen(data, SCALED, sample).int() - seen(data, WHOLE, sample).int()).abs().float()
            assert 0 < difference.mean() < 4 and difference.max() < 48
            factors.add(reduction(box_and_flip(data, sample)[0], CROP))
    assert factors >= {1, 4, 8}


def test_a_scaled_jpeg_is_decoded_at_its_reduced_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data, shapes = encoded(pixels(601, 803)), []

    def noted(found: Any, box: Box, out: Tensor, resize: Callable[..., None] = decode._resize) -> None:
        shapes.append(found.shape[:2])
        resize(found, box, out)

    monkeypatch.setattr(decode, "_resize", noted)
    for sample in range(20):
        seen(data, SCALED, sample)
        factor = reduction(box_and_flip(data, sample)[0], CROP)
        assert shapes[-1] == (-(-601 // factor), -(-803 // factor))
    assert len(set(shapes)) >= 2


FILES = {
    "grayscale": lambda: encoded(pixels().convert("L")),
    "CMYK": lambda: encoded(pixels().convert("CMYK")),
    "no subsampling": lambda: encoded(pixels(), subsampling=0),
    "progressive": lambda: encoded(pixels(), progressive=True),
    "RGB stored": lambda: encoded(pixels(), keep_rgb=True),
    "PNG": lambda: encoded(pixels(), "png"),
    "palette PNG": lambda: encoded(pixels().quantize(16), "png"),
    "palette GIF": lambda: encoded(pixels().quantize(16), "gif"),
    "transparent PNG": lambda: encoded(pixels().convert("RGBA"), "png"),
    "16-bit PNG": lambda: encoded(Image.fromarray(np.arange(0, 60000, 2, dtype=np.uint16).reshape(150, 200)), "png"),
    "1-bit PNG": lambda: encoded(pixels().convert("1"), "png"),
    "WebP": lambda: encoded(pixels(), "webp"),
    "BMP": lambda: encoded(pixels(), "bmp"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("look", [WHOLE, SCALED], ids=["whole", "scaled"])
def test_every_kind_of_image_is_rgb_as_pillow_makes_it(kind: str, look: Look) -> None:
    data = FILES[kind]()
    assert torch.equal(torch.from_numpy(decode.decoded(data)).permute(2, 0, 1), by_pillow(data))
    box, flip = box_and_flip(data, 0)
    expected = functional.resized_crop(by_pillow(data), *box, [CROP, CROP], antialias=True)
    difference = (seen(data, look).int() - (expected.flip(2) if flip else expected).int()).abs().float()
    assert difference.mean() < 4 if look.scaled else difference.max() == 0


def test_rotation_noted_in_a_file_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode.decoded(encoded(pixels(), exif=exif)), decode.decoded(encoded(pixels())))


def test_randaugment_is_torchvisions_and_changes_images() -> None:
    data, look = encoded(pixels()), Look(CROP, "resized_crop", False, 9)
    changed = 0
    for sample in range(8):
        torch.manual_seed(decode.derive(0, "randaugment", 0, 0, sample))
        expected = v2.RandAugment(num_ops=2, magnitude=9)(seen(data, sample=sample))
        assert torch.equal(seen(data, look, sample), expected)
        changed += not torch.equal(expected, seen(data, sample=sample))
    assert changed >= 5


def test_magnitudes_of_randaugment_differ() -> None:
    data = encoded(pixels())
    few, many = (torch.stack([seen(data, Look(CROP, "resized_crop", False, m), s) for s in range(8)]) for m in (1, 10))
    assert not torch.equal(few, many)


def test_looks_draws_no_more_than_it_needs() -> None:
    """Area, ratio, top and left of a first try that fits: what follows (the mirror) is the fifth number."""
    numbers = iter([0.5, 0.5, 0.5, 0.5, 0.25])
    random_box(375, 500, numbers.__next__)
    assert next(numbers) == 0.25
    assert looks.TRIES == 10
