"""What the interactive part of the page knows: every measured round and the verdicts, as compact JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from lth_scale.report.figures import LABELS
from lth_scale.report.heatmap import panels
from lth_scale.report.links import Links
from lth_scale.report.numbers import MARKS
from lth_scale.report.reading import Result, RunResults, family
from lth_scale.report.study import Study
from lth_scale.report.style import LOOKS, VARIABLES, run_look
from lth_scale.report.table import accuracies, moments_of
from lth_scale.report.transfer import ROLES, matrix, target
from lth_scale.report.verdict import DIGITS

STYLE = "web/page.css"
SCRIPT = [f"web/{part}.js" for part in ("base", "axes", "chart", "tables", "heat", "page")]  # one script, in this order
# Figures of the page that give way to it where scripts run.
REPLACED = frozenset(
    {"accuracy", *(f"accuracy_{moment}" for moment in LABELS), "difference", "early_stop", "layer_density"}
    | {"transfer", "comparison"}
)
BOUNDS = ("", "_low", "_high")


def payload(studies: Sequence[Study]) -> Markup:
    """The data of the page's script, safe inside a script element. Accuracies in [0, 1] as in results.csv."""
    arms = list(dict.fromkeys(arm for one in studies for arm in one.run.arms))
    moments = list(dict.fromkeys(moment for one in studies for moment in one.run.moments))
    found = {
        "moments": {moment: LABELS[moment] for moment in moments},
        "arms": {arm: _arm(arm, i, studies) for i, arm in enumerate(arms)},
        "runs": [_run(one, i, moments) for i, one in enumerate(studies)],
        "marks": {verdict: mark for verdict, (mark, _) in MARKS.items()},
        "transfer": _transfer([one.run for one in studies]),
    }
    text = json.dumps(_plain(found), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _plain(value: Any) -> Any:
    """NaN, which JSON has not, as null."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if value != value else value


def _look(color: str, marker: str, dash: Any) -> dict[str, Any]:
    shown = f"var({VARIABLES[color]})" if color in VARIABLES else color
    return {"color": shown, "marker": marker, "dash": [] if isinstance(dash, str) else list(dash[1])}


def _arm(arm: str, position: int, studies: Sequence[Study]) -> dict[str, Any]:
    """Its look, and whether it is shown before anything is chosen."""
    return _look(*(LOOKS.get(arm) or run_look(position))) | {"on": any(arm in one.run.local for one in studies)}


def _run(one: Study, position: int, moments: Sequence[str]) -> dict[str, Any]:
    run, links = one.run, Links.of(one.run)
    tensors = run.results[0]["tensors"] if run.results else {}
    return {
        "name": run.name,
        "data": target(run.config),
        "tolerance": run.config.report.tolerance,
        "look": _look(*run_look(position)),
        "dense": run.dense,
        "group": links.group(),
        "layers": {name: counts["numel"] for name, counts in tensors.items()},
        "points": _points(run, links, moments, tensors),
        "verdicts": _verdicts(pd.concat([one.rows, one.foreign]), moments),
    }


def _points(run: RunResults, links: Links, moments: Sequence[str], layers: Iterable[str]) -> list[dict[str, Any]]:
    """One per result: test accuracy in [0, 1] and difference to dense in points by moment, weights kept by layer."""
    dense = {moment: accuracies(run, *run.dense, moment) for moment in moments}
    return [
        _point(r, dense)
        | {"kept": [r["tensors"].get(name, {}).get("kept") for name in layers]}
        | {"link": links.round(r["seed"], r["arm"], r["round"])}
        for r in run.results
    ]


def _point(r: Result, dense: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    found, stop = moments_of(r), r.get("early_stop") or {}
    accuracy = {moment: (found.get(moment, {}).get("test") or {}).get("accuracy") for moment in dense}
    gap = {
        moment: round(100 * value - dense[moment][r["seed"]], DIGITS)
        for moment, value in accuracy.items()
        if value is not None and r["seed"] in dense[moment]
    }
    return {
        "seed": r["seed"],
        "arm": family(r["arm"]),
        "folder": r["arm"],
        "round": r["round"],
        "density": r["density"],
        "accuracy": [accuracy[moment] for moment in dense],
        "difference": [gap.get(moment) for moment in dense],
        "stop": stop.get("step") if not r.get("thirds") else None,
        "reached": stop.get("reached", True),
    }


def _verdicts(rows: pd.DataFrame, moments: Sequence[str]) -> dict[str, Any]:
    """``ARM/ROUND`` -> for each moment: difference over all replicates, its interval, the verdict."""
    prefixes = ["" if moment == "end" else f"{moment}_" for moment in moments]
    return {
        f"{row['arm']}/{row['round']}": [
            [*(row.get(f"{prefix}difference{end}") for end in BOUNDS), row.get(f"{prefix}verdict")]
            for prefix in prefixes
        ]
        for _, row in rows.iterrows()
    }


def _transfer(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """The cells of all panels of the heat map; those of a density share its ``density``."""
    frame = matrix(runs)
    places = {key: part for key, part in frame.groupby(["run", "source", "round"], sort=False)}
    named = {run.name: i for i, run in enumerate(runs)}
    return [
        {
            "density": density,
            "source": source,
            "target": to,
            "run": named[row["run"]],
            **row[["arm", "layers", "round"]],
            "roles": _roles(places[row["run"], row["source"], row["round"]]),
        }
        for density, shown in panels(frame)
        for (source, to), row in shown.items()
    ]


def _roles(rows: pd.DataFrame) -> dict[str, Any]:
    """Role -> what it is called, n, accuracy in percent and difference to dense with their intervals, the verdict."""
    return {
        row["arm"]: {
            "label": ROLES[row["arm"]],
            "n": row["n"],
            "accuracy": [row[f"test_accuracy{end}"] for end in BOUNDS],
            "difference": [row[f"difference{end}"] for end in BOUNDS],
            "verdict": row["verdict"],
        }
        for _, row in rows.iterrows()
    }
