"""What goes to Slurm, without Slurm: arrays and their links, golden texts, cluster files, quoting, tries."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lth_scale import cli, settings
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json, write_json
from lth_scale.paths import RunPaths
from lth_scale.slurm import cluster as sites
from lth_scale.slurm import job, queue
from lth_scale.slurm.chains import Array, arrays, fitting, spans
from lth_scale.slurm.cluster import Cluster
from lth_scale.slurm.submit import Order, submit
from lth_scale.tasks import Task

ROOT = Path(__file__).resolve().parent.parent
CLUSTERS = sorted(path.stem for path in (ROOT / "configs" / "cluster").glob("*.yaml"))
TINY = ["digits_lenet", "--prune.rounds=2", "--run.seeds=3,5,0", "--run.arms=[ticket,random]"]

# --- chains -----------------------------------------------------------------------------------------------------------


def graph(rounds: int, *seeds: int) -> list[Task]:
    dense = [Task(0, seed, "ticket") for seed in seeds]
    return dense + [Task(r, s, arm) for r in range(1, rounds + 1) for s in seeds for arm in ("ticket", "random")]


def test_tickets_are_chains_and_controls_leaves() -> None:
    found, blocked = arrays(graph(2, 0, 1), set(), {})
    assert not blocked
    assert found == [
        Array("ticket", 0, (0, 1), ()),
        Array("ticket", 1, (0, 1), (0,)),
        Array("random", 1, (0, 1), (0,)),
        Array("ticket", 2, (0, 1), (1,)),
        Array("random", 2, (0, 1), (1,)),
    ]


def test_every_element_has_a_counterpart() -> None:
    """Seed 0 has its dense round done, seed 1 in the queue, seed 2 neither."""
    live = {Task(0, 1, "ticket"): "77"}
    found, _ = arrays(graph(1, 0, 1, 2), {Task(0, 0, "ticket")}, live)
    assert found == [
        Array("ticket", 0, (2,), ()),
        Array("ticket", 1, (0,), ()),
        Array("ticket", 1, (1,), ("77",)),
        Array("ticket", 1, (2,), (0,)),
        Array("random", 1, (0,), ()),
        Array("random", 1, (1,), ("77",)),
        Array("random", 1, (2,), (0,)),
    ]
    for array in found:
        for before in array.after:
            assert isinstance(before, str) or set(array.seeds) <= set(found[before].seeds)


def test_what_is_done_or_queued_is_not_submitted() -> None:
    every = graph(1, 0)
    assert arrays(every, set(every), {}) == ([], [])
    assert arrays(every, set(), dict.fromkeys(every, "5")) == ([], [])


def test_what_nobody_is_going_to_do_is_not_waited_for() -> None:
    chosen = [task for task in graph(2, 0) if task.round == 2]
    assert arrays(chosen, set(), {}) == ([], sorted(chosen, key=lambda task: task.arm != "ticket"))


def test_whole_rounds_fit_or_wait() -> None:
    every, _ = arrays(graph(3, 0, 1), set(), {})  # 2, 4, 4 and 4 elements
    assert fitting(every, 6) == ([a for a in every if a.round < 2], [2, 3])
    assert fitting(every, 5) == ([a for a in every if a.round < 1], [1, 2, 3])
    assert fitting(every, 14) == (every, [])
    assert fitting(every, 1) == ([], [0, 1, 2, 3])


@pytest.mark.parametrize(("indices", "text"), [([0], "0"), ([2, 0, 1], "0-2"), ([0, 1, 3, 7, 8], "0-1,3,7-8")])
def test_spans(indices: list[int], text: str) -> None:
    assert spans(indices) == text


# --- what is sent -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "available", lambda: False)


def dry(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["submit", *TINY, "--out", str(run), "--dry-run", *words]) == 0
    assert not run.exists(), "a dry run writes nothing"
    return capsys.readouterr().out


def neutral(text: str, run: Path) -> str:
    """Without what differs by machine."""
    for real, name in [(run, "RUN"), (ROOT, "CLONE"), (Path.cwd(), "HERE"), (sys.executable, "PYTHON")]:
        text = text.replace(str(real), name)
    return re.sub(r"lth:[0-9a-f]{16}:", "lth:ID:", text).replace("--job-name=RUN", "--job-name=run")


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.usefixtures("no_slurm")
def test_golden(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To accept a change of the texts: remove the file, run this test, look at what it has written."""
    monkeypatch.chdir(tmp_path)
    words = ["--cluster", name, "--max-parallel=2", "--train.batch_size=48"]  # sixteen devices share it
    said = neutral(dry(tmp_path / "run", capsys, *words), tmp_path / "run")
    text, scripts = re.split(r"\n(?=### CLONE)", said, maxsplit=1)
    assert all((ROOT / "slurm" / script).read_text() in scripts for script in ("round.sbatch", "report.sbatch"))
    golden = Path(__file__).parent / "slurm_golden" / f"{name}.txt"
    if not golden.exists():
        golden.write_text(text)
        pytest.fail(f"{golden} was missing; it is written now, look at it")
    assert text == golden.read_text()


@pytest.mark.usefixtures("no_slurm")
def test_what_does_not_fit_is_left_to_a_last_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = dry(tmp_path / "run", capsys, "--cluster", "local", "--max-submitted=11")
    calls = [line for line in said.splitlines() if line.startswith("job")]
    assert len(calls) == 4  # three arrays of rounds 0 and 1, and the last
    assert calls[-1].endswith("--max-submitted=11 --only round=2-2)") and "chain.sh" in calls[-1]
    assert '"--dependency=afterany:$job1:$job2:$job3"' in calls[-1]


@pytest.mark.usefixtures("no_slurm")
def test_a_limit_that_no_round_fits_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        cli.main(["submit", *TINY, "--cluster", "local", "--max-submitted=4", "--dry-run", "--out", str(tmp_path)]) == 2
    )
    assert "it must be 5 or more" in capsys.readouterr().err


def test_a_dry_run_needs_no_slurm_that_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: Path) -> list[queue.Element]:
        raise UserError("squeue refused: no controller")

    monkeypatch.setattr(queue, "available", lambda: True)
    monkeypatch.setattr(queue, "jobs", refuse)
    said = dry(tmp_path / "run", capsys, "--cluster", "local")
    assert said.startswith("# squeue refused: no controller; as if nothing were in the queue\njob1=$(sbatch ")
    assert said.endswith("next: the same command without --dry-run\n")


class Refusing:
    """An sbatch that takes a number of jobs, then no more; the queue holds what it took."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.taken, self.cancelled = room, [], []  # type: tuple[int, list[list[str]], list[str]]
        patch.setattr(queue, "submit", self.submit)
        patch.setattr(queue, "cancel", self.cancelled.extend)
        patch.setattr(queue, "largest_array", lambda: 1001)
        patch.setattr(queue, "jobs", self.jobs)

    def submit(self, words: list[str]) -> str:
        if len(self.taken) >= self.room:
            raise UserError("sbatch refused: QOSMaxSubmitJobPerUserLimit")
        self.taken.append(words)
        return str(len(self.taken))

    def jobs(self, root: Path) -> list[queue.Element]:
        found = []
        for number, words in enumerate(self.taken, 1):
            options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
            _, _, kind, round = options["--comment"].split(":")
            indices = [None] if "--array" not in options else range(3)
            found += [queue.Element(str(number), i, "PENDING", None, 0, "", "", kind, int(round)) for i in indices]
        return found


def test_a_submission_that_was_refused_half_way_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Refusing(monkeypatch, room=2)
    made = Experiment.at(settings.parse(TINY), tmp_path)
    with pytest.raises(UserError, match="QOSMaxSubmitJobPerUserLimit"):
        submit(made, made.tasks, Cluster(), Order())
    assert len(slurm.taken) == 2
    slurm.room = 100
    sent = submit(made, made.tasks, Cluster(), Order())
    assert (sent.live, len(sent.arrays), sent.last) == (6, 3, "6")
    kinds = [re.search(r"lth:\w+:(\w+:\d)", " ".join(words))[1] for words in slurm.taken]  # type: ignore[index]
    assert kinds == ["ticket:0", "ticket:1", "random:1", "ticket:2", "random:2", "report:0"]
    assert "--dependency=aftercorr:2" in slurm.taken[3]
    again = submit(made, made.tasks, Cluster(), Order())
    assert (len(again.arrays), again.last, len(slurm.taken)) == (0, None, 6)


def test_a_seed_keeps_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Refusing(monkeypatch, room=100)
    for seeds, listed in (("3,5,0", [3, 5, 0]), ("0,9", [3, 5, 0, 9])):
        slurm.taken.clear()
        made = Experiment.at(settings.parse([*TINY, f"--run.seeds={seeds}"]), tmp_path)
        submit(made, made.tasks, Cluster(), Order())
        assert read_json(RunPaths(tmp_path).submit.seeds) == listed
    assert "--array=2-3" in slurm.taken[0]
    assert job.task(tmp_path, "ticket", 0, 3) == Task(0, 9, "ticket")
    with pytest.raises(UserError, match="--index=4 is not valid"):
        job.task(tmp_path, "ticket", 0, 4)


# --- strings that reach a shell ---------------------------------------------------------------------------------------

HOSTILE = ["a b", "$(touch pwned)", "`touch pwned`", "it's; touch pwned", 'a"b', "-n", "*", "é\n$x"]


def test_site_lines_pass_words_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / 'it\'s $(touch pwned); "x"'
    home.mkdir()
    site = Cluster(modules=HOSTILE, command=HOSTILE, python="py thon").site(1, home)
    script = f'module() {{ printf "%s\\0" "$2"; }}\n{site}\npwd\nprintf "%s\\0" "${{lth[@]}}"'
    said = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == "".join(f"{word}\0" for word in HOSTILE) + f"{home}\n" + "".join(
        f"{word}\0" for word in [*HOSTILE, "py thon", "-m", "lth_scale"]
    )
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", ["back\\slash", "new\nline"])
@pytest.mark.usefixtures("no_slurm")
def test_folders_that_slurm_cannot_name_are_refused(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["submit", *TINY, "--cluster", "local", "--dry-run", "--out", str(tmp_path / name)]) == 2
    assert "--out=" in capsys.readouterr().err


def test_scripts_are_clean() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    local = ROOT / "slurm" / "local-cluster"
    scripts = [*(ROOT / "slurm").glob("*.s*"), local / "cluster", local / "demo"]
    assert len(scripts) == 6
    subprocess.run(["shellcheck", *scripts], check=True)


# --- cluster files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUSTERS)
def test_shipped_clusters_load(name: str) -> None:
    made = sites.load(sites.find(name))
    assert made == Cluster(**sites.yaml.safe_load(made.text()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: x", "did you mean 'partition'"),
        ("time: 24:00:00", "time=86400 is not valid; it must be text (in quotes"),
        ("cpus: many", "cpus='many' is not valid; it must be a whole number"),
        ("cpus: 0", "cpus=0 is not valid; it must be 1 or more"),
        ("modules: cuda", "modules='cuda' is not valid; it must be a list of words"),
        ("gpus: some", "choose from: gpus-per-node, gres, none"),
        ("- a", "holds no cluster"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_a_cluster_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        sites.load(path)


def test_an_unknown_cluster_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'local'"):
        sites.find("locl")


# --- tries ------------------------------------------------------------------------------------------------------------


def test_only_failures_without_a_step_gained_count(tmp_path: Path) -> None:
    what = Task(1, 0, "ticket")
    folder = what.paths(RunPaths(tmp_path)).checkpoints
    assert [job.failed(tmp_path, what, "7_0", 1) for _ in range(3)] == [0, 0, 1]
    assert job.failed(tmp_path, what, "8_0", 1) == 0, "another submission begins anew"
    (folder / "step_00000500.attempt_3").mkdir(parents=True)
    assert [job.failed(tmp_path, what, "8_0", 1) for _ in range(3)] == [0, 0, 1]
    (folder / "step_00000700.attempt_6").mkdir()
    assert job.failed(tmp_path, what, "8_0", 1) == 0


def test_a_mistake_of_the_users_is_final_at_once(tmp_path: Path) -> None:
    assert job.failed(tmp_path, Task(1, 0, "ticket"), "7_0", 2) == 1


@pytest.mark.slow
def test_a_task_whose_input_is_missing_is_not_ready(tmp_path: Path) -> None:
    made = Experiment.at(settings.parse(TINY), tmp_path).established()
    write_json(made.paths.submit.seeds, [3])
    program = (
        "import sys; from lth_scale import cli; from lth_scale.slurm import job; job.PATIENCE = 0; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["task", str(tmp_path), "--arm=random", "--round=1", "--index=0", "--job=1_0"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "seed=3 arm=random round=1 is not ready: seed=3 arm=ticket round=0 is not done" in done.stderr


@pytest.mark.parametrize(("index", "seconds"), [(0, 0), (7, 14), (29, 58), (31, 2)])
def test_elements_start_one_after_the_other(index: int, seconds: int, tmp_path: Path) -> None:
    """Before anything is read from the file server; with commands that only note how they were called."""
    (tmp_path / "submit").mkdir()
    (tmp_path / "submit/site.sh").write_text("stagger=2\nlth=(true)\n")
    for name in ("sleep", "srun"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$1" >>{tmp_path}/calls\n')
        (tmp_path / name).chmod(0o755)
    told = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_NODELIST": "n1"}
    told["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["bash", ROOT / "slurm/round.sbatch", tmp_path, "ticket", "0"], env=told, check=True)
    assert (tmp_path / "calls").read_text().splitlines()[:2] == [f"sleep {seconds}", "srun --cpus-per-task=1"]
