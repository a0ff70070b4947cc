"""The shape of the code: who may import whom, how long things are, what is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "lth_scale").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = [contract["name"] for contract in PROJECT["tool"]["importlinter"]["contracts"]]

# One line that breaks each contract.
VIOLATIONS = {
    "Imports go downward": ("masks.py", "import lth_scale.arms"),
    "Only training knows Lightning": ("pruning/__init__.py", "import pytorch_lightning"),
    "Only tracking knows W&B": ("files.py", "import wandb"),
    "Only the command line parses": ("claims.py", "import jsonargparse"),
    "Pruning is pure: no data, no models": ("pruning/__init__.py", "import lth_scale.models"),
    "Reading results needs no training code": ("report/__init__.py", "import lth_scale.training"),
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def verdicts(output: str) -> dict[str, str]:
    return dict(re.findall(rf"^({'|'.join(map(re.escape, CONTRACTS))}) (KEPT|BROKEN)", output, re.MULTILINE))


def test_imports_go_downward() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done.stdout) == dict.fromkeys(CONTRACTS, "KEPT")


def test_each_import_rule_catches_a_violation(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "lth_scale", tmp_path / "lth_scale", ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in VIOLATIONS.values():
        with (tmp_path / "lth_scale" / file).open("a") as stream:
            stream.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert verdicts(done.stdout) == dict.fromkeys(CONTRACTS, "BROKEN")
    assert set(VIOLATIONS) == set(CONTRACTS)


TRAINING = {"pytorch_lightning", "lightning", "torchvision", "wandb"}
READING = ("report", "experiment", "launch", "tracking.summarising", "tracking.telling")


def loaded(module: str) -> set[str]:
    """What a new process has imported when it has imported a module of the package."""
    code = f"import sys, lth_scale.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("module", READING)
def test_reading_and_launching_load_no_lightning(module: str) -> None:
    assert loaded(module) & TRAINING == set()


@pytest.mark.slow
def test_training_does() -> None:
    """The control."""
    assert loaded("training") & TRAINING >= {"pytorch_lightning", "torchvision"}


@pytest.mark.parametrize("module", ["following", "linking", "resending", "bringing"])
def test_a_process_that_speaks_to_the_service_begins_with_next_to_nothing(module: str) -> None:
    """One is started for every round, beside training. The client is imported where it is used."""
    assert loaded(f"tracking.{module}") & {*TRAINING, "torch", "numpy", "pandas", "yaml"} == set()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(where, lines without decorators and docstring) of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", lines


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length >= 300} == {}


def test_functions_are_short() -> None:
    lengths = dict(pair for path in SOURCES for pair in functions(path))
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median(lengths.values()) < 10


SHARED = {"nvidia"}
"""Top-level names under which several distributions lie; what is imported from one decides whose it is."""


def imported() -> set[str]:
    """Names that the package imports from outside itself and the standard library; of SHARED ones with what follows."""
    names: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module in SHARED:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"lth_scale"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9_.-]", name)[0]).lower()


def declared() -> set[str]:
    return {normal(line) for line in PROJECT["project"]["dependencies"]}


def holds(distribution: str, folder: str) -> bool:
    return any(str(file).startswith(folder) for file in importlib.metadata.files(distribution) or ())


def test_dependencies_are_those_imported() -> None:
    owners = importlib.metadata.packages_distributions()
    for part in (name for name in imported() if name.split(".")[0] in SHARED):
        folder = part.replace(".", "/") + "/"
        owners = {**owners, part: [one for one in owners[part.split(".")[0]] if holds(one, folder)]}
    used = {normal(owner) for name in imported() for owner in owners.get(name, [name])}
    optional = {"lightning", "onnxruntime"}  # supported where they are installed; the second in an extra of ours
    assert used - optional == declared()


def test_every_dependency_is_justified() -> None:
    lines = (ROOT / "docs" / "decisions.md").read_text().splitlines()
    justified = {normal(line.removeprefix("- `")) for line in lines if line.startswith("- `")}
    assert declared() <= justified


def texts() -> Iterator[tuple[str, str]]:
    """(name, text) of the files that a clone holds."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            yield name, path.read_text(errors="ignore")


def test_no_path_of_one_machine_is_left() -> None:
    homes = re.compile(r"(?<![\w.])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"]) + r")/")
    found = {name: match.group() for name, text in texts() if (match := homes.search(text))}
    assert found == {}
