"""Finds the files that ship beside the code (in the wheel inside the package, in a clone at its top), and the cache."""

from __future__ import annotations

import os
from pathlib import Path

from lth_scale.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The shipped folder ``name`` (``configs``, ``slurm``): the wheel's copy, else the clone's.

    Raises:
        FileNotFoundError: neither is there, so the installation is broken.
    """
    for candidate in (PACKAGE / name, PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}/ is neither in {PACKAGE} nor beside it; install lth_scale anew")


def cache() -> Path:
    """What can be made or fetched again: ``$XDG_CACHE_HOME/lth_scale``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lth_scale"


def on_this_machine(key: str, text: str) -> Path | None:
    """A folder that the config names, with ``~`` and variables such as ``$TMPDIR`` as they are here; None for "".

    Raises UserError when a variable is not set.
    """
    found = os.path.expanduser(os.path.expandvars(text))
    if "$" in found:
        raise UserError(f"{key}={text!r} is not valid on this machine: it has no such variable")
    return Path(found) if found else None


def file(folder: str, name: str) -> Path:
    """One file of a shipped folder; in a wheel ``slurm`` holds code as well.

    Raises:
        FileNotFoundError: it is in neither place, so the installation is broken.
    """
    for candidate in (PACKAGE / folder / name, PACKAGE.parent / folder / name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder}/{name} is neither in {PACKAGE} nor beside it; install lth_scale anew")
