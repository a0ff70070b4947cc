"""Results in words: every sentence is made from the verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from lth_scale.ranges import spans
from lth_scale.report.reading import Key, RunResults, read_run
from lth_scale.report.table import summary
from lth_scale.report.transfer import matrix, sentence

ARM_NAMES = {
    "ticket": "tickets",
    "reinit": "reinitialised controls",
    "random": "random masks",
    "random_reinit": "random masks with new weights",
    "sign": "signs alone",
    "dense_from_k": "dense networks trained again from k",
    "own": "own tickets treated as carried ones",
}


def percent(density: float) -> str:
    """A density in running text: ``41 %``, ``3.6 %``, ``0.12 %``."""
    value = 100 * density
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.995 else f"{value:.2g} %"


def ranges(numbers: Iterable[int]) -> str:
    """``[3, 4, 5, 8]`` -> ``3-5, 8``."""
    return ", ".join(spans(numbers))


def rows_of(rows: pd.DataFrame, arm: str) -> pd.DataFrame:
    """An arm's pruned rounds, densest first."""
    mine = rows[(rows["arm"] == arm) & (rows["round"] > 0)]
    return mine.sort_values("density", ascending=False)


def stops_matching(mine: pd.DataFrame) -> float | None:
    """The largest density at which an arm is ``not matching``; None if it never is."""
    lost = mine[mine["verdict"] == "not matching"]
    return None if lost.empty else float(lost["density"].max())


def matches_down_to(mine: pd.DataFrame) -> pd.Series | None:
    """The sparsest ``matching`` row with no ``not matching`` one at a larger density; None if there is none."""
    limit = stops_matching(mine)
    good = mine[(mine["verdict"] == "matching") & (mine["density"] > (limit or 0.0))]
    return None if good.empty else good.iloc[-1]


def _ticket_clause(mine: pd.DataFrame, tolerance: float) -> str:
    best = matches_down_to(mine)
    n = int((mine["pairs"] if best is None else best[["pairs"]]).max())
    terms = f"(n = {n}, tolerance {tolerance:g} points)"
    if best is not None:
        open_rounds = int(((mine["verdict"] == "undecided") & (mine["density"] > best["density"])).sum())
        doubt = f", {open_rounds} denser round{'s' * (open_rounds > 1)} undecided" if open_rounds else ""
        return f"Tickets match the dense network down to {percent(best['density'])} of the weights {terms[:-1]}{doubt})"
    lost = stops_matching(mine)
    if lost is None:
        return f"Whether tickets match the dense network is undecided at every density {terms}"
    return f"Tickets are not shown to match the dense network at any density, and do not at {percent(lost)} {terms}"


def _control_clause(mine: pd.DataFrame) -> tuple[str, str]:
    """A verb and a density; controls of the same verb share it in the sentence."""
    lost, best = stops_matching(mine), matches_down_to(mine)
    if lost is not None:
        return "stop matching at", percent(lost)
    if best is not None:
        return "match down to", percent(best["density"])
    return "are undecided", ""


def _controls(run: RunResults, rows: pd.DataFrame) -> str:
    clauses, said = [], ""
    for arm in run.local:
        mine = rows_of(rows, arm)
        if arm in ("ticket", "dense_from_k") or not (mine["pairs"] >= 2).any():
            continue
        verb, density = _control_clause(mine)
        spoken = verb if verb != said or not density else verb.split()[-1]
        clauses.append(f"{ARM_NAMES.get(arm, f'{arm} controls')} {spoken} {density}".rstrip())
        said = verb
    return ", ".join(clauses)


def _no_verdict(rows: pd.DataFrame) -> str:
    """What one can say of a ticket that too few replicates were compared for."""
    last, dense = rows_of(rows, "ticket").iloc[-1], rows[(rows["arm"] == "ticket") & (rows["round"] == 0)]
    reached = f"at {percent(last['density'])} of the weights the ticket reaches {last['test_accuracy']:.2f} %"
    if dense.empty:
        return f"No verdict without dense rounds: {reached} test accuracy."
    trained = f"its dense network {dense['test_accuracy'].iloc[0]:.2f} %"
    return f"No verdict from one replicate: {reached} test accuracy, {trained}."


def headline_of(run: RunResults, rows: pd.DataFrame) -> str:
    """What the run's own tickets come to in one sentence, from the verdicts at the end of training."""
    tickets = rows_of(rows, "ticket")
    if rows.empty:
        return "No round is finished yet."
    if tickets.empty:
        dense = rows[(rows["arm"] == "ticket") & (rows["round"] == 0)]
        if dense.empty:
            return "No dense round is finished yet, so there is nothing to compare with."
        return f"Only the dense network is trained so far, to {dense['test_accuracy'].iloc[0]:.2f} % test accuracy."
    if not (tickets["pairs"] >= 2).any():
        return _no_verdict(rows)
    sentence = _ticket_clause(tickets, run.config.report.tolerance)
    controls = _controls(run, rows)
    return f"{sentence}; {controls}." if controls else f"{sentence}."


def headline(run: Path | RunResults) -> str:
    """The result of a run folder in one sentence made from its verdicts, and in one more on tickets carried over."""
    results = read_run(run)
    return " ".join(filter(None, [headline_of(results, summary(results)), early_bird(results), carried(results)]))


def early_bird(run: RunResults) -> str:
    """Where Early-Bird ended the dense rounds, and what that saved; empty without it."""
    rounds = [(r["early_bird"], r["clock"]["steps_per_epoch"]) for r in run.results if r.get("early_bird")]
    if not rounds:
        return ""
    epochs = [f"{end['step'] / per_epoch:g}" for end, per_epoch in rounds]
    saved = 1 - sum(end["step"] for end, _ in rounds) / sum(end["planned"] for end, _ in rounds)
    which = f"epoch {epochs[0]}" if len(set(epochs)) == 1 else f"epochs {', '.join(epochs)}"
    return f"Early-Bird ended the dense round at {which} and saved {saved:.0%} of its steps (n = {len(epochs)})."


def carried(run: RunResults) -> str:
    """How many tickets of other runs match here, and how they compare with their controls; empty without any."""
    return sentence(matrix([run]), run.config.report.tolerance)


def gains(run: RunResults, rows: pd.DataFrame) -> list[str]:
    """Ticket against each control at the sparsest density where the ticket still matches."""
    best = matches_down_to(rows_of(rows, "ticket"))
    if best is None:
        return []
    same = rows[(rows["round"] == best["round"]) & rows["ticket_verdict"].isin(["better", "worse", "undecided"])]
    same = same[same["arm"].isin(run.local)]
    return [_gain(row) for _, row in same.iterrows()]


def _gain(row: pd.Series) -> str:
    name = ARM_NAMES.get(row["arm"], f"{row['arm']} controls")
    bounds = f"[{row['ticket_minus_low']:+.2f}, {row['ticket_minus_high']:+.2f}]"
    numbers = f"{row['ticket_minus']:+.2f} points {bounds}, {row['ticket_verdict']} (n = {row['ticket_pairs']:.0f})"
    return f"At {percent(row['density'])}, tickets minus {name}: {numbers}."


def describe_keys(keys: Iterable[Key]) -> list[str]:
    """``seeds 0-4 random: rounds 3-7``: (seed, arm, round) triples, grouped by what they share."""
    rounds: dict[tuple[str, int], list[int]] = {}
    for seed, arm, number in keys:
        rounds.setdefault((arm, seed), []).append(number)
    seeds: dict[tuple[str, str], list[int]] = {}
    for (arm, seed), numbers in rounds.items():
        seeds.setdefault((arm, ranges(numbers)), []).append(seed)
    return [
        f"{arm}: round{'s' * (not spread.isdigit())} {spread} of seed{'s' * (len(who) > 1)} {ranges(who)}"
        for (arm, spread), who in seeds.items()
    ]
