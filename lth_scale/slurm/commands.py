"""``lth submit``, ``lth cancel``, ``lth status`` of one run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lth_scale import settings
from lth_scale.connectivity import as_runs
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.slurm import agents, queue, state, tables
from lth_scale.slurm import cluster as sites
from lth_scale.slurm.submit import Order, Sent, show
from lth_scale.slurm.submit import submit as send
from lth_scale.status import open_experiment, overview
from lth_scale.sweeps import as_runs as sweeps
from lth_scale.tasks import select
from lth_scale.transfer.commands import as_runs as transfers
from lth_scale.words import console, following, parser, strays

EVERY = 5.0  # seconds between two looks of --watch


def submit(words: list[str]) -> int:
    """``lth submit [run | connectivity | transfer | sweep] WORDS... --cluster=X``: what that would do, as jobs."""
    if words[:1] == ["transfer"]:
        return max(map(submit, transfers(words[1:])))
    if words[:1] == ["sweep"] and agents.named(words[1:]):
        return agents.submit(words[1:])
    if words[:1] == ["sweep"]:
        return max(map(submit, sweeps(words[1:], _submit_flags)))
    if words[:1] == ["connectivity"]:
        return max(map(submit, as_runs(words[1:], _submit_flags)[1].values()))
    flags, rest = _submit_flags(words[1:] if words[:1] == ["run"] else words)
    site = sites.load(sites.find(flags.cluster))
    config = settings.parse([*site.hardware(), *rest])
    experiment = Experiment.at(config, Path(flags.out) if flags.out else settings.run_folder(rest, config))
    order = Order(flags.only or [], flags.max_parallel, flags.max_submitted)
    chosen = select(experiment.tasks, order.only)
    if flags.dry_run:
        print(show(experiment, chosen, site, order))
        return following("the same command without --dry-run")
    for line in _told(send(experiment, chosen, site, order), len(chosen)):
        print(line)
    return following(f"lth status {experiment.paths.root}")


def _submit_flags(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    made = parser("submit")
    for option in ("--cluster", "--out"):
        made.add_argument(option)
    for option in ("--max-parallel", "--max-submitted"):
        made.add_argument(option, type=int)
    made.add_argument("--only", nargs="+")
    made.add_argument("--dry-run", action="store_true")
    flags, rest = made.parse_known_args(words)
    if not flags.cluster:
        raise UserError("submit needs a cluster: --cluster FILE.yaml, or one of those in configs/cluster by its name")
    for key in ("max_parallel", "max_submitted"):
        if (value := getattr(flags, key)) is not None and value < 1:
            raise UserError(f"--{key.replace('_', '-')}={value} is not valid; it must be 1 or more")
    return flags, [*rest, *strays(flags)]


def _told(sent: Sent, chosen: int) -> list[str]:
    count = sum(len(array.seeds) for array in sent.arrays.values())
    lines = [f"submitted {count} of {chosen} tasks in {len(sent.arrays)} arrays; {sent.live} were in the queue before"]
    if sent.later:
        lines.append(
            f"rounds {sent.later[0]} to {sent.later[-1]} will be submitted by job {sent.last}, after the others"
        )
    elif sent.last:
        lines.append(f"report: job {sent.last}, after all others")
    if sent.blocked:
        first = sent.blocked[0]
        lines.append(
            f"not submitted: {len(sent.blocked)} tasks that need what is neither done nor in the queue, such as "
            f"{first}, which needs {' and '.join(map(str, first.needs))}"
        )
    return lines


def cancel(words: list[str]) -> int:
    """``lth cancel RUN``: end this user's jobs of a run; rounds that are being trained save on their way out."""
    flags = parser("cancel", "run").parse_args(words)
    if not flags.run:
        raise UserError("cancel needs a run folder: lth cancel RUN")
    open_experiment(Path(flags.run))
    found = queue.jobs(Path(flags.run))
    queue.cancel(sorted({job.array for job in found}, key=int))
    print(f"cancelled {len(found)} jobs")
    return following(f"{tables.resume(Path(flags.run))} goes on")


def status(words: list[str]) -> int:
    """``lth status [RUN]``: tables for people, drawn anew with ``--watch``; all tasks as JSON for machines."""
    made = parser("status", "run")
    for option in ("--json", "--watch"):
        made.add_argument(option, action="store_true")
    flags = made.parse_args(words)
    if flags.json and flags.watch:
        raise UserError("--watch and --json are not for the same reader; give one of them")
    if not flags.run:
        if flags.json or flags.watch:
            raise UserError(f"--{'json' if flags.json else 'watch'} needs a run folder: lth status RUN")
        console().print(overview(Path("runs")))
        return following("lth status RUN")
    experiment = open_experiment(root := Path(flags.run))
    if flags.json:
        print(json.dumps(state.as_json(state.known(experiment)), indent=1))
        return 0
    seen = watch(experiment, root) if flags.watch else state.look(experiment)
    if not seen:
        return 0
    console().print(tables.shown(root, seen))
    return following(tables.following(root, seen))


def watch(experiment: Experiment, root: Path) -> state.Seen | None:
    """Draw until nothing is queued or running, or the user ends it; what was seen last, if anything."""
    from rich.live import Live

    seen = None
    with suppress(KeyboardInterrupt), Live(console=console(), auto_refresh=False, transient=True) as live:
        begun = time.monotonic()
        while (seen := state.look(experiment)).busy:
            live.update(tables.shown(root, seen), refresh=True)
            time.sleep(max(EVERY, 5 * (time.monotonic() - begun)))  # file servers and controllers have other work
            begun = time.monotonic()
    return seen
