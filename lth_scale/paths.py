"""Every file name of a run folder, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RoundPaths:
    """The files of one round of one arm of one replicate."""

    folder: Path

    @property
    def mask(self) -> Path:
        """The round's mask, 1 bit a weight; absent for round 0 (dense)."""
        return self.folder / "mask.safetensors"

    @property
    def result(self) -> Path:
        """The done marker: everything measured, written last."""
        return self.folder / "result.json"

    @property
    def line(self) -> Path:
        """The done marker of what is measured between the ends of other rounds, written last."""
        return self.folder / "line.json"

    @property
    def stopped(self) -> Path:
        """The done marker of a round that was not worth training any more, and why."""
        return self.folder / "stopped.json"

    @property
    def checkpoints(self) -> Path:
        """Holds ``step_NNNNNNNN.attempt_N`` folders."""
        return self.folder / "checkpoint"

    @property
    def early_bird(self) -> Path:
        """The masks drawn at the ends of the dense round's epochs, while it is trained."""
        return self.folder / "early_bird"

    @property
    def start(self) -> Path:
        """The initialisation of a control that is trained in shards, while it is trained."""
        return self.folder / "start"

    @property
    def saliency(self) -> Path:
        """Scores before training, while a mask is made from them."""
        return self.folder / "saliency"

    @property
    def claims(self) -> Path:
        """Holds ``NNNNNN`` files: who works on this round; the highest owns it."""
        return self.folder / "claims"

    @property
    def bench(self) -> Path:
        """What ``lth ticket bench`` measured of the round's ticket: bench.json, bench.csv."""
        return self.folder / "bench"

    def attempt(self, number: int) -> Path:
        """What one attempt alone writes to."""
        return self.folder / "attempts" / f"{number:06d}"

    def metrics(self, attempt: int) -> Path:
        """The curves measured by one attempt: step,split,loss,accuracy,samples."""
        return self.attempt(attempt) / "metrics.csv"

    def provenance(self, attempt: int) -> Path:
        """Where and with what one attempt ran."""
        return self.attempt(attempt) / "provenance.json"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The whole config as YAML, micro-batch fixed."""
        return self.root / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Data checksum, versions and machine at the time the run was made."""
        return self.root / "provenance.json"

    def rewind(self, seed: int, step: int) -> Path:
        """theta_step of the replicate's dense pass."""
        return self.root / f"seed_{seed}" / "rewind" / f"step_{step:08d}"

    def round(self, seed: int, arm: str, number: int) -> RoundPaths:
        """One round; round 0 of every arm is the ticket's dense round."""
        return RoundPaths(self.root / f"seed_{seed}" / arm / f"round_{number:02d}")

    def results(self) -> list[Path]:
        """The done markers that exist, in folder order."""
        return sorted(self.root.glob("seed_*/*/round_*/result.json"))

    def lines(self) -> list[Path]:
        """What was measured between the ends of rounds, in folder order."""
        return sorted(self.root.glob("seed_*/*/round_*/line.json"))

    def benches(self) -> list[Path]:
        """What was measured of exported tickets, in folder order."""
        return sorted(self.root.glob("seed_*/*/round_*/bench/bench.json"))

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """Vector figures."""
        return self.root / "figures"

    @property
    def tracking(self) -> Path:
        """The experiment's id with a tracking service; drawn once."""
        return self.root / "tracking.json"

    @property
    def summary(self) -> RoundPaths:
        """What the tracking service is told of the whole run, in attempts like a round's; its result says of what."""
        return RoundPaths(self.root / "summary")

    @property
    def submit(self) -> SubmitPaths:
        """What was sent to a cluster."""
        return SubmitPaths(self.root)


@dataclass(frozen=True)
class SubmitPaths:
    """The files that jobs of a cluster share; ``run`` is the run folder."""

    run: Path

    @property
    def folder(self) -> Path:
        """Holds them all."""
        return self.run / "submit"

    @property
    def seeds(self) -> Path:
        """The seeds in order of their index in job arrays; only ever appended to."""
        return self.folder / "seeds.json"

    @property
    def site(self) -> Path:
        """Shell lines that every job begins with."""
        return self.folder / "site.sh"

    @property
    def cluster(self) -> Path:
        """The cluster file in use."""
        return self.folder / "cluster.yaml"

    @property
    def claims(self) -> Path:
        """Who is submitting."""
        return self.folder / "claims"

    @property
    def logs(self) -> Path:
        """What jobs print."""
        return self.folder / "logs"

    def tries(self, seed: int, arm: str, number: int) -> Path:
        """How often a round's job has failed without a step gained."""
        return self.folder / "tries" / f"seed_{seed}-{arm}-{number:02d}.json"
