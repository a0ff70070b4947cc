"""scikit-learn's digits: 1,797 real scans of 8x8, in the package itself, so that an experiment needs no download."""

from __future__ import annotations

import numpy as np

from lth_scale.data.dataset import Description
from lth_scale.data.definition import Content, Definition, Images, Source, datasets, shuffled

TRAIN, VALIDATION, TEST = 1000, 200, 597
RULE = (
    "scikit-learn's 1,797 digits in a fixed shuffled order: the first 597 are test, the next 200 validation, "
    "the other 1,000 train; grey values 0..16 are scaled to 0..255"
)


def read(_: Source) -> Content:
    """The digits from scikit-learn, cut by :data:`RULE`."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    samples = Images(images, bunch.target.astype(np.int64))
    rows = shuffled(len(samples), "digits")
    test, validation, train = np.split(rows, [TEST, TEST + VALIDATION])
    names = tuple(map(str, range(10)))
    return Content(samples.take(train), samples.take(validation), samples.take(test), names, RULE)


datasets.register("digits")(
    Definition(
        description=Description("digits", 10, (1, 8, 8), TRAIN, VALIDATION, TEST),
        read=read,
        needs="nothing: it comes with scikit-learn",
        makes_itself=True,
    )
)
