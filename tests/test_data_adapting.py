"""Data sets made to fit: some classes, other shapes."""

from __future__ import annotations

import pytest
import torch

from lth_scale import config, data
from lth_scale.data.adapting import adapted
from lth_scale.data.dataset import SPLITS, Dataset
from lth_scale.errors import UserError


def digits(**fields: object) -> Dataset:
    found = data.load(config.Data("digits", **fields))  # type: ignore[arg-type]
    assert isinstance(found, Dataset)
    return found


@pytest.mark.parametrize("classes", ["0-4", "5-9", [7, 1]])
def test_only_the_chosen_classes_stay_in_their_order_with_new_numbers(classes: object) -> None:
    whole, some = digits(), digits(classes=classes)
    chosen = list(config.Data("digits", classes=classes).classes)  # type: ignore[arg-type]
    assert some.classes == len(chosen) < whole.classes
    for name in SPLITS:
        old, new = getattr(whole, name), getattr(some, name)
        rows = torch.isin(old.labels, torch.tensor(chosen))
        assert 0 < len(new) == int(rows.sum()) < len(old)
        assert torch.equal(new.images, old.images[rows])
        assert torch.equal(torch.tensor(chosen)[new.labels], old.labels[rows])
    assert some.mean != whole.mean  # normalised by their own moments


def test_parts_make_up_the_whole_and_the_description_counts_them() -> None:
    parts = [digits(classes="0-4"), digits(classes="5-9")]
    assert sum(len(part.train) for part in parts) == len(digits().train)
    told = data.describe(config.Data("digits", classes="0-4"))
    assert (told.classes, told.train, told.test) == (5, len(parts[0].train), len(parts[0].test))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 8, 8), (1, 4, 6)])
def test_images_are_converted(shape: tuple[int, int, int]) -> None:
    whole, made = digits(), digits(shape=shape)
    assert made.shape == shape == data.describe(config.Data("digits", shape=shape)).shape
    assert made.train.images.dtype == torch.uint8 and tuple(made.train.images.shape[1:]) == shape
    assert torch.equal(made.train.labels, whole.train.labels)
    brightness = (made.train.images.float().mean((1, 2, 3)) - whole.train.images.float().mean((1, 2, 3))).abs()
    assert brightness.mean() < 6  # of 255: the same pictures
    normalised = made.normalise(made.train.images)
    assert abs(float(normalised.mean())) < 1e-4 and abs(float(normalised.std()) - 1) < 1e-3


def test_colours_are_weighed_and_grey_comes_back_as_it_was() -> None:
    colour = digits(shape=(3, 8, 8))
    grey = adapted(colour, config.Data("digits", shape=(1, 8, 8)))
    assert torch.equal(grey.train.images, digits().train.images)
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 255
    from lth_scale.data.adapting import _convert

    assert int(_convert(red, (1, 8, 8)).max()) == 76  # 0.299 x 255


def test_as_it_comes_nothing_is_touched() -> None:
    whole = digits()
    assert adapted(whole, config.Data("digits")) is whole


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": "3-x"}, r"data.classes='3-x' is not valid"),
        ({"classes": [4]}, r"data.classes=\[4\] is not valid; it must be two"),
        ({"shape": [8, 8]}, r"data.shape=\[8, 8\] is not valid; it must be \[1 or 3"),
        ({"shape": [2, 8, 8]}, r"data.shape=\[2, 8, 8\]"),
        ({"classes": "8-10"}, r"data.classes=\[8, 9, 10\].*classes 0..9, no 10"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        digits(**fields)


@pytest.mark.parametrize("fields", [{"classes": "0-4"}, {"shape": (3, 32, 32)}])
def test_streamed_sets_are_not_adapted(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"data.(classes|shape).*streamed"):
        data.check(config.Data("imagenet", lanes=1, **fields), 8, 1)  # type: ignore[arg-type]
