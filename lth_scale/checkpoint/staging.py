"""States on their way: written to a disk of the node's own, and carried to the run folder while training goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from lth_scale import files, world
from lth_scale.checkpoint.keeping import named, remove_older
from lth_scale.checkpoint.stored import Stored
from lth_scale.checkpoint.writing import Part, Written, begin, finish, write_rank
from lth_scale.errors import UserError

POLL = 0.05  # seconds between looks for the files of other ranks


class Staging:
    """Publishes as :func:`lth_scale.checkpoint.publish` does, except that training need not wait for the file server.

    A state counts once it is in the run folder. Ranks meet there by files alone: the collectives belong to training.

    Args:
        scratch: folder on the node's disk; made if need be.
        timeout: seconds that the slowest rank's file may take.
    """

    def __init__(self, scratch: Path, timeout: float) -> None:
        self._scratch, self._timeout = scratch, timeout
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def publish(
        self,
        folder: Path,
        parts: Iterable[Part],
        step: int,
        attempt: int,
        extra: Mapping[str, Any],
        guard: Callable[[], None],
    ) -> Path:
        """Collective: put the state on the nodes' disks and begin to carry it; where it is going to lie.

        The one before is in the run folder by then. Raises as :meth:`settle`, and when a node's disk is full.
        """
        self.settle()
        path = named(folder, step, attempt)
        shared = world.on_first(lambda: begin(path))
        with world.together():
            own = _own(self._scratch)
            mine = write_rank(own, own, world.rank(), parts)
        written = world.gathered(mine)
        last = partial(self._appear, path, shared, written, step, dict(extra), guard) if world.first() else None
        self._thread = Thread(target=self._carry, args=[own, shared, mine, last], daemon=True)
        self._thread.start()
        return path

    def settle(self) -> None:
        """Collective: wait until the last state is in the run folder. Raises UserError on all ranks if it is not."""
        if self._thread is not None:
            self._thread.join()
        error, self._error, self._thread = self._error, None, None
        with world.together():
            if error is not None:
                raise error

    def _carry(self, own: Path, shared: Path, mine: Written, last: Callable[[], None] | None) -> None:
        try:
            if mine.file is not None:
                _delivered(own, shared, mine.file)
            if last is not None:
                last()
        except Exception as error:  # told by settle, in the thread that trains
            self._error = error
        finally:
            shutil.rmtree(own, ignore_errors=True)
            if last is not None:
                shutil.rmtree(shared, ignore_errors=True)  # gone already when all went well

    def _appear(
        self,
        path: Path,
        shared: Path,
        written: Sequence[Written],
        step: int,
        extra: Mapping[str, Any],
        guard: Callable[[], None],
    ) -> None:
        self._await([_note(shared, one.file) for one in written if one.file is not None])
        finish(path, shared, written, step, extra, guard)
        Stored.open(path)
        remove_older(path, guard)

    def _await(self, notes: Sequence[Path]) -> None:
        """Until all ranks have delivered, or one tells why it cannot."""
        deadline = time.monotonic() + self._timeout
        for note in notes:
            while not note.exists():
                if time.monotonic() > deadline:
                    raise UserError(f"{note.parent} lacks the file of a rank after {self._timeout:g} s")
                time.sleep(POLL)
            if problem := note.read_text():
                raise UserError(problem)
            note.unlink()


def _own(scratch: Path) -> Path:
    with files.explained(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="lth_state_", dir=scratch))


def _note(shared: Path, file: Mapping[str, Any]) -> Path:
    """Left beside a rank's file once it is whole; holds why it is not, if so."""
    return shared / f"{file['name']}.note"


def _delivered(own: Path, shared: Path, file: Mapping[str, Any]) -> None:
    """Copy a rank's file, make sure of it, and leave the note."""
    note = _note(shared, file)
    try:
        with files.explained(shared):
            _, sha256 = files.stream_bytes(shared / file["name"], files.pieces(own / file["name"]))
        if not sha256 == file["sha256"] == files.sha256_file(shared / file["name"]):
            raise UserError(f"{shared / file['name']} is not what was written to {own}")
        _leave(note, "")
    except Exception as error:
        _leave(note, str(error))
        raise


def _leave(note: Path, text: str) -> None:
    """Make a note appear whole. Nothing may follow: once the last one is seen, the folder may be renamed."""
    scratch = files.temporary(note)
    scratch.write_text(text)
    os.replace(scratch, note)
