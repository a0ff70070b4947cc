"""``lth run`` in this process, what it must say when something is wrong, and a finished run to damage."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import play, tiny

from lth_scale import cli, launch, report, settings

Lth = Callable[..., tuple[int, str]]
BASE = "train: {duration: 20it, batch_size: 100, eval_every: 10it}\nmodel: {hidden: [20, 10]}\nprune: {rounds: 1}\n"


class Inline:
    """A pool that works in this process, at once."""

    def schedule(self, work: Callable[..., None], args: list[Any]) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def lth(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lth:
    """Runs ``lth run`` on the base config: (exit code, what it said on stderr). Its workers are this process."""
    monkeypatch.setattr(launch, "_pool", lambda jobs, experiment: contextlib.nullcontext(Inline()))
    monkeypatch.setattr(report, "write_report", lambda runs, out: out / "report.html")  # takes seconds
    monkeypatch.chdir(tmp_path)
    launch._experiment.cache_clear()
    (tmp_path / "base.yaml").write_text(BASE)

    def run(*words: str, config: str = "base.yaml") -> tuple[int, str]:
        capfd.readouterr()
        code = cli.main(["run", config, "--out=run", *words])
        return code, capfd.readouterr().err

    return run


def assert_told(answer: tuple[int, str], *parts: str) -> None:
    code, told = answer
    assert code == 2, told
    first, *others = told.splitlines()
    assert first.startswith("lth: ") and "Traceback" not in told, told
    assert all(line.startswith("lth: seed=") for line in others), told  # a line per task
    missing = [part for part in parts if part not in told]
    assert not missing, f"{missing} not in: {told}"


MADE = tiny(
    train={"duration": "20it", "batch_size": 100, "eval_every": "10it", "lr": 0.05},
    rewind={"at": "5it"},
    prune={"rounds": 1},
    run={"seeds": (0,), "arms": ("ticket", "random")},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(MADE, tmp_path_factory.mktemp("whole")).paths.root


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, of which round 1 is still to be trained."""
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    for path in root.glob("seed_0/*/round_01/result.json"):
        path.unlink()
    for path in root.glob("seed_0/*/round_01/checkpoint"):
        shutil.rmtree(path)
    return root


@pytest.fixture
def again(lth: Lth, tmp_path: Path) -> Lth:
    """The same command on the copy."""
    (tmp_path / "made.yaml").write_text(settings.dump(MADE))
    return partial(lth, config="made.yaml")


def flip(path: Path, at: int = -1) -> None:
    """Turn one bit around."""
    held = bytearray(path.read_bytes())
    held[at] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"a bit": flip, "cut": cut, "empty": empty}
