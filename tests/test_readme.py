"""What the README says can be typed, can be typed: every command and every Python block is run, in its order."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from failing_ranks import Run
from test_data_sources import idx
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lth_scale.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# Small, and the same in every run of one folder.
SHORT = ["--train.duration=20it", "--train.eval_every=10it", "--prune.rounds=1", "--run.seeds=0", "--jobs=1"]
CALLBACK, OPEN_RUN = 0, 1


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(first: str) -> list[str]:
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line.split()[0] == first]


def shortened(command: str) -> list[str]:
    """The words of a command; what would train for long gets small numbers behind its own."""
    words = shlex.split(command)
    if words[:2] == ["lth", "transfer"]:
        return [*words[:3], *SHORT, *words[3:]]
    if words[:2] == ["lth", "sweep"]:
        return [*words, *SHORT]
    if words[:2] != ["lth", "run"] or "--plan" in words or "--print_config" in words:
        return words
    words = ["seed=0" if word.startswith("seed=") else word for word in words]
    words = ["--rewind.at=5it" if word.startswith("--rewind.at=") else word for word in words]
    return [*words[:2], *SHORT, *[w for w in words[2:] if not w.startswith("--run.seeds")]]


def call(command: str) -> str:
    """Run a command in this process; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main(shortened(command)[1:])
    assert status == 0, f"{command}\n{printed.getvalue()}"
    return printed.getvalue()


def write_mnist(folder: Path) -> None:
    """MNIST's four files at their full size, each image of one grey by its label."""
    folder.mkdir()
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to((20 * labels)[:, None, None], (count, 28, 28))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))


def several_devices(command: str) -> bool:
    return "hardware.devices" in command


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which every command was run, with what each printed."""
    folder = tmp_path_factory.mktemp("readme")
    write_mnist(folder / "idx")
    with contextlib.chdir(folder):
        printed = {line: call(line) for line in commands("lth") if not several_devices(line)}
    return folder, printed


def test_every_console_line_is_a_command_that_is_checked_here() -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert [line for line in lines if not re.match(r"\$ (lth|make) ", line)] == []
    assert set(re.findall(r"^```(\w+)", README, re.MULTILINE)) == {"console", "python"}


@pytest.mark.slow
@pytest.mark.timeout(900)  # a dozen small runs, each with its report
def test_every_command_runs(sandbox: tuple[Path, dict[str, str]]) -> None:
    _, printed = sandbox
    assert len(printed) > 10
    quiet = [line for line in printed if "--print_config" not in line and "next: " not in printed[line]]
    assert quiet == []  # every command ends by naming the next useful one


@pytest.mark.slow
def test_results_in_python(sandbox: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox[0])
    names: dict[str, Any] = {}
    exec(blocks("python")[OPEN_RUN], names)
    assert names["run"].mask(seed=0, round=1).density == pytest.approx(0.802, abs=1e-3)


@pytest.mark.distributed
def test_several_devices(tmp_path: Path) -> None:
    """The first as the program that is installed, with all of its arms; the others with one, by forks."""
    first, *others = [shortened(line) for line in commands("lth") if several_devices(line)]
    program = [str(Path(sys.executable).with_name("lth")), *first[1:]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{first}\n{done.stdout}\n{done.stderr}"
    assert others
    for number, words in enumerate(others):
        run = Run([*words[2:], "--run.arms=[ticket]"], tmp_path / str(number))
        assert run.wait() == 0, f"{words}\n{run.told}"


class MyModule(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = TensorDataset(torch.randn(40, 8), torch.randint(0, 2, (40,)))
    names: dict[str, Any] = {"MyModule": MyModule, "my_loader": DataLoader(data, batch_size=10)}
    exec(blocks("python")[CALLBACK], names)
    assert names["tickets"].mask.density == pytest.approx(0.64, abs=0.01)


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.split()[1] in targets


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
