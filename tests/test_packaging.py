"""The wheel, installed and used outside the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from lth_scale import resources

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=250,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Installed:
    wheel: Path
    target: Path
    elsewhere: Path

    def run(self, *command: str | Path) -> str:
        return call(*command, cwd=self.elsewhere, PYTHONPATH=str(self.target))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a folder of its own, with the clone taken off the path that the editable install put it on."""
    tmp = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp, ROOT, cwd=tmp)
    (wheel,) = tmp.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp / "site"]
    call(*pip, wheel, cwd=tmp)
    hide = f"import sys\nsys.path[:] = [entry for entry in sys.path if entry != {str(ROOT)!r}]\n"
    (tmp / "site" / "sitecustomize.py").write_text(hide)
    (tmp / "elsewhere").mkdir()
    return Installed(wheel, tmp / "site", tmp / "elsewhere")


def shipped() -> dict[str, Path]:
    """Name in the wheel -> file of the clone."""
    package = {str(path.relative_to(ROOT)): path for path in (ROOT / "lth_scale").rglob("*")}
    beside = {
        f"lth_scale/{path.relative_to(ROOT)}": path
        for name in ("configs", "slurm")
        for path in (ROOT / name).rglob("*")
    }
    return {name: path for name, path in (package | beside).items() if path.is_file() and "__pycache__" not in name}


def test_the_wheel_holds_what_the_clone_holds_and_no_more(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    expected = shipped()
    assert set(content) == set(expected)
    assert {name for name in content if content[name] != expected[name].read_bytes()} == set()
    assert {"lth_scale/py.typed", "lth_scale/configs/digits_lenet.yaml"} <= set(content)
    assert [name for name in content if name.startswith("lth_scale/report/") and name.endswith(".j2")]


def test_the_clone_is_out_of_sight(installed: Installed) -> None:
    place = installed.run(sys.executable, "-c", "import lth_scale; print(lth_scale.__file__)").strip()
    assert Path(place) == installed.target / "lth_scale" / "__init__.py"


def test_shipped_configs_are_listed(installed: Installed) -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for command in ([sys.executable, "-m", "lth_scale"], [installed.target / "bin" / "lth"]):
        listed = installed.run(*command, "list", "configs")
        assert {word for word in listed.split() if word in names} == names


def test_a_shipped_config_plans_by_its_bare_name(installed: Installed) -> None:
    plan = installed.run(sys.executable, "-m", "lth_scale", "run", "digits_lenet", "--plan")
    assert "fc1.weight" in plan


def test_a_folder_that_does_not_ship_is_named() -> None:
    assert resources.folder("configs") == ROOT / "configs"
    with pytest.raises(FileNotFoundError, match="nowhere/ is neither"):
        resources.folder("nowhere")
