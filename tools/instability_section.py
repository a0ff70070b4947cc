"""The section of docs/results.md on instability: the curves over k, and what ``rewind.at=auto`` made of them.

results/instability_NAME.csv         what ``lth report RUN RUN ... --out DIR`` writes to DIR/connectivity.csv
results/instability_NAME.json        the auto/auto.json of the run that chose among them
results/instability_NAME.notes.md    written by hand
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from tables import markdown

from lth_scale import files
from lth_scale.report.connectivity import KINDS, LIMIT, MARKS, against_k, text
from lth_scale.report.style import Size, draw, svg_bytes
from lth_scale.report.table import SPLITS

PREFIX = "instability_"

TITLE = f"""\
## Instability and the rewind point
Children of a start differ in the order of the images only (Frankle et al. 2020). Instability is the highest error on
the straight line between two of them minus the mean of its ends, in points, at 30 places; BatchNorm's statistics are
re-estimated at each, or stored: interpolated like weights. ✓ stable: the 95 % t-interval over initialisations ends
below {LIMIT:g} points; ✗ not stable: it begins at or above; ? undecided.
"""


def found(results: Path) -> list[Path]:
    """The CSVs."""
    return sorted(results.glob(f"{PREFIX}*.csv"))


def section(results: Path) -> Iterator[str]:
    """A table and a picture for each setting."""
    for number, path in enumerate(found(results)):
        if not number:
            yield TITLE
        yield f"### `{path.stem.removeprefix(PREFIX)}`\n\n![Instability against k](figures/{path.stem}.svg)\n"
        yield _table(pd.read_csv(path, dtype={"at": str}))
        if (told := path.with_suffix(".json")).is_file():
            yield _chosen(told)
        yield f"Numbers: [`{path.name}`](../results/{path.name}).\n"
        if (notes := path.with_suffix(".notes.md")).is_file():
            yield f"**Interpretation (written by hand)**\n\n{notes.read_text().strip()}\n"


def figures(results: Path) -> dict[str, bytes]:
    """Path under docs/ -> SVG."""
    made = {}
    for path in found(results):
        figure = draw(against_k, pd.read_csv(path, dtype={"at": str}), Size(7.0, 3.7))
        figure.set_facecolor("white")
        made[f"figures/{path.stem}.svg"] = svg_bytes(figure)
    return made


def _table(rows: pd.DataFrame) -> str:
    lines = []
    for (_, _, kind), same in rows.sort_values(["k", "round"]).groupby(["k", "round", "kind"], sort=False):
        first, cells = same.iloc[0], list[str]()
        for split in SPLITS:
            row = same[same["split"] == split].iloc[0]
            cells += [f"{text(row)} {MARKS[row['verdict']]}".strip(), text(row, "stored")]
        lines.append([first["at"], f"{100 * first['density']:.2f}", KINDS[str(kind)], str(first["n"]), *cells])
    heads = [head for split in SPLITS for head in (split, f"{split}, stored")]
    return markdown(["rewind point", "weights left %", "between", "seeds", *heads], lines)


def _interval(split: str, of: Mapping[str, float]) -> str:
    return f"{split} {of['mean']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"


def _chosen(path: Path) -> str:
    told = files.read_json(path)
    measured = ", ".join(
        f"{at} ({'; '.join(_interval(split, of) for split, of in splits.items())})"
        for at, splits in told["measured"].items()
    )
    if told["chosen"] is None:
        return f"`rewind.at=auto` tried {measured} on train and validation, and found none stable.\n"
    return f"`rewind.at=auto` tried {measured} on train and validation, and chose **{told['chosen']}**.\n"
