"""The live table of a run in a terminal; plain lines where the output is not a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lth_scale.experiment import Experiment
from lth_scale.files import read_json
from lth_scale.launch import Board
from lth_scale.tasks import Task

LINES = 20  # progress lines in all where there is no terminal


class Display:
    """Shows a board as it changes.

    Args:
        experiment: whose tasks they are.
        console: where to.
    """

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self._experiment, self._console = experiment, console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._told = -1
        self._drawn = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, board: Board) -> None:
        """Draw."""
        done = [task for task in board.every if task.done(self._experiment.paths)]
        if self._live and time.monotonic() - self._drawn > 0.5:
            self._drawn = time.monotonic()
            self._live.update(Group(self._table(board, done), self._bar(board, len(done))), refresh=True)
        elif not self._live and len(done) * LINES // len(board.every) > self._told:
            self._told = len(done) * LINES // len(board.every)
            self._console.print(f"{len(done)}/{len(board.every)} rounds done, {len(board.failed)} failed")

    def _table(self, board: Board, done: list[Task]) -> Table:
        seeds = sorted({task.seed for task in board.every})
        table = Table(title="rounds done, now training, last test accuracy (%)", title_justify="left")
        table.add_column("arm")
        for seed in seeds:
            table.add_column(f"seed {seed}", min_width=22)
        for arm in dict.fromkeys(task.arm for task in board.every):
            table.add_row(arm, *(self._cell(board, done, seed, arm) for seed in seeds))
        return table

    def _cell(self, board: Board, done: list[Task], seed: int, arm: str) -> Text:
        mine = [task for task in board.every if (task.seed, task.arm) == (seed, arm)]
        over = [task for task in done if (task.seed, task.arm) == (seed, arm)]
        finished = [task for task in over if task.trains and not task.stopped(self._experiment.paths)]
        text = Text(f"{len(over)}/{len(mine)}")
        if finished:
            accuracy = _accuracy(max(finished).paths(self._experiment.paths).result)
            text.append(f"  {accuracy:.2f}", style="bold")
        for task in sorted(board.running):
            if (task.seed, task.arm) == (seed, arm):
                text.append(f"  r{task.round} {self._progress(task):.0%}", style="cyan")
        if any((task.seed, task.arm) == (seed, arm) for task in board.failed):
            text.append("  failed", style="red")
        return text

    def _progress(self, task: Task) -> float:
        """How far a running round is, from the last line of its curves."""
        attempts = sorted((task.paths(self._experiment.paths).folder / "attempts").glob("*/metrics.csv"))
        try:
            step = int(attempts[-1].read_text().rstrip("\n").rpartition("\n")[2].partition(",")[0])
        except (IndexError, ValueError, OSError):
            return 0.0
        return step / self._experiment.total

    def _bar(self, board: Board, done: int) -> Table:
        elapsed = time.monotonic() - board.begun
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(len(board.every), done, width=40), f"{done}/{len(board.every)} rounds, {elapsed:.0f} s")
        return row


def _accuracy(path: Path) -> float:
    return float(100 * read_json(path)["end"]["test"]["accuracy"])
