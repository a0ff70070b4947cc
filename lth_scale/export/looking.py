"""``lth ticket show`` and ``lth ticket diff``."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from lth_scale import tickets
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.tickets import Overlap, Ticket, find
from lth_scale.tickets.units import matched_jaccards
from lth_scale.words import console, following, parser

LEGEND = {
    "jaccard": "Jaccard: kept by both / kept by either; chance: the same of uniform random masks of these densities",
    "matched": "matched: with B's hidden units in A's order; chance: the same of random masks, matched too",
    "signs": "signs: of the weights kept by both, the share whose signs are equal",
}


def show(words: list[str]) -> int:
    """What a ticket holds, read anew and checked."""
    made = parser("ticket show", "place")
    made.add_argument("--json", action="store_true")
    flags = made.parse_args(words)
    if not flags.place:
        raise UserError("ticket show needs a ticket: lth ticket show FILE, or RUN[:seed=N,round=N]")
    told = described(find(flags.place))
    if flags.json:
        print(json.dumps(told, indent=1))
        return 0
    console().print(_shown(flags.place, told))
    for line in _lines(told):
        print(line)
    return following(f"lth ticket diff {flags.place} OTHER")


def described(ticket: Ticket) -> dict[str, Any]:
    """A ticket as plain values; making them reads and hashes all of it."""
    counts = ticket.mask.counts()
    layers = {
        name: {
            "shape": list(shape),
            "kept": counts[name][0],
            "numel": counts[name][1],
            "density": _share(*counts[name]),
        }
        for name, shape in ticket.mask.shapes.items()
    }
    mask = ticket.mask
    return {
        "layers": layers,
        "overall": {"kept": mask.kept, "numel": mask.numel, "density": mask.density},
        "provenance": dict(ticket.provenance),
        "config": ticket.sections,
        "checksums": ticket.checksums,
    }


def _share(kept: int, numel: int) -> float:
    return kept / numel if numel else 1.0


def _shown(place: str, told: dict[str, Any]) -> Table:
    table = Table(title=place, title_justify="left")
    for column in ("tensor", "shape", "kept", "of", "density %"):
        table.add_column(column, justify="left" if column == "tensor" else "right")
    for name, layer in told["layers"].items():
        shape = "x".join(map(str, layer["shape"]))
        table.add_row(name, shape, f"{layer['kept']:,}", f"{layer['numel']:,}", f"{100 * layer['density']:.2f}")
    table.add_section()
    every = told["overall"]
    table.add_row("all", "", f"{every['kept']:,}", f"{every['numel']:,}", f"{100 * every['density']:.2f}")
    return table


def _lines(told: dict[str, Any]) -> list[str]:
    about, config = told["provenance"], told["config"]
    parts = [f"{key} {about[key]}" for key in ("from", "run", "file", "seed", "round", "k") if key in about]
    lines = [", ".join(parts)] if parts else []
    if config:
        lines.append(f"data {config['data']['name']}, model {config['model']['name']}")
    accuracy = about.get("accuracy", {})
    if parts := [f"{name} {100 * value:.2f} %" for name, value in accuracy.items() if value is not None]:
        lines.append(f"test accuracy: {', '.join(parts)}")
    return [*lines, "checksums hold: " + ", ".join(f"{k} {digest[:12]}" for k, digest in told["checksums"].items())]


def diff(words: list[str]) -> int:
    """How alike two tickets are."""
    made = parser("ticket diff")
    made.add_argument("places", nargs="*")
    made.add_argument("--match-units", action="store_true")
    made.add_argument("--json", action="store_true")
    flags = made.parse_args(words)
    if len(flags.places) != 2:
        raise UserError("ticket diff needs two tickets, each a FILE or a RUN[:seed=N,round=N]: lth ticket diff A B")
    one, other = (find(place, end=True) for place in flags.places)
    told = compared(one, other, flags.match_units)
    if flags.json:
        print(json.dumps({"places": flags.places, **told}, indent=1))
        return 0
    console().print(_beside(flags.places, told))
    shown = {"jaccard", *told, *(key.partition("_")[0] for key in told["overall"])}
    print(*(line for key, line in LEGEND.items() if key in shown), sep="\n")
    return following(f"lth ticket show {flags.places[0]}")


def compared(one: Ticket, other: Ticket, match_units: bool = False) -> dict[str, Any]:
    """Two tickets as plain values: for each tensor, and over all."""
    found = tickets.compare(one.mask, other.mask)
    rows = {name: _row(overlap) for name, overlap in found.items()}
    every = _row(Overlap.total(found.values()))
    for part in [part for part in one.states if part in other.states]:
        agree = {
            name: tickets.signs(name, (one.mask, one.states[part]), (other.mask, other.states[part])) for name in rows
        }
        for name, row in rows.items():
            row[f"signs_{part}"] = agree[name] / row["common"] if row["common"] else None
        every[f"signs_{part}"] = sum(agree.values()) / every["common"] if every["common"] else None
    told: dict[str, Any] = {"layers": rows, "overall": every}
    return told | ({"matched": _matched(one.mask, other.mask)} if match_units else {})


def _row(overlap: Overlap) -> dict[str, Any]:
    return {
        "numel": overlap.numel,
        "kept": list(overlap.kept),
        "common": overlap.common,
        "expected": overlap.expected,
        "jaccard": overlap.jaccard,
        "chance": overlap.chance,
    }


def _beside(places: list[str], told: dict[str, Any]) -> Table:
    rows, matched = {**told["layers"], "all": told["overall"]}, told.get("matched", {})
    parts = [key for key in told["overall"] if key.startswith("signs_")]
    table = Table(title=f"A {places[0]}\nB {places[1]}", title_justify="left")
    columns = ["kept A", "kept B", "both", "Jaccard", "chance", *(["matched", "chance"] if matched else []), *parts]
    table.add_column("tensor")
    for column in columns:
        table.add_column(column.replace("signs_", "signs of "), justify="right")
    for name, row in rows.items():
        if name == "all":
            table.add_section()
        values = [row["jaccard"], row["chance"], *matched.get(name, {}).values(), *(row[part] for part in parts)]
        counts = [f"{count:,}" for count in (*row["kept"], row["common"])]
        table.add_row(name, *counts, *("-" if value is None else f"{value:.4f}" for value in values))
    return table


def _matched(one: Mask, other: Mask) -> dict[str, Any]:
    found = matched_jaccards(one, other)
    return {name: {"jaccard": jaccard, "chance": chance} for name, (jaccard, chance) in found.items()}
