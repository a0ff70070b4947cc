"""``lth ticket bench``: the ticket's network and its exports beside one another, each from its file alone."""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lth_scale import models, provenance
from lth_scale.errors import UserError, require
from lth_scale.export import energy, memory
from lth_scale.export.contenders import BASELINE, CONTENDERS, Contender, Given, Run, torch_runner
from lth_scale.export.images import Floats, moved
from lth_scale.export.network import network
from lth_scale.export.programs import missing
from lth_scale.export.quantising import CALIBRATION
from lth_scale.export.sources import Chosen
from lth_scale.export.timing import Timed, cores, interleaved, pinned
from lth_scale.report.speed import UNMEASURED, Bench, Row

DENSE = "dense (round 0)"
FEW = 100  # calls, below which there is no 99th percentile
PACKAGES = ("numpy", "onnx", "onnxruntime")

Memory = Callable[[str, Path, tuple[int, int, int], Sequence[int], int], list[float] | None]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        batches: images at once.
        threads: of each runtime, on as many cores.
        repeats: calls of each contender at each batch size that are timed.
        seconds: what the slowest of them may take; it makes calls fewer.
        samples: at most so many test images, evenly spread over the set.
    """

    batches: tuple[int, ...] = (1, 32, 256)
    threads: int = 1
    repeats: int = 200
    seconds: float = 30.0
    samples: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", tuple(sorted(set(self.batches))))
        require(bool(self.batches) and min(self.batches) > 0, "--batches", self.batches, "whole numbers of 1 or more")
        valid = f"in 1..{cores()}, the cores that this process may use"
        require(1 <= self.threads <= cores(), "--threads", self.threads, valid)
        for key in ("repeats", "seconds", "samples"):
            require(getattr(self, key) > 0, f"--{key}", getattr(self, key), "positive")


@dataclass(frozen=True)
class Ready:
    """A contender's file, and its program."""

    path: Path
    run: Run


@dataclass
class Score:
    """Of a contender on the test images. Args: hits: right answers; largest: difference of an output."""

    hits: int = 0
    largest: float = 0.0


@dataclass
class Measured:
    """All that is known before it is put into rows."""

    ready: dict[str, Ready] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    seen: int = 0
    outputs: float = 0.0
    timed: dict[int, dict[str, Timed]] = field(default_factory=dict)
    memory: dict[str, list[float] | None] = field(default_factory=dict)


def bench(
    chosen: Chosen,
    plan: Plan | None = None,
    *,
    data_dir: str = "",
    dense: Chosen | None = None,
    contenders: Mapping[str, Contender] = CONTENDERS,
    grown: Memory = memory.grown,
    told: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Measure a ticket in every form that can be made of it.

    Args:
        chosen: the ticket.
        plan: how much is measured.
        data_dir: where the run's data are, if not where its config says.
        dense: the network that the ticket was made from, at the end of its training, for its accuracy alone.
        contenders: name -> contender; BASELINE is one of them.
        grown: measures memory, as :func:`lth_scale.export.memory.grown`.
        told: is given a line on what is done next.

    Returns:
        A row for every contender at every batch size; one that cannot be made, or run, says why.

    Raises:
        UserError: no mask, no config, no data, no ONNX, or the baseline cannot be made.
    """
    plan, found = plan or Plan(), Measured()
    missing("ticket bench")
    with tempfile.TemporaryDirectory() as folder:
        given = Given.of(chosen, Path(folder), data_dir)
        with pinned(plan.threads) as held:
            told(f"making {len(contenders)} files")
            _make(given, plan, contenders, found)
            told("comparing outputs on test images")
            _score(given, plan, dense and moved(dense, data_dir), found)
            metered = _time(given, plan, found, told)
        told("measuring memory, each in a process of its own")
        _weigh(given, plan, grown, found)
        return Bench(tuple(_rows(given, plan, contenders, found)), _about(given, plan, held, found, metered))


def _make(given: Given, plan: Plan, contenders: Mapping[str, Contender], found: Measured) -> None:
    probe = next(given.batches("test", 2))[0]
    for name, contender in contenders.items():
        try:
            path = contender.make(given)
            run = contender.load(path, plan.threads)
            run(probe)
            found.ready[name] = Ready(path, run)
        except Exception as error:  # of whatever runtime; the row tells it
            if name == BASELINE:
                raise
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            found.failed[name] = f"{kind}{error}".strip().partition("\n")[0]


def _score(given: Given, plan: Plan, dense: Chosen | None, found: Measured) -> None:
    """Of all contenders, in one pass over the test images."""
    runs = {name: one.run for name, one in found.ready.items()}
    if dense is not None:
        runs[DENSE] = torch_runner(network(dense, whole=True).model)
    reference = torch_runner(given.found.model)
    found.scores = {name: Score() for name in runs}
    for images, labels in given.batches("test", plan.samples):
        expected = reference(images)
        found.seen, found.outputs = found.seen + len(labels), max(found.outputs, float(np.abs(expected).max()))
        for name, run in runs.items():
            logits, score = run(images), found.scores[name]
            score.hits += int((logits.argmax(1) == labels).sum())
            score.largest = max(score.largest, float(np.abs(logits - expected).max()))


def _time(given: Given, plan: Plan, found: Measured, told: Callable[[str], None]) -> bool:
    """All contenders in turns, one batch size after the other; whether energy could be read."""
    meter = energy.meter()
    for batch in plan.batches:
        told(f"timing {len(found.ready)} contenders in turns, batch {batch}")
        images = _images(given, batch)
        calls = {name: _call(one.run, images) for name, one in found.ready.items()}
        found.timed[batch] = interleaved(calls, plan.repeats, plan.seconds, meter.joules if meter else None)
    return meter is not None


def _weigh(given: Given, plan: Plan, grown: Memory, found: Measured) -> None:
    """The memory of each, two processes at a time, as others' use changes nothing in it."""

    def peaks(name: str) -> list[float] | None:
        return grown(name, found.ready[name].path, given.found.shape, plan.batches, plan.threads)

    with ThreadPoolExecutor(2) as pool:
        found.memory = dict(zip(found.ready, pool.map(peaks, found.ready), strict=True))


def _images(given: Given, batch: int) -> Floats:
    """So many test images, from the first again where there are fewer."""
    held: list[Floats] = []
    for images, _ in given.batches("test", batch):
        held.append(images)
    whole = np.concatenate(held)
    return np.ascontiguousarray(whole[np.arange(batch) % len(whole)])


def _call(run: Run, images: Floats) -> Callable[[], object]:
    return lambda: run(images)


def _rows(given: Given, plan: Plan, contenders: Mapping[str, Contender], found: Measured) -> Iterable[Row]:
    mask = given.chosen.needed("ticket bench")
    dense, left = models.macs_left(given.found.model, given.found.shape, mask.counts())
    limits: dict[str, Any] = {"limit": mask.numel / max(1, mask.kept), "work": dense / max(1.0, left)}
    if DENSE in found.scores:
        known = _accuracy(found, DENSE)
        yield Row(DENSE, None, **known, why=f"not timed: it computes and weighs what {BASELINE} does")
    for place, batch in enumerate(plan.batches):
        for name in contenders:
            if name in found.failed:
                yield Row(name, batch, **limits, why=found.failed[name])
                continue
            peaks, size = found.memory[name], found.ready[name].path.stat().st_size
            yield Row(
                name,
                batch,
                **_times(found.timed[batch], name, batch),
                **limits,
                memory_mib=peaks[place] if peaks else None,
                file_bytes=size,
                smaller=found.ready[BASELINE].path.stat().st_size / size,
                difference=found.scores[name].largest,
                **_accuracy(found, name),
            )


def _times(timed: Mapping[str, Timed], name: str, batch: int) -> dict[str, Any]:
    mine = timed[name].seconds
    median = float(np.median(mine))
    joules = timed[name].joules
    return {
        "calls": len(mine),
        "median_ms": 1e3 * median,
        "p99_ms": 1e3 * float(np.quantile(mine, 0.99)) if len(mine) >= FEW else None,
        "images_per_s": batch / median,
        "speedup": float(np.median(timed[BASELINE].seconds)) / median,
        "millijoules": None if joules is None else 1e3 * joules / (len(mine) * batch),
    }


def _accuracy(found: Measured, name: str) -> dict[str, Any]:
    mine, standard = (100 * found.scores[one].hits / found.seen for one in (name, BASELINE))
    return {"accuracy": mine, "accuracy_change": mine - standard}


def _about(given: Given, plan: Plan, held: Sequence[int], found: Measured, metered: bool) -> dict[str, Any]:
    versions = {name: _version(name) for name in PACKAGES}
    return {
        **given.chosen.about,
        **provenance.machine(),
        **versions,
        "cpu": _cpu(),
        "threads": plan.threads,
        "cores": list(held),
        "baseline": BASELINE,
        "network": given.found.told,
        "data": given.dataset.name,
        "data_sha256": given.dataset.checksum,
        "samples": found.seen,
        "largest": found.outputs,
        "calibration": CALIBRATION,
        "repeats": plan.repeats,
        "seconds": plan.seconds,
        "energy": energy.SOURCE if metered else UNMEASURED,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _cpu() -> str:
    """What the processor calls itself."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()
