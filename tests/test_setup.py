"""``tools/setup.sh``, which every make target starts with, on a toy project that installs offline in a moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "toy"
version = "1"
[project.optional-dependencies]
dev = []
"""

# Builds an editable wheel with one command, or fails when told to.
BACKEND = """
import pathlib, zipfile
INFO = "toy-1.dist-info"
FILES = {
    "toy.py": "def main(): print('toy')",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\nProvides-Extra: dev\\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\\nGenerator: toy\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    f"{INFO}/entry_points.txt": "[console_scripts]\\nlth = toy:main\\n",
    f"{INFO}/RECORD": "",
}
def build_editable(folder, config_settings=None, metadata_directory=None):
    if pathlib.Path("broken").exists():
        raise SystemExit("the backend is broken")
    with zipfile.ZipFile(pathlib.Path(folder, "toy-1-py3-none-any.whl"), "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return "toy-1-py3-none-any.whl"
build_wheel = build_editable
"""


class Clone:
    """A toy clone; ``setup`` runs the real script in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools" / "setup.sh", folder / "tools")
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "backend.py").write_text(BACKEND)
        self.venv = folder / ".venv"

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        python = {"PYTHON": getattr(sys, "_base_executable", sys.executable)}
        return subprocess.run(
            [str(self.folder / "tools" / "setup.sh")],
            env=os.environ | python | environment,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def works(self) -> bool:
        done = subprocess.run([str(self.venv / "bin" / "lth")], capture_output=True, text=True, timeout=60)
        return done.stdout == "toy\n" and (self.venv / "stamp").exists() and not (self.venv / "unfinished").exists()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def test_the_first_call_installs_and_the_second_does_nothing(clone: Clone) -> None:
    first = clone.setup()
    assert first.returncode == 0, first.stderr
    assert len(first.stderr.splitlines()) == 1 and clone.works()
    before = (clone.venv / "stamp").stat().st_mtime_ns
    second = clone.setup()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (clone.venv / "stamp").stat().st_mtime_ns == before


def test_a_changed_project_is_installed_into_the_same_venv(clone: Clone) -> None:
    clone.setup()
    (clone.venv / "witness").touch()
    (clone.folder / "pyproject.toml").write_text(PROJECT + "# changed\n")
    assert "installing" in clone.setup().stderr
    assert clone.works() and (clone.venv / "witness").exists()


def test_a_venv_killed_half_way_is_made_anew(clone: Clone) -> None:
    clone.setup()
    for name in ("witness", "unfinished"):
        (clone.venv / name).touch()
    shutil.rmtree(next(clone.venv.glob("lib/python*/site-packages/pip")))
    assert clone.setup().returncode == 0
    assert clone.works() and not (clone.venv / "witness").exists()


def test_a_moved_clone_gets_a_venv_of_its_own(clone: Clone, tmp_path: Path) -> None:
    clone.setup()
    moved = tmp_path / "moved"
    clone.folder.rename(moved)
    clone.folder, clone.venv = moved, moved / ".venv"
    assert clone.setup().returncode == 0
    assert clone.works()


def test_a_failed_install_says_so_and_the_next_call_mends_it(clone: Clone) -> None:
    (clone.folder / "broken").touch()
    failed = clone.setup()
    assert failed.returncode != 0
    assert "the backend is broken" in failed.stdout + failed.stderr
    assert not (clone.venv / "stamp").exists()
    (clone.folder / "broken").unlink()
    assert clone.setup().returncode == 0
    assert clone.works()


def test_a_missing_python_is_one_line(clone: Clone) -> None:
    done = clone.setup(PYTHON="/nonexistent/python3")
    assert done.returncode != 0
    assert "/nonexistent/python3 is missing or older than 3.11" in done.stderr.splitlines()[-1]
