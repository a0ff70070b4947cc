"""docs/results.md: what was found, beside what the papers found. Every sentence is made from the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import instability_section
import pandas as pd
import sweep_section
from archive import Archive, read
from paper_claims import claims_table
from result_parts import body, functions, late_sentence, setting, study, summarised, svg
from result_sections import METHODS, TRANSFER, VIT, channels, methods, section_figures, transfer, vit
from tables import markdown

from lth_scale.report import figures as drawing
from lth_scale.report.compare import comparison
from lth_scale.report.style import Size

MNIST, DIGITS = "mnist_lenet", "digits_lenet"
FASHION, K0, LATE = "fashion_mnist", "_k0", "_k"  # results/fashion_mnist_ANYTHING_k0 and ..._k are a pair
TRIED = "settings_tried"

INTRODUCTION = """\
# Results
Made by `tools/make_results.py build` from the files under `results/`; a test makes it again and fails on any
difference. Accuracies are percent of the test split, as mean ± half the 95 % t-interval over the seeds.
✓ matching, ✗ not matching, ? undecided: from the paired 95 % t-interval of arm minus its own seed's dense network,
against the tolerance. No seed is left out. Every choice (early stopping above all) reads the validation split only.
"""

MNIST_TITLE = """\
## LeNet-300-100 on MNIST
The hyperparameters of Frankle & Carbin 2019: Adam 1.2e-3, batch 60, 50,000 iterations, 20 % per layer and round,
10 % of the output layer, k = 0; validation every 100 iterations.
"""

LATE_TITLE = """\
## Late rewinding on Fashion-MNIST
A setting is looked for in which tickets rewound to the initialisation are not matching at 20 % of the weights or
more, and tickets rewound to a later k are (Frankle et al. 2020).
"""

DIGITS_TITLE = """\
## The demo: digits
What `make demo` runs: scikit-learn's 8x8 digits. There are 597 test images, so that one image is 0.17 points: hence
the wide tolerance.
"""

TRIED_TITLE = """\
### All settings tried
{lines} lines, the losing ones too, each from short single trainings of the search. `difference` is in points of test
accuracy, to the same seed's dense network. A dense accuracy near 10 % is a network that never learned: there the
difference says nothing. `note` begins with the arm.
"""


def archives(results: Path) -> dict[str, Archive]:
    """The collected experiments by name."""
    return {path.parent.name: read(path.parent) for path in sorted(results.glob("*/results.csv"))}


def pairs(known: dict[str, Archive]) -> dict[str, list[Archive]]:
    """The settings of the late-rewinding experiment, by name: from k = 0 and from a later k, those that exist."""
    stems = sorted(
        {n.removesuffix(K0).removesuffix(LATE) for n in known if n.startswith(FASHION) and not n.startswith(VIT)}
    )
    return {stem: [known[stem + end] for end in (K0, LATE) if stem + end in known] for stem in stems}


def page(results: Path) -> str:
    """The whole text."""
    known = archives(results)
    sections = [vit(known), transfer(known, results), methods(known, results), channels(known)]
    more = chain(instability_section.section(results), *sections, sweep_section.section(results))
    parts = [INTRODUCTION, *_mnist(known), *_late(known, results), *more, *_digits(known)]
    return "\n".join(parts) + "\n"


def figures(results: Path) -> dict[str, bytes]:
    """Path under docs/ -> SVG on white, the same bytes for the same numbers and the same matplotlib."""
    known = archives(results)
    studies = {name: study(one) for name, one in known.items()}
    made: dict[str, bytes] = {}
    for name, one in studies.items():
        for slug, function in functions(one).items() if not name.startswith((TRANSFER, METHODS)) else ():
            made[f"figures/{name}_{slug}.svg"] = svg(function, one, Size(7.0, 3.7))
    for stem, pair in pairs(known).items():
        if len(pair) == 2:
            made[f"figures/{stem}.svg"] = svg(comparison, [studies[one.run.name] for one in pair], Size(7.0, 3.7))
    made |= section_figures(studies) | instability_section.figures(results)
    if (frame := sweep_section.drawn(results)) is not None:
        made[f"figures/{sweep_section.NAME}.svg"] = svg(sweep_section.picture, frame, Size(7.0, 3.7))
    if DIGITS in studies:
        made["picture.svg"] = svg(drawing.accuracy, studies[DIGITS], Size(7.0, 4.0))
    return made


def _mnist(known: dict[str, Archive]) -> Iterator[str]:
    yield MNIST_TITLE
    if MNIST not in known:
        yield "Not run yet.\n"
        return
    yield from summarised(known[MNIST])
    yield "### Beside the paper\n" + claims_table(known[MNIST].run)
    yield from body(known[MNIST])


def _digits(known: dict[str, Archive]) -> Iterator[str]:
    yield DIGITS_TITLE
    if DIGITS not in known:
        yield "Not run yet.\n"
        return
    yield from summarised(known[DIGITS])
    yield from body(known[DIGITS])


def _late(known: dict[str, Archive], results: Path) -> Iterator[str]:
    yield LATE_TITLE
    found = pairs(known)
    if not found:
        yield "Not run yet with several seeds.\n"
    for stem, pair in found.items():
        yield f"### Setting `{stem}`\n{setting(pair[0])}\n"
        if len(pair) == 2:
            yield f"{late_sentence(pair[0], pair[1])}\n\n![Tickets of both rewind points](figures/{stem}.svg)\n"
        for one in pair:
            yield f"#### Rewound to {one.run.config.rewind.at}\n"
            yield from summarised(one)
            yield from body(one)
    yield from _tried(results / f"{TRIED}.csv")


def _tried(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    yield TRIED_TITLE.format(lines=len(rows))
    yield (
        "<details><summary>the table</summary>\n\n"
        + markdown(list(rows.columns), rows.values.tolist())
        + "\n</details>\n"
    )
