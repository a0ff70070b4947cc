"""What ``lth status`` says of a run: from its folder alone, and from what a real squeue and a real sacct have said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slurm_lab import running
from tiny_runs import established, final, play, tiny

from lth_scale import checkpoint, claims, cli, status
from lth_scale.checkpoint import Part, State
from lth_scale.checkpoint.writing import begin, finish, write_rank
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import write_json, write_text
from lth_scale.slurm import accounting, commands, job, queue, tables
from lth_scale.slurm.queue import Element
from lth_scale.slurm.state import Known, known, look
from lth_scale.tasks import Task

RECORDED = Path(__file__).parent / "slurm_recorded"
TICKET, RANDOM = "ticket", "random"
ROUNDS = 3


@pytest.fixture
def run(tmp_path: Path) -> Experiment:
    """Two seeds, two arms, three rounds after the dense one, of which nothing is done; submitted."""
    made = tiny(prune={"rounds": ROUNDS}, run={"seeds": (0, 1), "arms": (TICKET, RANDOM)})
    experiment = established(made, tmp_path / "run")
    write_json(experiment.paths.submit.seeds, [0, 1])
    return experiment


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


class Slurm:
    """What squeue and sacct say, by the test's word."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.remembered: list[Element] = []
        self.accounted: list[Element] = []
        patch.setattr(queue, "available", lambda: True)
        patch.setattr(queue, "remembered", lambda root: self.remembered)
        patch.setattr(accounting, "ended", lambda root, since: self.accounted)


def element(what: Task, said: str, reason: str | None = None, array: str = "12", **changes: object) -> Element:
    return replace(Element(array, what.seed, said, reason, 0, "", "", what.arm, what.round), **changes)  # type: ignore[arg-type]


def ticket(round: int, seed: int = 0) -> Task:
    return Task(round, seed, TICKET)


def random(round: int, seed: int = 0) -> Task:
    return Task(round, seed, RANDOM)


def finish_round(run: Experiment, *tasks: Task) -> None:
    for task in tasks:
        write_json(task.paths(run.paths).result, {"attempt": 1, "end": {"test": {"accuracy": 0.9}}})
        write_text(run.paths.round(task.seed, task.arm, task.round + 1).mask, "a mask")


def interrupt(run: Experiment, task: Task) -> None:
    """What an attempt leaves that was asked to end."""
    folder = task.paths(run.paths).claims
    claims.release(folder, claims.acquire(folder, "12_0"))


def fail(run: Experiment, task: Task) -> None:
    """What a job leaves that has given up."""
    job.failed(run.paths.root, task, f"12_{task.seed}", UserError.code)


def of(run: Experiment) -> dict[Task, Known]:
    return {found.task: found for found in known(run)}


def said(run: Experiment) -> dict[Task, tuple[str, str]]:
    return {task: (found.state, found.why) for task, found in of(run).items()}


# --- blocked by what --------------------------------------------------------------------------------------------------


def test_the_root_of_a_chain_is_named(run: Experiment, slurm: Slurm) -> None:
    finish_round(run, ticket(0), ticket(0, seed=1))
    fail(run, ticket(1, seed=1))
    slurm.remembered = [element(ticket(1), "RUNNING"), element(ticket(2), "PENDING", "Dependency", array="13")]
    found = said(run)
    blocked = ("blocked", "by seed=1 arm=ticket round=1, which failed")
    assert {task for task, told in found.items() if told == blocked} == {
        *(ticket(2, 1), random(2, 1), ticket(3, 1), random(3, 1))
    }
    assert of(run)[random(3, 1)].by == ticket(1, 1)
    # The control: seed 0 waits for what is going to happen, however deep.
    assert found[ticket(2)] == found[random(2)] == ("waiting", "for seed=0 arm=ticket round=1")
    assert found[ticket(3)] == found[random(3)] == ("waiting", "for seed=0 arm=ticket round=2")


def test_a_failed_control_blocks_nothing(run: Experiment, slurm: Slurm) -> None:
    finish_round(run, ticket(0))
    fail(run, random(1))
    slurm.remembered = [element(ticket(1), "RUNNING")]
    assert of(run)[random(1)].state == "failed"
    assert of(run)[random(2)].state == "waiting"


@pytest.mark.parametrize(
    ("root", "verb"),
    [("interrupted", "was interrupted"), ("held", "is held"), ("ready", "is not in the queue")],
)
def test_what_nothing_finishes_by_itself_blocks(root: str, verb: str, run: Experiment, slurm: Slurm) -> None:
    if root == "interrupted":
        interrupt(run, ticket(0))
    if root == "held":
        slurm.remembered = [element(ticket(0), "PENDING", "JobHeldUser")]
    found = of(run)
    assert found[ticket(0)].state == root
    assert (found[ticket(3)].state, found[ticket(3)].why) == ("blocked", f"by seed=0 arm=ticket round=0, which {verb}")
    # The controls: in the queue nothing is blocked by it, and neither where a last job submits the rest.
    slurm.remembered = [element(ticket(0), "PENDING", "Priority")]
    assert of(run)[ticket(3)].state == "waiting"
    if root == "ready":
        slurm.remembered = [Element("20", None, "PENDING", "Dependency", 0, "", "", "chain", 0)]
        assert of(run)[ticket(3)].state == "waiting"


@pytest.mark.parametrize(
    ("slurms", "reason"),
    [
        ("PENDING", "JobHeldAdmin"),
        ("PENDING", "launch failed requeued held"),
        ("PENDING", "job requeued in held state"),
        ("REQUEUE_HOLD", None),
        ("SPECIAL_EXIT", None),
    ],
)
def test_held_in_all_its_forms(slurms: str, reason: str | None, run: Experiment, slurm: Slurm) -> None:
    slurm.remembered = [element(ticket(0), slurms, reason)]
    assert of(run)[ticket(0)].state == "held"


def test_without_slurm_nothing_is_called_blocked_that_may_be_in_the_queue(
    run: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "available", lambda: False)
    interrupt(run, ticket(0))
    fail(run, ticket(0, seed=1))
    found = said(run)
    assert found[ticket(0)] == ("interrupted", "")
    assert found[ticket(1)] == ("waiting", "for seed=0 arm=ticket round=0")
    assert found[ticket(3, 1)] == ("blocked", "by seed=1 arm=ticket round=0, which failed")


def test_a_local_run_waits_for_what_is_ready_and_not_for_what_was_interrupted(run: Experiment) -> None:
    run.paths.submit.seeds.unlink()
    interrupt(run, ticket(0, seed=1))
    found = of(run)
    assert (found[ticket(0)].state, found[ticket(3)].state) == ("ready", "waiting")
    assert found[ticket(3, 1)].by == ticket(0, 1)
    root = run.paths.root
    assert tables.following(root, look(run)) == f"lth run {root}/config.yaml --out {root} goes on"


def test_the_table_lists_a_root_once_and_says_how_to_go_on(
    run: Experiment, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(run, ticket(0, seed=1))
    slurm.remembered = [element(ticket(0), "PENDING", "JobHeldUser")]
    assert cli.main(["status", str(run.paths.root)]) == 0
    told = capsys.readouterr().out
    assert told.count("seed=1 arm=ticket round=0 failed: it blocks 6 tasks") == 1
    assert "seed=0 arm=ticket round=0 is held: it blocks 6 tasks" in told
    assert "scontrol release 12_0" in told
    root = run.paths.root
    assert f"next: lth submit {root}/config.yaml --out {root} --cluster {root}/submit/cluster.yaml goes on" in told


# --- how jobs ended ---------------------------------------------------------------------------------------------------


def test_one_in_the_queue_wins_over_those_that_ended(run: Experiment, slurm: Slurm) -> None:
    slurm.remembered = [element(ticket(0), "CANCELLED", array="30"), element(ticket(0), "PENDING", array="12")]
    assert (of(run)[ticket(0)].state, of(run)[ticket(0)].job) == ("queued", "12_0")


def test_the_newest_that_ended_counts_whoever_remembers_it(run: Experiment, slurm: Slurm) -> None:
    interrupt(run, ticket(0))
    slurm.accounted = [element(ticket(0), "NODE_FAIL", array="9"), element(ticket(0), "TIMEOUT", array="10")]
    assert said(run)[ticket(0)] == ("interrupted", "job 10_0 ended as TIMEOUT")
    slurm.remembered = [
        element(ticket(0), "FAILED", array="100", end="2026-11-25T18:00:00", code="signal 9"),
        element(ticket(0), "CANCELLED", array="99"),
    ]
    assert said(run)[ticket(0)] == ("interrupted", "job 100_0 ended as FAILED (signal 9) at 2026-11-25T18:00:00")


def test_a_squeue_that_does_not_answer_leaves_what_the_folder_proves(
    run: Experiment, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(root: Path) -> list[Element]:
        raise UserError("squeue refused: Unable to contact slurm controller")

    monkeypatch.setattr(queue, "remembered", refuse)
    finish_round(run, ticket(0))
    assert cli.main(["status", str(run.paths.root)]) == 0
    told = capsys.readouterr().out
    assert "Unable to contact slurm controller: this is what the folder proves; its newest file is 0 s old" in told
    assert "90.00" in told


def recorded(name: str, root: Path) -> str:
    return (RECORDED / f"{name}.txt").read_text().replace("lth:ID:", queue.mark(root))


def asked(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A recorded answer to whatever is asked; the questions."""
    questions: list[tuple[str, ...]] = []

    def call(*words: str, **_: object) -> str:
        questions.append(words)
        return recorded(name, root) + recorded(name, root / "another").replace("CANCELLED", "FAILED")

    monkeypatch.setattr(queue, "call", call)
    return questions


def test_what_a_real_squeue_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = asked("squeue_ended", tmp_path, monkeypatch)
    found = queue.remembered(tmp_path)
    assert "--states=all" in questions[0] and "--me" in questions[0]
    assert {job.ending for job in found if not job.live and job.kind in (TICKET, "sign") and job.array != "2"} == {
        "job 1_0 ended as COMPLETED at 2026-11-25T18:13:06",
        "job 1_1 ended as FAILED (exit code 3) at 2026-11-25T18:13:06",
        "job 1_2 ended as FAILED (signal 9) at 2026-11-25T18:13:06",
        "job 1_3 ended as CANCELLED (signal 15) at 2026-11-25T18:13:09",
        "job 1_4 ended as TIMEOUT (signal 15) at 2026-11-25T18:13:34",
        "job 21_0 ended as NODE_FAIL at 2026-11-25T18:13:51",
        "job 22_0 ended as PREEMPTED (signal 15) at 2026-11-25T18:13:52",
    }
    assert [(job.name, job.state, job.restarts) for job in found if job.live and job.kind != "reinit-1"] == [
        ("2_5", "PENDING", 0),
        ("4", "PENDING", 0),
        ("1_5", "RUNNING", 1),
        ("23_0", "RUNNING", 1),
    ]


@pytest.mark.slurm
def test_a_squeue_that_is_asked_now_tells_the_same(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    note = f"--comment={queue.comment(tmp_path, TICKET, 2)}"
    with running(tmp_path_factory.mktemp("lab"), 1) as lab:
        script = "case $SLURM_ARRAY_TASK_ID in 0) ;; 1) exit 3 ;; 2) kill -9 $$ ;; 3) sleep 600 ;; esac"
        first = queue.submit(["--output=/dev/null", note, "--array=0-3", f"--wrap={script}"])
        gone = queue.submit(["--output=/dev/null", note, "--array=4-5", "--hold", "--wrap=true"])
        held = queue.submit(["--output=/dev/null", note, "--array=6", "--hold", "--wrap=true"])
        lab.until(lambda: [job.name for job in queue.jobs(tmp_path) if job.state == "RUNNING"], "the one that sleeps")
        queue.cancel([gone])
        lab.until(lambda: len(queue.jobs(tmp_path)) == 2, "the end of the others")
        found = {job.name: job for job in queue.remembered(tmp_path)}
        assert accounting.ended(tmp_path, 0.0) == [], "this cluster has none"
    assert [(job.state, job.code) for _, job in sorted(found.items())] == [
        ("COMPLETED", ""),
        ("FAILED", "exit code 3"),
        ("FAILED", "signal 9"),
        ("RUNNING", ""),
        ("CANCELLED", ""),
        ("CANCELLED", ""),
        ("PENDING", ""),
    ]
    assert {job.live: bool(job.end) for job in found.values() if job.state != "RUNNING"} == {True: False, False: True}
    assert found[f"{held}_6"].held and not found[f"{first}_3"].held


def test_a_run_as_a_real_squeue_told_of_it(run: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six seeds one is done, one failed, one was killed, one is being cancelled, two run."""
    made = tiny(prune={"rounds": ROUNDS}, run={"seeds": tuple(range(6)), "arms": (TICKET, RANDOM)})
    run = Experiment.at(made, run.paths.root)
    write_json(run.paths.submit.seeds, list(range(6)))
    asked("squeue_busy", run.paths.root, monkeypatch)
    monkeypatch.setattr(queue, "available", lambda: True)
    finish_round(run, ticket(0))
    interrupt(run, ticket(0, 2))
    fail(run, ticket(0, 1))
    found = of(run)
    assert [found[ticket(0, seed)].state for seed in range(6)] == [
        *("done", "failed", "interrupted", "running", "running", "running")
    ]
    ending = "job 1_1 ended as FAILED (exit code 3) at 2026-11-25T18:13:06"
    assert found[ticket(0, 1)].why.endswith(f"see submit/logs/ticket-r00-12_1.log; {ending}")
    assert found[ticket(0, 2)].why == "job 1_2 ended as FAILED (signal 9) at 2026-11-25T18:13:06"
    assert (found[ticket(0, 3)].why, found[ticket(0, 5)].why) == ("completing", "")
    assert [found[ticket(1, seed)].state for seed in range(6)] == [
        *("ready", "blocked", "blocked", "waiting", "waiting", "waiting")
    ]
    assert [found[random(3, seed)].state for seed in (0, 1, 3)] == ["held", "held", "waiting"]


def test_what_a_real_sacct_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = asked("sacct", tmp_path, monkeypatch)
    found = accounting.ended(tmp_path, since=0.0)
    assert f"--uid={os.getuid()}" in questions[0]
    told = {job.name: job for job in found}
    assert [told[name].ending for name in ("1_1", "1_2", "1_3", "1_4", "7_0", "8_0")] == [
        "job 1_1 ended as FAILED (exit code 3) at 2026-11-25T18:14:33",
        "job 1_2 ended as FAILED (signal 9) at 2026-11-25T18:14:33",
        "job 1_3 ended as CANCELLED at 2026-11-25T18:14:37",
        "job 1_4 ended as TIMEOUT at 2026-11-25T18:15:03",
        "job 7_0 ended as NODE_FAIL at 2026-11-25T18:14:52",
        "job 8_0 ended as PREEMPTED at 2026-11-25T18:14:52",
    ]
    assert "1_5" not in told and "25_0" not in told, "they run"
    assert [job.index for job in found if job.array == "24"] == list(range(0, 201, 2)), "cancelled before any began"
    assert len([job for job in found if job.array == "28"]) == 25
    assert (told["3_0"].kind, told["3_0"].round) == ("reinit-1", 2)


def test_without_accounting_nothing_is_said_of_it(
    run: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What sacct says and does where no accounting is configured; where there is none; and one that hangs."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for body in ("echo 'Slurm accounting storage is disabled' >&2; exit 1", None, "exec sleep 60"):
        monkeypatch.setattr(accounting, "PATIENCE", 0.2)
        sacct = bin / "sacct"
        if body:
            sacct.write_text(f"#!/bin/sh\n{body}\n")
            sacct.chmod(0o755)
        else:
            sacct.unlink()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{bin}" if body is None else f"{bin}:{os.environ['PATH']}")
            assert accounting.ended(run.paths.root, time.time()) == []
    assert capfd.readouterr() == ("", "")


def test_habits_of_the_user_change_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_STATES", "SQUEUE_PARTITION", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    kept = {name: value for name, value in queue.environment().items() if name.startswith(queue.OPTIONS)}
    assert kept == {"SLURM_CONF": "/etc/slurm.conf", "SLURM_BITSTR_LEN": "0"}


# --- what the folder proves -------------------------------------------------------------------------------------------


def test_running_is_told_with_its_age_and_how_far_it_has_come(
    run: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue, "available", lambda: False)
    paths = ticket(0).paths(run.paths)
    attempt = claims.acquire(paths.claims, "12_0")
    claim = paths.claims / f"{attempt:06d}"
    then = claim.stat().st_mtime - 600
    os.utime(claim, (then, then))
    found = of(run)[ticket(0)]
    assert (found.state, found.nodes, found.why) == ("running", socket.gethostname(), "heard of 10 min ago")
    assert found.step is None
    write_text(paths.metrics(1), "step,split,loss,accuracy,samples\n8,validation,1,0.5,9\n")
    assert (of(run)[ticket(0)].step, of(run)[ticket(0)].steps) == (8, run.total)
    (paths.checkpoints / "step_00000016.attempt_1").mkdir(parents=True)
    assert of(run)[ticket(0)].step == 16, "the checkpoint is further"
    write_text(paths.metrics(2), "step,split,loss,accuracy,samples\n20,validation,1,0.5,9\n2")
    assert of(run)[ticket(0)].step == 20, "the newest attempt is further, and its last line is not whole"
    assert cli.main(["status", str(run.paths.root)]) == 0
    told = capsys.readouterr().out
    assert "Slurm's commands are not here: this is what the folder proves; its newest file is " in told
    assert f"seed 0 at step 20 of {run.total} on" in " ".join(told.split())


def test_progress_of_a_job_that_runs(run: Experiment, slurm: Slurm) -> None:
    slurm.remembered = [element(ticket(0), "RUNNING", restarts=2, left="58:00", nodes="n1")]
    write_text(ticket(0).paths(run.paths).metrics(1), "step,split,loss,accuracy,samples\n8,validation,1,0.5,9\n")
    found = of(run)[ticket(0)]
    assert (found.state, found.step, found.requeued, found.left, found.nodes) == ("running", 8, 2, "58:00", "n1")
    assert tables._said(found) == f"seed 0 at step 8 of {run.total} on n1, 58:00 left, requeued 2 times"


def test_one_that_ended_but_may_still_be_at_work_is_said_to_run(run: Experiment, slurm: Slurm) -> None:
    claims.acquire(ticket(0).paths(run.paths).claims, "12_0")
    slurm.remembered = [element(ticket(0), "NODE_FAIL")]
    assert said(run)[ticket(0)] == ("running", "heard of 0 s ago; job 12_0 ended as NODE_FAIL")


def test_json_is_all_of_it(run: Experiment, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    finish_round(run, ticket(0))
    fail(run, ticket(0, seed=1))
    capsys.readouterr()
    assert cli.main(["status", str(run.paths.root), "--json"]) == 0
    told = {(one["seed"], one["arm"], one["round"]): one for one in json.loads(capsys.readouterr().out)}
    assert len(told) == len(run.tasks) == 2 * (1 + 2 * ROUNDS)
    assert (told[0, TICKET, 0]["state"], told[0, TICKET, 0]["accuracy"]) == ("done", 0.9)
    assert told[1, RANDOM, 3]["by"] == {"round": 0, "seed": 1, "arm": TICKET}


# --- two finals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run whose dense round is done."""
    return play(tiny(), tmp_path_factory.mktemp("dense"), lambda task: task.round == 0)


@pytest.fixture
def twin(dense: Experiment, tmp_path: Path) -> tuple[Experiment, Path]:
    """A copy of it, and where a second attempt's final state would lie."""
    shutil.copytree(dense.paths.root, tmp_path / "run")
    run = status.open_experiment(tmp_path / "run")
    return run, ticket(0).paths(run.paths).checkpoints / f"step_{run.total:08d}.attempt_2"


def altered(state: State) -> State:
    """With the last bit of one weight turned around."""
    made = state.whole()
    made.weights["output.bias"].view(torch.int32)[0] ^= 1
    return made


def halves(folder: Path, state: State) -> None:
    """The same bits as two ranks would save them."""
    scratch, parts = begin(folder), []
    for rank in range(2):
        mine = []
        for key, entry in state.entries().items():
            start, stop = state.share(key, rank, 2)
            mine.append(Part(key, start, state.read(key, start, stop), entry.shape))
        parts.append(write_rank(folder, scratch, rank, mine))
    finish(folder, scratch, parts, state.step, {})


def one_rank(folder: Path, state: State) -> None:
    checkpoint.save_state(folder, state)


@pytest.mark.parametrize("save", [one_rank, halves])
def test_two_finals_that_differ_are_told(
    save: Callable[[Path, State], None], twin: tuple[Experiment, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, second = twin
    state = final(run, TICKET, 0)
    save(second, state)
    assert said(run)[ticket(0)] == ("done", ""), "the same bits"
    shutil.rmtree(second)
    save(second, altered(state))
    why = "two attempts ended with different bits: attempt 1 and attempt 2; the result is attempt 1's"
    assert said(run)[ticket(0)] == ("done", why)
    assert cli.main(["status", str(run.paths.root)]) == 0
    assert why in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_checkpoint_of_an_earlier_step_is_no_twin(twin: tuple[Experiment, Path]) -> None:
    run, second = twin
    earlier = replace(altered(final(run, TICKET, 0)), step=8)
    one_rank(second.with_name("step_00000008.attempt_1"), earlier)
    assert said(run)[ticket(0)] == ("done", "")


# --- watching ---------------------------------------------------------------------------------------------------------


def test_watching_goes_on_until_nothing_is_queued_or_running(
    run: Experiment, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    queues = [
        [element(ticket(0), "PENDING", "Priority")],
        [element(ticket(0), "RUNNING")],
        [Element("20", None, "PENDING", "Dependency", 0, "", "", "report", 0)],
        [element(ticket(0), "PENDING", "JobHeldUser")],  # nothing will happen by itself
    ]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        slurm.remembered = queues[len(waits)]

    monkeypatch.setattr(commands.time, "sleep", sleep)
    slurm.remembered = queues[0]
    assert cli.main(["status", str(run.paths.root), "--watch"]) == 0
    assert len(waits) == 3 and min(waits) >= commands.EVERY
    assert "1 held, 1 ready" in capsys.readouterr().out, "what was seen last stays"


def test_watching_ends_at_once_where_nothing_is_going_on(run: Experiment, slurm: Slurm) -> None:
    assert cli.main(["status", str(run.paths.root), "--watch"]) == 0


@pytest.mark.kill
def test_ctrl_c_ends_the_watching_without_a_traceback(run: Experiment) -> None:
    paths = ticket(0).paths(run.paths)
    claims.acquire(paths.claims, "12_0")  # this process is at work
    words = [sys.executable, "-m", "lth_scale", "status", str(run.paths.root), "--watch"]
    environment = os.environ | {"PATH": "/nowhere", "TTY_COMPATIBLE": "1", "PYTHONUNBUFFERED": "1"}
    watching = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert watching.stdout is not None
    while "running" not in watching.stdout.readline():
        assert watching.poll() is None
    watching.send_signal(signal.SIGINT)
    said, told = watching.communicate(timeout=60)
    assert (watching.returncode, told) == (0, "")
    assert "next: " in said


@pytest.mark.parametrize("words", [["--json", "--watch"], ["RUN", "--json", "--watch"], ["--watch"], ["--json"]])
def test_what_does_not_go_together_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", *words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("--watch" in told or "--json" in told)


@pytest.mark.parametrize(
    ("text", "found"),
    [("3", [3]), ("N/A", []), ("0-2,7%4", [0, 1, 2, 7]), ("0-6:2%7", [0, 2, 4, 6]), ("0-1,7...", [0, 1])],
)
def test_elements_as_slurm_writes_them(text: str, found: list[int]) -> None:
    assert queue.indices(text) == found
