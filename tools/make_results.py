"""docs/results.md, docs/benchmarks.md and their figures, from the CSVs under results/ and nothing else.

    python tools/make_results.py collect RUN NAME      a run folder -> results/NAME/; a folder of the runs of a
                                                       sweep -> results/NAME.csv; a CSV or JSON as it is
    python tools/make_results.py build                 results/ -> docs/
    python tools/make_results.py collect RUN NAME and build may be joined: collect ... build

Names that begin with methods_, transfer_ or fashion_mnist_vit share a section (tools/result_sections.py).
What is collected may be unfinished: the page says what is missing. All sentences are made from the numbers, except the
files results/NAME/notes.md, which are written by hand and marked so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import archive
import benchmark_page
import matplotlib
import result_pages
import sweep_section

from lth_scale import files
from lth_scale.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def collect(source: Path, name: str, results: Path, machine: str) -> Path:
    """A run folder, a folder of those of a sweep, or a finished CSV or JSON, into results/."""
    if source.suffix in (".csv", ".json"):
        files.write_text(results / f"{name}{source.suffix}", source.read_text())
        return results / f"{name}{source.suffix}"
    if not (source / "config.yaml").exists() and (runs := sorted(source.glob("*/config.yaml"))):
        frame = sweep_section.collect([run.parent for run in runs])
        files.write_text(results / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
        return results / f"{name}.csv"
    return archive.collect(source, results / name, machine)


def build(results: Path, docs: Path) -> list[Path]:
    """Write the pages and figures; returns them all."""
    pages = {"results.md": result_pages.page(results), "benchmarks.md": benchmark_page.page(results)}
    for name, text in pages.items():
        files.write_text(docs / name, text)
    drawn = result_pages.figures(results)
    for old in (docs / "figures").glob("*.svg"):
        if f"figures/{old.name}" not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        files.write_bytes(docs / name, svg)
    return [docs / name for name in [*pages, *drawn]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="collect RUN NAME | build")
    parser.add_argument("--machine", default=archive.general_machine(), help="in general words")
    options = parser.parse_args()
    words = options.words
    try:
        while words:
            if words[0] == "build":
                made, words = build(ROOT / "results", ROOT / "docs"), words[1:]
                files.write_text(
                    ROOT / "results" / "matplotlib.txt", matplotlib.__version__ + "\n"
                )  # whose bytes they are
                print("\n".join(str(path.relative_to(ROOT)) for path in made))
            elif words[0] == "collect" and len(words) >= 3:
                print(collect(Path(words[1]), words[2], ROOT / "results", options.machine).relative_to(ROOT))
                words = words[3:]
            else:
                raise UserError(
                    f"{words[0]!r} is not understood; write collect RUN NAME, build, or one after the other"
                )
    except UserError as error:
        print(f"make_results: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
