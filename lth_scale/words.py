"""Words of a command line, and what is said in answer, for whoever has commands."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from lth_scale.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


class Parser(argparse.ArgumentParser):
    """argparse, but its errors are this program's."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{self.prog.removeprefix('lth ')}: {message}")


def parser(command: str, optional: str | None = None) -> Parser:
    """For ``lth COMMAND``, with one optional word of a name."""
    made = Parser(prog=f"lth {command}", allow_abbrev=False, add_help=False)
    if optional:
        made.add_argument(optional, nargs="?")
    return made


def strays(flags: argparse.Namespace) -> list[str]:
    """Config names that stood behind ``--only``, which is left with what selects tasks."""
    words = flags.only or []
    flags.only = [word for word in words if "=" in word]
    return [word for word in words if "=" not in word]


def console() -> Console:
    """Where tables go."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def following(command: str) -> int:
    """Say what to type next; 0."""
    print(f"next: {command}")
    return 0
