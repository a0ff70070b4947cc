"""The folder of a :class:`PruningCallback`: the rewind point, and of each round its mask and its done marker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lth_scale import checkpoint, files, world
from lth_scale.checkpoint import Part, Stored
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RoundPaths


@dataclass(frozen=True)
class Tickets:
    """The files of one chain of rounds.

    Args:
        root: its folder.
    """

    root: Path

    def round(self, number: int) -> RoundPaths:
        """The files of one round."""
        return RoundPaths(self.root / f"round_{number:02d}")

    def current(self) -> int:
        """The first round that is not done."""
        number = 0
        while self.round(number).result.exists():
            number += 1
        return number

    def settings(self) -> dict[str, Any] | None:
        """What the masks here were made with, or None before the first round."""
        path = self.root / "settings.json"
        return dict(files.read_json(path)) if path.exists() else None

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Record what the masks here are made with."""
        files.write_json(self.root / "settings.json", settings)

    def require(self, what: str, given: Mapping[str, Any], here: Mapping[str, Any], remedy: str) -> None:
        """Raises UserError naming an entry of ``what`` that differs from what this folder has."""
        for key, value in given.items():
            if here.get(key) != value:
                raise UserError(f"{what} {key}={value!r}, and {self.root} has {key}={here.get(key)!r}; {remedy}")

    def mask(self, number: int, shapes: Mapping[str, tuple[int, ...]]) -> Mask:
        """The mask of a round; all ones for round 0. Raises UserError if it is damaged or does not fit."""
        if number == 0:
            return Mask.ones(shapes)
        mask = Mask.load(self.round(number).mask)
        mask.check_model(shapes)
        return mask

    def store_theta(self, parts: Iterable[Part], step: int, place: Mapping[str, Any]) -> None:
        """Store the rewind point, in place of one that an interrupted attempt left. All ranks call it."""
        world.on_first(self._forget_thetas)
        checkpoint.save(self.root / "rewind" / f"step_{step:08d}", parts, step, {"place": place})

    def _forget_thetas(self) -> None:
        for old in self._thetas():
            files.remove_folder(old)

    def _thetas(self) -> list[Path]:
        return sorted((self.root / "rewind").glob("step_*"))

    def _theta(self) -> Path:
        found = self._thetas()
        if len(found) != 1:
            where = self.root / "rewind"
            raise UserError(f"{where} should hold one rewind point and holds {len(found)}; start in a new folder")
        return found[0]

    def theta(self) -> Stored:
        """The state at the rewind point. Raises UserError when it is missing or damaged."""
        return Stored.open(self._theta())

    def place(self) -> dict[str, Any]:
        """Where the Trainer stood there (:mod:`lth_scale.training.position`)."""
        return dict(checkpoint.load_manifest(self._theta())["extra"]["place"])

    def theta_step(self) -> int:
        """k in optimizer steps."""
        return int(checkpoint.load_manifest(self._theta())["step"])

    def theta_sha256(self) -> str:
        """Checksum of the stored rewind point, over all of it."""
        found = checkpoint.load_manifest(self._theta())["files"]
        return files.sha256_bytes("".join(file["sha256"] for file in found).encode())

    def require_theta(self) -> str:
        """Its checksum, which must be the one that round 0 was finished with; raises UserError if it is not."""
        finished, found = files.read_json(self.round(0).result)["hashes"]["theta_k"], self.theta_sha256()
        if found != finished:
            raise UserError(
                f"{self._theta()} is not the rewind point of {self.round(0).result}: another process has used "
                f"{self.root} at the same time; start in a new folder"
            )
        return found

    def finish(self, number: int, following: Mask, result: Mapping[str, Any]) -> None:
        """Write the next mask, then the done marker."""
        following.save(self.round(number + 1).mask)
        files.write_json(self.round(number).result, result)
