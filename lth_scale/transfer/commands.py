"""``lth transfer``: words that say it briefly, made into those of ordinary runs, one for each target."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lth_scale import data, settings
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.transfer.fetching import fetched
from lth_scale.transfer.origins import Origin, opened

ARMS = ("ticket", "transfer", "transfer_reinit", "transfer_random", "transfer_dense")


def as_runs(words: Sequence[str]) -> list[list[str]]:
    """``SOURCE... [OPTIONS] --to CONFIG... [--to CONFIG...]`` -> the words of one ``lth run`` for each target.

    Options before the first ``--to`` are for all targets, those behind it for its own. With ``transfer.layers=body``,
    which is what is meant when nothing is said, a target's images are converted to the shape of its sources', so that
    sources of several shapes make several runs. Raises UserError when a source or a target is missing or unusable.
    """
    before, *targets = _split(words)
    sources = [word for word in before if not word.startswith("--")]
    shared = [word for word in before if word.startswith("--")]
    if not sources or not targets or not all(targets):
        raise UserError("transfer needs sources and targets: lth transfer RUN... --to CONFIG... [--to CONFIG...]")
    out, shared = _out(shared)
    return list(
        _runs([opened(fetched(source, out)) for source in sources], [[*target, *shared] for target in targets], out)
    )


def _split(words: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--to":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _out(words: list[str]) -> tuple[Path, list[str]]:
    """Where the runs go, and the other words. ``--out=DIR`` only: no word may stand by itself but a source."""
    given = [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    if "--out" in words:
        raise UserError("transfer: write --out=DIR in one word")
    return Path(given[-1] if given else "runs"), [word for word in words if not word.startswith("--out=")]


def _runs(sources: Sequence[Origin], targets: Sequence[list[str]], out: Path) -> Iterator[list[str]]:
    for target in targets:
        fields = [word for word in target if not word.startswith(FLAGS)]
        own = settings.parse(fields)
        layers = "body" if own.transfer.layers == "all" else own.transfer.layers
        for shape, group in _by_shape(sources, own, layers).items():
            places = json.dumps([source.place for source in group])
            made = [*target, f"--transfer.layers={layers}", f"--transfer.sources={places}"]
            if not own.data.shape and shape != data.describe(own.data).shape:
                made.append(f"--data.shape={list(shape)}")
            if not any(word.startswith("--run.arms") for word in target):
                moved = ["own"] if own.rewind.at not in ("0", "0it", "0ep") else []
                made.append(f"--run.arms={json.dumps([ARMS[0], *moved, *ARMS[1:]])}")
            config = settings.parse([word for word in made if not word.startswith(FLAGS)])
            yield [*made, "--out", str(out / f"to_{config.data.name}-{settings.digest(config)}")]


FLAGS = (
    *("--plan", "--throughput", "--jobs", "--only", "--print_config"),
    *("--cluster", "--max-parallel", "--max-submitted", "--dry-run"),
)
"""What ``lth run`` and ``lth submit`` take beside fields of the config, here as single words."""


def _by_shape(sources: Sequence[Origin], own: Config, layers: str) -> dict[tuple[int, int, int], list[Origin]]:
    groups: dict[tuple[int, int, int], list[Origin]] = {}
    for source in sources:
        config = source.config if layers == "body" else own
        groups.setdefault(data.describe(config.data).shape, []).append(source)
    return groups
