"""``lth ticket bench``: every contender keeps its row, what is measured is what is said, and the report shows it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import synthetic
import torch
from tiny_runs import final, play, tiny

from lth_scale import cli, report, settings
from lth_scale.data import prepare
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.export import choose, memory, programs
from lth_scale.export.bench import BASELINE, DENSE, Plan, bench
from lth_scale.export.contenders import CONTENDERS, Contender, Floats, Given, torch_runner
from lth_scale.export.energy import meter
from lth_scale.export.sources import Chosen
from lth_scale.export.timing import FEWEST, TURN, cores, interleaved, pinned
from lth_scale.paths import RunPaths
from lth_scale.report import speed
from lth_scale.report.page import section
from lth_scale.report.speed import Bench
from lth_scale.report.study import Study

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "bench.md").read_text()
QUICK = Plan((1, 3), repeats=20, samples=200)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    changes = {"train": {"duration": "200it", "eval_every": "200it"}, "prune": {"rounds": 1, "rate": 0.7}}
    return play(tiny(**changes), tmp_path_factory.mktemp("bench") / "digits")


@pytest.fixture(scope="module")
def chosen(run: Experiment) -> Chosen:
    return choose(run.paths.root, None, "ticket", None, False)


def written(size: int) -> Callable[[Given], Path]:
    paths = itertools.count()

    def make(given: Given) -> Path:
        path = given.folder / f"{size}-{next(paths)}"
        path.write_bytes(bytes(size))
        return path

    return make


def refusing(given: Given) -> Path:
    raise UserError("there is no such runtime here")


def failing(path: Path, threads: int) -> Callable[[Floats], Floats]:
    raise RuntimeError("no kernel\nand a trace")


def stand_ins(run: Experiment) -> dict[str, Contender]:
    """Without ONNX, which takes seconds: the network itself, one with other weights, and two that cannot run."""
    model, wrong, state = run.model(0).eval(), run.model(1).eval(), final(run, "ticket", 1)
    model.load_state_dict({**state.weights, **state.buffers})
    return {
        BASELINE: Contender(written(4000), lambda path, threads: torch_runner(model), "torch"),
        "same": Contender(written(1000), lambda path, threads: torch_runner(model), "torch"),
        "wrong": Contender(written(4000), lambda path, threads: torch_runner(wrong), "torch"),
        "refusing": Contender(refusing, failing, "torch"),
        "failing": Contender(written(1), failing, "torch"),
    }


def grown(name: str, path: Path, shape: tuple[int, int, int], batches: Sequence[int], threads: int) -> list[float]:
    assert path.exists() and threads == 1
    return [float(batch) for batch in batches]


@pytest.fixture(scope="module")
def found(run: Experiment, chosen: Chosen) -> Bench:
    dense = choose(run.paths.root, None, "ticket", 0, False)
    return bench(chosen, QUICK, dense=dense, contenders=stand_ins(run), grown=grown)


def test_every_contender_has_a_row_at_every_batch(found: Bench, run: Experiment, chosen: Chosen) -> None:
    first, *rows = found.rows
    assert [(row.batch, row.contender) for row in rows] == [*itertools.product((1, 3), stand_ins(run))]
    assert (first.contender, first.batch, first.median_ms) == (DENSE, None, None) and first.why
    assert all(row.limit == pytest.approx(1 / float(chosen.about["density"])) for row in rows)
    by_name = {row.contender: row for row in rows if row.batch == 3}
    assert by_name["refusing"].why == "there is no such runtime here" and by_name["refusing"].median_ms is None
    assert by_name["failing"].why == "RuntimeError: no kernel"
    same = by_name["same"]
    assert (same.file_bytes, same.smaller, same.memory_mib, same.calls) == (1000, 4.0, 3.0, 20)
    assert same.median_ms and same.images_per_s == pytest.approx(3e3 / same.median_ms)
    assert by_name[BASELINE].speedup == 1.0 and same.p99_ms is None  # of 20 calls
    assert same.speedup == pytest.approx((by_name[BASELINE].median_ms or 0) / same.median_ms)


def test_outputs_and_accuracy_are_compared(found: Bench, run: Experiment) -> None:
    """Equal weights, equal outputs; the control's other weights show in both columns."""
    by_name = {row.contender: row for row in found.rows}
    same, wrong, dense = by_name["same"], by_name["wrong"], by_name[DENSE]
    assert same.difference == 0 and same.accuracy_change == 0 and (same.accuracy or 0) > 60
    assert (wrong.difference or 0) > 1 and (wrong.accuracy or 100) < 40
    assert wrong.accuracy_change == pytest.approx((wrong.accuracy or 0) - (same.accuracy or 0))
    assert found.about["samples"] == 200 and (dense.accuracy or 0) > 60


def test_the_whole_test_set_gives_the_accuracy_that_the_run_measured(run: Experiment, chosen: Chosen) -> None:
    found = bench(chosen, replace(QUICK, samples=10_000), contenders=stand_ins(run), grown=grown)
    told = json.loads(run.paths.round(0, "ticket", 1).result.read_text())
    assert found.about["samples"] == run.description.test
    assert found.rows[0].accuracy == pytest.approx(100 * told["end"]["test"]["accuracy"])


class Clock:
    """Time that passes only where somebody spends it, and who did, in order."""

    def __init__(self) -> None:
        self.now, self.spent = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def spend(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds
            self.spent.append(name)

        return call


def test_turns_are_interleaved() -> None:
    clock, costs = Clock(), {"a": 0.001, "b": 0.002, "c": 0.004}
    calls = {name: clock.spend(name, seconds) for name, seconds in costs.items()}
    found = interleaved(calls, 55, 100, lambda: 2 * clock.now, clock)
    for name, seconds in costs.items():
        assert found[name].seconds == pytest.approx([seconds] * 55)
        assert found[name].joules == pytest.approx(55 * 2 * seconds)
    turns = [(name, len([*group])) for name, group in itertools.groupby(clock.spent[3 * TURN :])]
    orders = ["".join(name for name, _ in turns[start : start + 3]) for start in range(0, len(turns), 3)]
    # Two turns of one program meet where it ends one round and begins the next.
    assert len(clock.spent) == 3 * (TURN + 55 + 6) and len(set(orders)) > 1
    assert max(count for _, count in turns) <= 2 * (TURN + 1)
    rounds = [clock.spent[3 * TURN :][at : at + 3 * (TURN + 1)] for at in range(0, 3 * 55, 3 * (TURN + 1))]
    assert all(set(one) == set(costs) for one in rounds)


def test_slow_programs_are_called_less_but_all_of_them_equally_often() -> None:
    clock = Clock()
    calls = {"slow": clock.spend("slow", 0.5), "fast": clock.spend("fast", 0.001)}
    for seconds, expected in ((1, FEWEST), (20, 40), (1000, 100)):
        found = interleaved(calls, 100, seconds, clock=clock)
        assert [len(one.seconds) for one in found.values()] == [expected, expected]
        assert found["slow"].joules is None


def test_threads_are_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0), torch.get_num_threads()
    with pinned(1) as held:
        assert os.sched_getaffinity(0) == set(held) and len(held) == 1 == torch.get_num_threads()
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def test_energy_is_read_where_it_can_be(tmp_path: Path) -> None:
    """The package's counter, not its parts', and what wraps round goes on."""
    assert meter(tmp_path) is None
    for place, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        (tmp_path / place).mkdir()
        for file, text in (("name", name), ("max_energy_range_uj", "9999999"), ("energy_uj", "9000000")):
            (tmp_path / place / file).write_text(f"{text}\n")
    found = meter(tmp_path)
    assert found is not None and found.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000\n")
    assert found.joules() == 2.0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1500000\n")
    assert found.joules() == 2.5


def test_rows_come_back_from_files(found: Bench, tmp_path: Path) -> None:
    found.write(tmp_path)
    assert speed.read(tmp_path / "bench.json") == found
    frame = pd.read_csv(tmp_path / "bench.csv", keep_default_na=False)
    for row, (_, line) in zip(found.rows, frame.iterrows(), strict=True):
        for key, value in asdict(row).items():
            read = None if line[key] == "" and key != "why" else line[key]
            assert read == value if isinstance(value, str | None) else float(read) == value, key
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        speed.read(tmp_path / "bench.json")


def test_the_report_has_the_table_and_the_pictures(found: Bench, tmp_path: Path) -> None:
    root = synthetic.write_run(tmp_path / "run", synthetic.config(rounds=1, seeds=range(2)))
    read = report.read_run(root)
    assert not speed.plots(read) and not speed.grids(read)
    found.write(RunPaths(root).round(0, "ticket", 1).bench)
    shown = section(Study.whole(read))
    (table,) = (grid for grid in shown.grids if grid.title == "Size and speed: seed 0, arm ticket, round 1")
    assert [(row[0].text, row[1].text) for row in table.rows[1:]] == [
        (row.contender, str(row.batch)) for row in found.rows[1:]
    ]
    assert table.rows[1][11].text == "not measurable here"
    assert "refusing: there is no such runtime here." in table.note
    drawn = {plot.slug: plot.inline(plot.slug) for plot in shown.plots if plot.title.startswith("Size and speed")}
    assert set(drawn) == {"size_0_ticket_1", "speed_0_ticket_1"}
    assert all(f">{name}<" in svg for svg in drawn.values() for name in (BASELINE, "same", "wrong"))


def test_data_may_lie_elsewhere(chosen: Chosen, tmp_path: Path) -> None:
    asked = settings.read_text(chosen.config, "")
    gone = replace(chosen, config=settings.dump(replace(asked, data=replace(asked.data, dir=str(tmp_path / "gone")))))
    with pytest.raises(UserError, match="gone"):
        Given.of(gone, tmp_path)
    prepare("digits", tmp_path / "here", progress=False)
    assert Given.of(gone, tmp_path, str(tmp_path / "here")).dataset.length("test") > 0


def test_what_cannot_be_measured_is_told_before_work(
    run: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(run.paths.root)
    state = next(path for path in run.paths.round(0, "ticket", 1).checkpoints.iterdir() if path.is_dir())
    (tmp_path / "file").write_text("")
    for words, told in (
        ([], "ticket bench needs a ticket"),
        ([root, "--batches=1,many"], "--batches='1,many' is not valid; it must be whole numbers such as 1,32,256"),
        ([root, "--batches=0"], "--batches=(0,) is not valid"),
        ([root, "--threads=4096"], f"--threads=4096 is not valid; it must be in 1..{cores()}"),
        ([root, "--repeats=0"], "--repeats=0 is not valid; it must be positive"),
        ([root, "--round=0"], "ticket bench needs a mask"),
        ([str(state)], "ticket bench needs a mask"),
        ([root, f"--out={tmp_path / 'file'}"], "a file is in the way"),
        ([root, f"--data.dir={tmp_path / 'none'}"], "holds no digits"),
    ):
        assert cli.main(["ticket", "bench", *words]) == 2
        line = capsys.readouterr().err
        assert told in line and len(line.splitlines()) == 1
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    assert cli.main(["ticket", "bench", root]) == 2
    assert (
        "ticket bench needs onnx, onnxscript, onnxruntime: pip install 'lth_scale[export]'" in capsys.readouterr().err
    )
    assert not run.paths.benches() and not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def measured(run: Experiment) -> Bench:
    """All contenders, in earnest."""
    return bench(choose(run.paths.root, None, "ticket", None, False), Plan((1, 32), repeats=20))


@pytest.mark.slow
def test_all_contenders_compute_the_ticket(measured: Bench) -> None:
    assert [row.contender for row in measured.rows] == [*CONTENDERS] * 2
    for row in measured.rows:
        if "GPU" in row.contender and row.why:  # there is none, or the ticket is not 2:4
            assert "GPU" in row.why or "2:4" in row.why
            continue
        assert row.why == ""
        assert row.median_ms and row.file_bytes and row.memory_mib and row.memory_mib > 0
        assert row.difference is not None and row.accuracy_change is not None
        if "int8" in row.contender:
            assert row.difference > 1e-4 and abs(row.accuracy_change) < 3
        else:
            assert row.difference < 1e-4 and row.accuracy_change == 0


@pytest.mark.slow
def test_int8_is_exported_too(run: Experiment, measured: Bench, tmp_path: Path) -> None:
    """The same file that was measured, and it runs without this project."""
    out, root = tmp_path / "int8.onnx", str(run.paths.root)
    assert cli.main(["ticket", "export", root, "--format=onnx_int8", f"--data.dir={tmp_path}", f"--out={out}"]) == 2
    assert not out.exists()
    assert cli.main(["ticket", "export", root, "--format=onnx_int8", f"--out={out}"]) == 0
    (row,) = (row for row in measured.rows if (row.contender, row.batch) == ("onnx int8", 1))
    assert out.stat().st_size == row.file_bytes
    test = run.dataset.test
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": run.dataset.normalise(test.images).numpy()})[0]
    assert 100 * (logits.argmax(1) == test.labels.numpy()).mean() == pytest.approx(row.accuracy)


@pytest.mark.slow
def test_memory_is_that_of_the_images_at_least(run: Experiment, chosen: Chosen, tmp_path: Path) -> None:
    path = CONTENDERS["torch dense"].make(Given.of(chosen, tmp_path))
    count, shape = 100_000, run.description.shape
    one, many = memory.grown("torch dense", path, shape, (1, count), 1) or (0, 0)
    assert 0 < one < 30 and many - one > 4 * count * np.prod(shape) / 2**20
    assert memory.grown("torch dense", tmp_path / "none", shape, (1,), 1) is None


@pytest.mark.slow
def test_the_commands_of_the_page_work(run: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of docs/bench.md, in its order; short, by numbers behind the page's own, where no system tells of memory."""
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(run.paths.root)
    lines = [line.removeprefix("$ ") for line in DOCS.splitlines() if line.startswith("$ lth ")]
    short = {line: [*shlex.split(line)[1:], *(["--repeats=5"] if " bench " in line else [])] for line in lines}
    said = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        codes = {line: cli.main(words) for line, words in short.items()}
    assert codes == dict.fromkeys(lines, 0) and len(lines) == 4, said.getvalue()
    assert len(run.paths.benches()) == 1 and (tmp_path / "edge" / "bench.csv").exists()
    assert "Size and speed" in (tmp_path / "runs" / "digits" / "report.html").read_text()
