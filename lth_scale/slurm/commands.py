"""``lth submit``, ``lth cancel``, ``lth status`` of one run, and ``lth task``, which jobs call."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lth_scale import settings
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.slurm import cluster as sites
from lth_scale.slurm import queue, state
from lth_scale.slurm.submit import Order, Sent, show
from lth_scale.slurm.submit import submit as send
from lth_scale.status import open_experiment, overview
from lth_scale.status import status as table
from lth_scale.tasks import select
from lth_scale.words import console, following, parser, strays


def submit(words: list[str]) -> int:
    """``lth submit [run] CONFIG... --cluster X``: what ``lth run`` would do, as jobs."""
    flags, rest = _submit_flags(words[1:] if words[:1] == ["run"] else words)
    site = sites.load(sites.find(flags.cluster))
    config = settings.parse([*site.hardware(), *rest])
    experiment = Experiment.at(config, Path(flags.out) if flags.out else settings.run_folder(rest, config))
    order = Order(flags.only or [], flags.max_parallel, flags.max_submitted)
    chosen = select(experiment.tasks, order.only)
    if flags.dry_run:
        print(show(experiment, chosen, site, order))
        return 0
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
            f"{first}, which needs {first.needs}"
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
    print(
        f"next: lth submit {flags.run}/config.yaml --out {flags.run} --cluster {flags.run}/submit/cluster.yaml goes on"
    )
    return 0


def status(words: list[str]) -> int:
    """``lth status [RUN]``: for machines all tasks as JSON; for people a table, and after a submission one by round."""
    made = parser("status", "run")
    made.add_argument("--json", action="store_true")
    flags = made.parse_args(words)
    if not flags.run:
        if flags.json:
            raise UserError("--json needs a run folder: lth status RUN --json")
        console().print(overview(Path("runs")))
        return following("lth status RUN")
    experiment = open_experiment(root := Path(flags.run))
    if flags.json:
        print(json.dumps(state.as_json(state.known(experiment)), indent=1))
        return 0
    console().print(table(root))
    if experiment.paths.submit.seeds.exists():
        console().print(state.table(root, state.known(experiment)))
    return following(f"lth report {flags.run}")


def task(words: list[str]) -> int:
    """``lth task RUN ...``: an array's element; exit codes as in slurm/round.sbatch."""
    from lth_scale.slurm import job

    made = parser("task", "run")
    for option in ("--arm", "--job"):
        made.add_argument(option, required=True)
    for option in ("--round", "--index"):
        made.add_argument(option, type=int, required=True)
    made.add_argument("--failed", type=int)
    flags = made.parse_args(words)
    what = job.task(Path(flags.run), flags.arm, flags.round, flags.index)
    if flags.failed is not None:
        return job.failed(Path(flags.run), what, flags.job, flags.failed)
    return job.work(Path(flags.run), what, flags.job)
