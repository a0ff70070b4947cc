"""The ``lth`` command: parse, dispatch, nothing else."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lth_scale.errors import UserError, unknown
from lth_scale.words import console, following, parser, strays

if TYPE_CHECKING:
    from lth_scale.experiment import Experiment
    from lth_scale.tasks import Task

USAGE = """\
lth: lottery tickets at scale

experiments
  lth run CONFIG...          find tickets and train their controls (CONFIG: a shipped name or a YAML file)
  lth submit CONFIG... --cluster FILE
                             the same as Slurm jobs (FILE: a YAML file, or one of configs/cluster by its name)
  lth transfer SOURCE... --to CONFIG... [--to CONFIG...]
                             train tickets of the runs SOURCE (or packed ones) on other data, and all their controls
  lth connectivity CONFIG... [--at 0,100it,2ep]
                             is training from these rewind points stable to its noise? a run each, and a table
  lth sweep FILE [--seed N]  the points of a W&B sweep file (grid, random), without its service; a run each
  lth cancel RUN             end a run's jobs
see
  lth status [RUN [--watch | --json]]
                             what is done, running, queued, blocked and why; without RUN the runs in ./runs
  lth report RUN...          tables, figures and a self-contained page
  lth sync RUN [--limit S]   upload to W&B what was logged offline
  lth list WHAT              {topics}
things
  lth ticket export RUN --out FILE [--seed N] [--arm NAME] [--round N] [--theta] [--values fp16] [--whole]
                    [--format safetensors|sparse|onnx|onnx_int8|torch.export]
                             one file for other programs (RUN: also a packed ticket, or a saved state's folder)
  lth ticket bench TICKET    size, speed, memory and accuracy of all it can become, beside dense (docs/bench.md)
  lth ticket pack RUN --out FILE [--seed N] [--round N]
                             a ticket to carry: mask, theta_k, config, where it is from, checksums, in one file
  lth ticket show TICKET [--json]
                             what it holds (TICKET: such a file, a mask.safetensors, or RUN[:seed=N,round=N])
  lth ticket import FILE --format openlth|torch --out FILE [--model CONFIG...]
                             a ticket from OpenLTH's mask.pth, or a state dict of torch.nn.utils.prune
  lth ticket diff TICKET TICKET [--match-units] [--json]
                             how alike two masks are beside what chance gives; signs where both keep a weight
  lth data prepare NAME --out DIR [--source PATH] [--size N] [--shard-size N] [--max-side N] [--jobs N]
  lth data verify DIR [--jobs N]

run takes
  --out DIR                  the run folder (default: runs/NAME-HASH)
  --section.key=value        any field of the config (--print_config shows them all)
  --plan                     tensors, densities, steps and disk, then exit
  --throughput N             with --plan: images that one device trains in a second; adds GPU-hours
  --jobs N                   processes (default: one per core)
  --only seed=0,2 arm=ticket round=3-7
  --print_config             a commented template

submit takes --out, --section.key=value, --only, and
  --max-parallel N           elements of an array that run at once
  --max-submitted N          jobs in the queue; a last one submits the rest
  --dry-run                  print every sbatch command and script
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on a user error, 3 when too early, 1 when a task failed for another reason."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or words[0] in ("-h", "--help") or "--help" in words:
            print(USAGE.format(topics=", ".join(_topics())), end="")
            return 0
        if words[0] not in COMMANDS | OF_JOBS:
            raise unknown("command", words[0], COMMANDS)
        return (COMMANDS | OF_JOBS)[words[0]](words[1:])
    except UserError as error:
        if not _left_to_the_launcher(error):
            print(f"lth: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt as error:
        if not _left_to_the_launcher(error):
            print("lth: stopped; the same command continues", file=sys.stderr)
        return 130


def _left_to_the_launcher(error: UserError | KeyboardInterrupt) -> bool:
    from lth_scale import ranks

    return ranks.record(error)


def _run(words: list[str]) -> int:
    from lth_scale import settings
    from lth_scale.experiment import Experiment

    flags, rest = _run_flags(words)
    if flags.print_config:
        print(settings.template(), end="")
        return 0
    config = settings.parse(rest)
    out = Path(flags.out) if flags.out else settings.run_folder(rest, config)
    if config.rewind.at == "auto":
        from lth_scale.connectivity import decided

        _require_alone("rewind.at=auto")
        at = decided(config, out, rest, flags, _run)
        return _run([*words, f"--rewind.at={at}", "--out", str(out)])
    experiment = Experiment.at(config, out)
    from lth_scale import tasks

    chosen = tasks.select(experiment.tasks, flags.only or [])
    if flags.plan:
        return _plan(experiment, flags.throughput)
    if experiment.world > 1 and not _launched():
        return _start(experiment, ["run", *words])
    return _train(experiment.established(), chosen, flags.jobs)


def _run_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    made = parser("run")
    made.add_argument("--out")
    made.add_argument("--plan", action="store_true")
    made.add_argument("--throughput", type=float)
    made.add_argument("--print_config", action="store_true")
    made.add_argument("--jobs", type=int)
    made.add_argument("--only", nargs="+")
    flags, rest = made.parse_known_args(words)
    if flags.jobs is not None and flags.jobs < 1:
        raise UserError(f"--jobs={flags.jobs} is not valid; it must be 1 or more")
    if flags.throughput is not None and not (flags.plan and 0 < flags.throughput < float("inf")):
        need = "positive" if flags.plan else "together with --plan: training measures its own time"
        raise UserError(f"--throughput={flags.throughput:g} is not valid; it must be {need}")
    return flags, [*rest, *strays(flags)]


def _plan(experiment: Experiment, throughput: float | None) -> int:
    from lth_scale.plan import plan

    for part in plan(experiment, throughput):
        console().print(part)
    return following("the same command without --plan")


def _launched() -> bool:
    from lth_scale import ranks

    return ranks.launched()


def _require_alone(what: str) -> None:
    if _launched():
        raise UserError(f"{what} makes several runs, each with ranks of its own: call lth itself, not srun or torchrun")


def _start(experiment: Experiment, words: Sequence[str]) -> int:
    """Several devices: ranks, which come back here, launched."""
    from lth_scale import ranks

    if experiment.config.hardware.nodes > 1:
        several = "srun lth run ..., or torchrun --nnodes=... -m lth_scale run ..."
        raise UserError(f"hardware.nodes > 1 needs a launcher on every node: {several}")
    return ranks.start(words, experiment.config.hardware.devices, experiment.config.hardware.threads)


def _train(experiment: Experiment, chosen: Sequence[Task], jobs: int | None) -> int:
    job = os.environ.get("SLURM_JOB_ID", "none")
    if experiment.world > 1 or (os.environ.keys() & {"SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"} and _launched()):
        from lth_scale import ranks

        if ranks.train(experiment, chosen, job):
            _conclude(experiment)
        return 0
    from lth_scale.launch import cores, launch
    from lth_scale.live import Display

    with Display(experiment, console()) as display:
        board = launch(experiment, chosen, jobs or cores(), display, job)
    for task, reason in board.failed.items():
        print(f"lth: {task} failed: {reason}", file=sys.stderr)
    _conclude(experiment)
    return board.exit_code


def _conclude(experiment: Experiment) -> None:
    """The table, the sentence and the page of whatever is done."""
    from lth_scale.report import write_report
    from lth_scale.tracking.summary import conclude

    root = experiment.paths.root
    if not experiment.paths.results():
        return
    _show([root])
    print(f"report: {write_report([root], root)}")
    conclude(experiment)
    following(f"lth status {root}")


def _show(runs: Sequence[Path]) -> None:
    from lth_scale.report.terminal import terminal

    for part in terminal(runs):
        console().print(part, soft_wrap=isinstance(part, str))


def _transfer(words: list[str]) -> int:
    from lth_scale.transfer.commands import as_runs

    runs = as_runs(words)
    codes = [_run(run) for run in runs]
    if len(runs) > 1:
        following(f"lth report {' '.join(run[run.index('--out') + 1] for run in runs)}")
    return next(filter(None, codes), 0)


def _report(words: list[str]) -> int:
    from lth_scale.report import write_report
    from lth_scale.tracking.summary import summarise

    made = parser("report")
    made.add_argument("runs", nargs="*")
    made.add_argument("--out")
    flags = made.parse_args(words)
    if not flags.runs:
        raise UserError("report needs at least one run folder: lth report RUN...")
    runs = [Path(run) for run in flags.runs]
    out = Path(flags.out) if flags.out else runs[0]
    _show(runs)
    print(f"report: {write_report(runs, out)}")
    for run in runs:
        summarise(run)
    return following("open that page in a browser")


def _list(words: list[str]) -> int:
    topics = _topics()
    if len(words) != 1 or words[0] not in topics:
        raise unknown("list", " ".join(words), topics)
    print(*topics[words[0]](), sep="\n")
    return following("lth run CONFIG --plan")


def _topics() -> dict[str, Callable[[], list[str]]]:
    """What ``lth list`` knows, each read from its registry."""

    def registry(module: str, name: str) -> Callable[[], list[str]]:
        return lambda: sorted(getattr(importlib.import_module(f"lth_scale.{module}"), name))

    return {
        "models": registry("models", "models"),
        "datasets": registry("data", "datasets"),
        "criteria": registry("pruning", "criteria"),
        "scopes": registry("pruning", "scopes"),
        "arms": registry("arms", "arms"),
        "recipes": registry("rewinding", "recipes"),
        "configs": lambda: importlib.import_module("lth_scale.settings").shipped_configs(),
    }


def _of(room: str, name: str, file: str = "commands") -> Callable[[list[str]], int]:
    """A command of another room, which is imported when it is called."""

    def command(words: list[str]) -> int:
        return int(getattr(importlib.import_module(f"lth_scale.{room}.{file}"), name)(words))

    return command


def _several(room: str, name: str) -> Callable[[list[str]], int]:
    """A command of another room that makes several runs of its words."""

    def command(words: list[str]) -> int:
        _require_alone(f"lth {name}")
        return int(getattr(importlib.import_module(f"lth_scale.{room}"), name)(words, _run_flags, _run))

    return command


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "submit": _of("slurm", "submit"),
    "cancel": _of("slurm", "cancel"),
    "status": _of("slurm", "status"),
    "connectivity": _several("connectivity", "connectivity"),
    "sweep": _several("sweeps", "sweep"),
    "report": _report,
    "list": _list,
    "data": _of("data", "data"),
    "transfer": _transfer,
    "ticket": _of("export", "ticket"),
    "sync": _of("tracking", "sync"),
}

OF_JOBS: dict[str, Callable[[list[str]], int]] = {"task": _of("slurm", "task", "element")}
"""What only scripts of ``slurm/`` call."""
