"""Tickets in docs/benchmarks.md, from results/bench_ticket_NAME.json: each a bench.json of ``lth ticket bench``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tables import markdown

from lth_scale.report.speed import HEADINGS, Bench, cells, conditions, read, reasons

PREFIX = "bench_ticket_"

TITLE = """\
## Tickets: size and speed
`lth ticket bench RUN`: what [bench.md](bench.md) says, every row of it, whether it wins or loses. A ratio beside its
limits: leaving out zeros saves no more multiply-adds than `work`; a file is smaller by less than `limit`, all prunable
weights over the surviving ones, as a surviving weight also needs its place. `onnx dense` does not always use the
machine well, so a program may also gain more.
"""


def found(results: Path) -> list[Path]:
    """The files."""
    return sorted(results.glob(f"{PREFIX}*.json"))


def section(results: Path) -> Iterator[str]:
    """A table for each ticket."""
    for number, path in enumerate(found(results)):
        if not number:
            yield TITLE
        one = read(path)
        yield f"### {path.stem.removeprefix(PREFIX)}, {100 * float(one.about['density']):.3g} % of the weights\n"
        if (notes := path.with_suffix(".notes.md")).is_file():
            yield f"{notes.read_text().strip()}\n"
        yield _table(one)
        yield f"{one.about['network']}. {conditions(one)}. Numbers: [`{path.name}`](../results/{path.name}).\n"
        yield from (f"- {line}\n" for line in reasons(one))


def _table(one: Bench) -> str:
    return markdown(["contender", *HEADINGS], [[row.contender, *cells(row)] for row in one.rows])
