"""Finds the files that ship beside the code: in the wheel inside the package, in a clone at its top."""

from __future__ import annotations

from pathlib import Path

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
