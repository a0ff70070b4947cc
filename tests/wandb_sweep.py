"""A sweep at the imitation of W&B's service: it gives out points, each once, as agents ask for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from wandb_service import Service, service

Point = Mapping[str, Any]
SWEEP = "team/lth_scale/sweep1"


@dataclass
class Sweep:
    """A service with a sweep.

    Args:
        service: to which agents and runs talk.
        points: run id -> its point.
        given: agent -> the run ids that it was given.
    """

    service: Service
    points: dict[str, Point]
    given: dict[str, list[str]] = field(default_factory=dict)


@contextmanager
def sweeping(command: Sequence[str], points: Sequence[Point]) -> Iterator[Sweep]:
    """A sweep whose runs are called point0, point1 and so on."""
    with service() as made:
        sweep = Sweep(made, {f"point{number}": point for number, point in enumerate(points)})
        waiting, numbers, plain = iter(list(sweep.points)), itertools.count(), made.query

        def query(name: str, told: dict[str, Any]) -> dict[str, Any]:
            if name == "SweepWithRuns":
                config = yaml.safe_dump({"command": list(command)})
                return {"project": {"sweep": {"id": "s", "name": "sweep1", "config": config, "runs": {"edges": []}}}}
            if name == "CreateAgent":
                agent = f"agent{next(numbers)}"
                sweep.given[agent] = []
                return {"createAgent": {"agent": {"id": agent}}}
            if name == "Heartbeat":
                answer = {"agent": {"id": told["id"]}, "commands": json.dumps(commands(told["id"]))}
                return {"agentHeartbeat": answer}
            return plain(name, told)

        def commands(agent: str) -> list[dict[str, Any]]:
            if sweep.given[agent] or (run := next(waiting, None)) is None:
                return [] if sweep.given[agent] else [{"type": "exit"}]
            sweep.given[agent].append(run)
            fields = {key: {"value": value} for key, value in sweep.points[run].items()}
            return [{"type": "run", "run_id": run, "program": "lth", "args": fields}]

        made.query = query  # type: ignore[method-assign]
        yield sweep
