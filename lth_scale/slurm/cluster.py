"""What a site wants of every job: a YAML file, checked, and the sbatch options and shell lines made of it."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lth_scale.config import Hardware
from lth_scale.errors import UserError, unknown
from lth_scale.resources import folder


@dataclass(frozen=True)
class Cluster:
    """One cluster as one project uses it. What is unset is left to Slurm's own defaults.

    Args:
        partition: --partition.
        account: --account.
        qos: --qos.
        constraint: --constraint.
        time: --time of a round's job, such as "24:00:00"; a round that takes longer takes several.
        lead: seconds before the time limit at which training saves and the job is queued again.
        nodes: overrides hardware.nodes of the config.
        devices: overrides hardware.devices, per node.
        gpus: how GPUs are asked for, one a device: none, gres, or gpus-per-node.
        gpu_type: such as a100.
        cpus: per device, for the loaders of data too.
        memory: per node, such as 64G.
        scratch: folder on every node's own disk, such as $TMPDIR/lth: shards are copied there before they are read, and
            checkpoints go through it.
        stagger: seconds by which an array's elements start one after the other, up to 30 of them.
        modules: loaded in every job.
        prolog: shell lines for every job, run as they stand.
        command: words before the Python of lth, such as a container's.
        python: the interpreter that has lth_scale; unset, the one that submits.
        options: further options of sbatch for rounds, as they stand.
        report_partition: where the report and other small jobs run; unset, as rounds.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    lead: int = 120
    nodes: int | None = None
    devices: int | None = None
    gpus: str = "none"
    gpu_type: str | None = None
    cpus: int = 1
    memory: str | None = None
    scratch: str | None = None
    stagger: int = 1
    modules: list[str] = dataclasses.field(default_factory=list)
    prolog: str = ""
    command: list[str] = dataclasses.field(default_factory=list)
    python: str | None = None
    options: list[str] = dataclasses.field(default_factory=list)
    report_partition: str | None = None

    def hardware(self) -> list[str]:
        """The fields of the config that it sets, as words of a command line."""
        given: dict[str, Any] = {"hardware.nodes": self.nodes, "hardware.devices": self.devices}
        if self.scratch:
            given |= {"hardware.scratch": self.scratch, "data.cache": f"{self.scratch}/shards", "data.stage": "true"}
        return [f"--{key}={value}" for key, value in given.items() if value is not None]

    def small(self) -> list[str]:
        """sbatch's options for jobs that train nothing."""
        partition = self.report_partition or self.partition
        return _options(partition=partition, account=self.account, qos=self.qos, nodes=1, ntasks=1)

    def round(self, hardware: Hardware) -> list[str]:
        """sbatch's options for jobs that train."""
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        asked = {
            "gres": {"gres": f"gpu:{kind}{hardware.devices}"},
            "gpus-per-node": {self.gpus: f"{kind}{hardware.devices}"},
        }
        return [
            *_options(partition=self.partition, account=self.account, qos=self.qos, constraint=self.constraint),
            *_options(time=self.time, nodes=hardware.nodes),
            *_options(**{"ntasks-per-node": hardware.devices, "cpus-per-task": self.cpus, "mem": self.memory}),
            *_options(**asked.get(self.gpus, {})),
            *_options(signal=f"USR1@{self.lead}" if self.time else None),
            *self.options,
        ]

    def text(self) -> str:
        """As YAML again."""
        return str(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    def site(self, threads: int, folder: Path) -> str:
        """What every job sources first: modules, prolog, the folder to be in, and ``lth`` as an array of words."""
        lth = [*self.command, self.python or sys.executable, "-m", "lth_scale"]
        return "\n".join(
            [
                "# shellcheck shell=bash disable=SC2034",
                "# Written by lth submit from the cluster file, and anew by every submission.",
                *(f"module load {shlex.quote(name)}" for name in self.modules),
                *([self.prolog.rstrip("\n")] if self.prolog else []),
                f"cd -- {shlex.quote(str(folder))} || exit 2",
                f"export OMP_NUM_THREADS={threads}",
                f"stagger={self.stagger}",
                f"lth=({shlex.join(lth)})",
                "",
            ]
        )


def _options(**values: Any) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


def find(name: str) -> Path:
    """A cluster file's path, or the shipped one of that bare name. Raises UserError naming the shipped ones."""
    shipped = folder("configs") / "cluster"
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"--cluster={name!r} does not exist")
        return Path(name)
    if not (shipped / f"{name}.yaml").is_file():
        raise unknown("--cluster", name, [path.stem for path in shipped.glob("*.yaml")])
    return shipped / f"{name}.yaml"


def load(path: Path) -> Cluster:
    """Read a cluster file. Raises UserError naming the key that is wrong."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no cluster: it must be a YAML mapping with keys such as partition and time")
    fields = {entry.name: str(entry.type) for entry in dataclasses.fields(Cluster)}
    for key, value in tree.items():
        if key not in fields:
            raise unknown(f"key of {path}", key, fields)
        _check(f"{path}: {key}", value, fields[key])
    made = Cluster(**tree)
    if made.gpus not in ("none", "gres", "gpus-per-node"):
        raise unknown(f"{path}: gpus", made.gpus, ["none", "gres", "gpus-per-node"])
    for key, least in {"lead": 1, "cpus": 1, "nodes": 1, "devices": 1, "stagger": 0}.items():
        if (number := getattr(made, key)) is not None and number < least:
            raise UserError(f"{path}: {key}={number} is not valid; it must be {least} or more")
    return made


def _check(key: str, value: Any, kind: str) -> None:
    words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {"str": isinstance(value, str), "int": whole, "list[str]": words, "None": value is None}
    if not any(fits[part] for part in kind.split(" | ")):
        valid = {"str": "text (in quotes, where it looks like a number or a time)", "int": "a whole number"}
        raise UserError(f"{key}={value!r} is not valid; it must be {valid.get(kind.split(' ')[0], 'a list of words')}")
    if any("\0" in text or text.startswith("\n") for text in ([value] if isinstance(value, str) else [])):
        raise UserError(f"{key}={value!r} is not valid; it begins with a new line or holds a zero byte")
