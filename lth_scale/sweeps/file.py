"""W&B's sweep YAML: what is started, with which fields, and the points of its grid or its draws."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import yaml

from lth_scale import streams
from lth_scale.errors import UserError, require, unknown
from lth_scale.resources import folder
from lth_scale.sweeps.drawing import Parameter, read

METHODS = ("grid", "random")
SERVICE = ("project", "entity", "name", "description", "metric", "early_terminate", "scheduler")
"""Entries that only W&B's service has a use for."""
ENTRIES = ("method", "parameters", "command", "program", "run_cap", *SERVICE)
ARGS = ("${args}", "${args_no_boolean_flags}", "${args_no_equals}", "${args_json}")

Point = dict[str, Any]
"""``section.field`` -> value."""


@dataclass(frozen=True)
class Sweep:
    """A file that has been read.

    Args:
        before, after: the words of ``lth run`` on both sides of a point's own.
        run_cap: at most so many points; None: all of a grid.
        ignored: entries of the file that mean nothing here.
    """

    method: str
    parameters: list[Parameter]
    before: list[str]
    after: list[str]
    run_cap: int | None
    ignored: list[str]

    def points(self, seed: int) -> list[Point]:
        """Those of the grid, the last parameter fastest; or ``run_cap`` draws.

        A draw depends on ``seed``, its number and the parameter's key only: a larger ``run_cap`` adds points, and
        changes none.
        """
        if self.method == "grid":
            values = product(*(parameter.every() for parameter in self.parameters))
            keys = [parameter.key for parameter in self.parameters]
            return [dict(zip(keys, point, strict=True)) for point in islice(values, self.run_cap)]
        return [
            {each.key: each.at(streams.uniforms(1, seed, "sweep", each.key, draw)[0]) for each in self.parameters}
            for draw in range(self.run_cap or 0)
        ]


def words(point: Point) -> list[str]:
    """A point as W&B's agents write it for ``${args}``: ``--key=value`` with Python's spelling of the value."""
    return [f"--{key}={value}" for key, value in point.items()]


def find(name: str) -> Path:
    """A sweep file's path, or the shipped one of that bare name. Raises UserError naming the shipped ones."""
    shipped = folder("configs") / "sweeps"
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"sweep: {name!r} does not exist")
        return Path(name)
    if not (shipped / f"{name}.yaml").is_file():
        raise unknown("sweep", name, [path.stem for path in shipped.glob("*.yaml")])
    return shipped / f"{name}.yaml"


def load(path: Path) -> Sweep:
    """Read a sweep file. Raises UserError naming the file, the entry and what would be valid."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    try:
        return _sweep(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sweep(tree: Any) -> Sweep:
    if not isinstance(tree, dict):
        raise UserError("it holds no sweep: it must be a YAML mapping with method, parameters and command")
    for entry in tree:
        if entry not in ENTRIES:
            raise unknown("entry", entry, ENTRIES)
    method, cap = tree.get("method"), tree.get("run_cap")
    if method == "bayes":
        raise UserError("method='bayes' needs W&B's service to suggest points: run it by `wandb agent`")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    require(cap is None or (type(cap) is int and cap > 0), "run_cap", cap, "a whole number, 1 or more")
    require(method != "random" or cap is not None, "run_cap", cap, "the number of draws with method=random")
    parameters = list(_parameters(tree.get("parameters")))
    before, after = _command(tree)
    return Sweep(method, parameters, before, after, cap, [entry for entry in tree if entry in SERVICE])


def _parameters(tree: Any, prefix: str = "") -> Iterator[Parameter]:
    if not isinstance(tree, Mapping) or not tree:
        name = f"{prefix}parameters" if prefix else "parameters"
        raise UserError(f"{name}={tree!r} is not valid; it must be a mapping from fields to what is swept")
    for key, told in tree.items():
        if not isinstance(told, Mapping):
            raise UserError(f"parameters.{prefix}{key}={told!r} is not valid; write {{value: {told!r}}}")
        if "parameters" in told:
            yield from _parameters(told["parameters"], f"{prefix}{key}.")
        else:
            yield read(f"{prefix}{key}", told)


def _command(tree: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The words of ``lth run`` before and after those of a point; what stands before ``lth run`` is for agents."""
    command = tree.get("command")
    shape = "[${env}, lth, run, CONFIG, ${args}]"
    if not isinstance(command, list):
        raise UserError(f"command={command!r} is not valid; it must be a list such as {shape}")
    told = [_filled(str(word), str(tree.get("program", ""))) for word in command]
    starts = [n for n, word in enumerate(told) if word == "run" and Path(told[n - 1]).name in ("lth", "lth_scale")]
    if not starts:
        raise UserError(f"command={command!r} does not start this program; it must be such as {shape}")
    rest = told[starts[0] + 1 :]
    places = [number for number, word in enumerate(rest) if word in ARGS]
    macros = [word for word in rest if word.startswith("${") and word not in ARGS]
    if len(places) != 1 or macros:
        raise UserError(f"command={command!r} is not valid; behind `lth run` it must have one of {', '.join(ARGS)}")
    return rest[: places[0]], rest[places[0] + 1 :]


def _filled(word: str, program: str) -> str:
    """As W&B's agents fill in the program and variables of the environment, which stand for their names if not set."""
    return re.sub(
        r"\$\{envvar:([A-Z0-9_]*)\}",
        lambda found: os.environ.get(found[1], found[1]),
        program if word == "${program}" else word,
    )
