"""Config <-> YAML: reading, layering, writing, naming a run, and refusing a change of what its results depend on."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lth_scale import files
from lth_scale.config import Config
from lth_scale.errors import UserError, unknown
from lth_scale.resources import folder

SCHEMA = 1  # goes up when a default changes, so that an old folder never passes for a new one

FREE = (
    *("run.", "reinit.", "report.", "hardware.", "tracking."),
    *("data.dir", "data.workers", "data.cache", "data.cache_gb", "data.stage"),
    *("transfer.sources", "transfer.rounds"),
    *("connectivity.children", "connectivity.rounds", "connectivity.next", "connectivity.origin"),
    *("rewind.candidates", "rewind.auto"),
    *("prune.rounds", "prune.to", "train.micro_batch", "train.checkpoint_every"),
)
"""Fields that do not change a result already there; ``hardware.precision`` does."""


KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [a, b]",
    "NoneType": "None",
}


def parser() -> ArgumentParser:
    """A parser of ``--config`` files and ``--section.key=value`` for every field."""
    made = ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    made.add_argument("--config", action="config")
    for section in dataclasses.fields(Config):
        made.add_argument(
            f"--{section.name}", type=type(getattr(Config(), section.name)), default=getattr(Config(), section.name)
        )
    return made


def parse(arguments: Sequence[str]) -> Config:
    """Command-line words -> Config. Files are layered in order; single fields win over every file, wherever they stand.

    Raises UserError naming the key, the value and the choices.
    """
    pairs = _pairs(arguments)
    configs = [word for pair in pairs if pair[0] == "--config" for word in (pair[0], str(resolve(pair[1])))]
    fields = [f"{key}={_yaml(value)}" for key, value in pairs if key != "--config"]
    _check_keys([key[2:] for key, _ in pairs if key != "--config"])
    for path in configs[1::2]:
        _check_keys(list(_leaves(_read(Path(path)))))
    made = parser()
    try:
        return Config(**_sections(made.instantiate(made.parse_args([*configs, *fields]))))
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(_one_line(str(error))) from None


def _sections(namespace: Any) -> dict[str, Any]:
    return {section.name: namespace[section.name] for section in dataclasses.fields(Config)}


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--"):
            pairs += _mapping("", word) if word.startswith("{") else [("--config", word)]
            continue
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else _switched_on(key)
        pairs += _mapping(f"{key[2:]}.", value) if value.startswith("{") else [(key, value)]
    return pairs


def _switched_on(key: str) -> str:
    if isinstance(fields_of(Config()).get(key[2:]), bool):
        return "true"
    raise UserError(f"{key} has no value; write {key}=VALUE")


def _mapping(prefix: str, text: str) -> list[tuple[str, str]]:
    """A section's fields in one word, as W&B's agents write nested keys: Python's spelling, or JSON."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{prefix.rstrip('.') or 'fields'}={text!r} cannot be read as a mapping") from None
    spelt = ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in _items(tree, prefix))
    return [(f"--{key}", value) for key, value in spelt]


def _yaml(value: str) -> str:
    """Python's spelling of a value -> YAML's."""
    if value.startswith("(") and value.endswith(")"):
        value = f"[{value[1:-1].rstrip().rstrip(',')}]"
    return {"None": "null", "True": "true", "False": "false"}.get(value, value)


def _check_keys(keys: Sequence[str]) -> None:
    valid = list(_leaves(as_dict(Config())))
    for key in keys:
        inside = [name for name in valid if name.startswith(f"{key}.")]
        if inside:
            raise UserError(f"{key} is a section, not a field; it holds: {', '.join(inside)}")
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1)
            section = [name for name in valid if name.startswith(key.partition(".")[0] + ".")] or valid
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{key} is not a config field{hint}; choose from: {', '.join(section)}")


def _leaves(tree: Any) -> Iterator[str]:
    return (key for key, _ in _items(tree))


def _items(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _one_line(text: str) -> str:
    """jsonargparse explains over several lines, in Python's words; one line in ours must do."""
    joined = " ".join(line.strip() for line in text.splitlines() if line.strip())
    key, value = re.search(r'Parser key "([^"]+)":', joined), re.search(r".*(?:Got|Given) value: (.*)$", joined)
    choices = re.search(r"Literal\[(.*?)\]", joined)
    kinds = [KINDS[kind] for kind in re.findall(r"Expected a <class '(\w+)'>", joined) if kind in KINDS]
    if key and value and choices:
        return str(unknown(key[1], value[1], re.findall(r"'(.*?)'", choices[1])))
    if key and value and kinds:
        return f"{key[1]}={value[1]!r} is not valid; it must be {' or '.join(kinds)}"
    return joined[:600]


def run_folder(arguments: Sequence[str], config: Config) -> Path:
    """Where a run goes whose words name no folder: ``runs/NAME-HASH``, after its first config file."""
    named = [value for key, value in _pairs(arguments) if key == "--config"]
    return Path("runs") / f"{Path(named[0]).stem if named else 'run'}-{digest(config)}"


def resolve(name: str) -> Path:
    """A config file's path, or the shipped config of that bare name. Raises UserError naming the shipped ones."""
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"--config={name!r} does not exist")
        return Path(name)
    shipped = folder("configs") / f"{name}.yaml"
    if not shipped.is_file():
        raise UserError(
            f"--config={name!r} is not a file, nor a shipped config; choose from: {', '.join(shipped_configs())}"
        )
    return shipped


def shipped_configs() -> list[str]:
    """Bare names of the configs that come with the package."""
    return sorted(path.stem for path in folder("configs").glob("*.yaml"))


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {_one_line(str(error))}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no config: it must be a YAML mapping with sections such as data, model, train")
    return tree


def load(path: Path) -> Config:
    """Read a whole config from a YAML file; raises UserError naming the file, or the key that is wrong in it."""
    if not path.exists():
        raise UserError(f"{path} does not exist: not a run folder?")
    try:
        return parse(["--config", str(path)])
    except UserError as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or remove it and run the same command again"
        ) from None


def read_text(text: str, where: object) -> Config:
    """A whole config from YAML that lies in another file; raises UserError naming that file, or the key."""
    try:
        tree = yaml.safe_load(text)
        if not isinstance(tree, dict):
            raise UserError("it holds no config")
        _check_keys(list(_leaves(tree)))
        made = parser()
        return Config(**_sections(made.instantiate(made.parse_object(tree))))
    except (ArgumentError, ValueError, TypeError, yaml.YAMLError, UserError) as error:
        raise UserError(f"{where}: its config cannot be used ({_one_line(str(error))})") from None


def as_dict(config: Any) -> dict[str, Any]:
    """Plain values, tuples as lists."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def dump(config: Config) -> str:
    """The whole config as YAML."""
    return str(yaml.safe_dump(as_dict(config), sort_keys=False))


def fields_of(config: Config) -> dict[str, Any]:
    """``section.key`` -> value, all fields."""
    return dict(_items(as_dict(config)))


def binding(config: Config) -> dict[str, Any]:
    """The fields that change results; where prune.to is to be reached in prune.rounds rounds, these two as well."""
    fields = fields_of(config)
    also = {"hardware.precision"} | ({"prune.rounds", "prune.to"} if config.prune.schedule == "target" else set())
    return {key: value for key, value in fields.items() if key in also or not key.startswith(FREE)}


def digest(config: Config) -> str:
    """Eight hex digits over the result-changing fields that differ from their default; part of the folder's name."""
    standard = fields_of(Config())
    changed = {key: value for key, value in sorted(binding(config).items()) if value != standard[key]}
    text = json.dumps({"schema": SCHEMA, **changed}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def establish(path: Path, config: Config) -> None:
    """Write a run's config.yaml, or refuse one whose results differ from those already there, naming the fields."""
    if files.create_bytes(path, dump(config).encode()):
        return
    there = load(path)
    old, new = fields_of(there), binding(config)
    changed = [f"{key} ({old[key]!r} there, {new[key]!r} asked)" for key in new if old[key] != new[key]]
    if changed:
        raise UserError(f"{path.parent} holds results of another config: {', '.join(changed)}; choose another --out")
    if there != config:
        files.write_text(path, dump(config))


def template() -> str:
    """Every field with its default and its meaning, as commented YAML."""
    return "".join(
        _commented(section.name, getattr(Config(), section.name), "") for section in dataclasses.fields(Config)
    )


def _commented(name: str, section: Any, indent: str) -> str:
    lines = [f"{indent}{name}:"]
    notes = _notes(section)
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        if dataclasses.is_dataclass(value):
            lines.append(_commented(entry.name, value, indent + "  ").rstrip("\n"))
            continue
        text = yaml.safe_dump(json.loads(json.dumps(value)), default_flow_style=True).replace("\n...", "").strip()
        note = f"  # {notes[entry.name]}" if entry.name in notes else ""
        lines.append(f"{indent}  {entry.name}: {text}{note}")
    return "\n".join(lines) + "\n"


def _notes(section: Any) -> dict[str, str]:
    found = re.findall(r"^\s+(\w+): (.+)$", (section.__doc__ or "").replace("Args: ", "\n    "), re.MULTILINE)
    return dict(found)
