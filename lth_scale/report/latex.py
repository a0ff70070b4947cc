"""The verdict table for a paper: booktabs, nothing else needed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lth_scale.report.study import Study

SPECIAL = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
SIGNS = {"matching": "$^{=}$", "not matching": "$^{-}$", "undecided": "$^{?}$"}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def _cell(rows: pd.DataFrame, number: int) -> str:
    found = rows[rows["round"] == number]
    if found.empty:
        return "--"
    row = found.iloc[0]
    half = (row["test_accuracy_high"] - row["test_accuracy_low"]) / 2
    spread = rf" $\pm$ {half:.2f}" if half == half else ""
    return f"{row['test_accuracy']:.2f}{spread}{SIGNS.get(row['verdict'], '')}"


def _tabular(study: Study) -> list[str]:
    arms = study.drawn
    lines = [rf"\begin{{tabular}}{{r{'l' * len(arms)}}}", r"\toprule"]
    lines += [" & ".join(["Weights left (\\%)", *map(escape, arms)]) + r" \\", r"\midrule"]
    for number in sorted(set(study.rows["round"])):
        at = study.rows[study.rows["round"] == number]
        cells = [_cell(study.arm(arm), number) for arm in arms]
        lines.append(" & ".join([f"{100 * at['density'].min():.2f}", *cells]) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def latex(studies: Sequence[Study]) -> str:
    """One tabular per run: mean test accuracy in percent, half its 95 % interval, and a sign for the verdict."""
    lines = ["% needs \\usepackage{booktabs}"]
    for study in studies:
        tolerance, n = study.run.config.report.tolerance, len(study.run.seeds)
        lines += [f"% {study.run.name}: test accuracy at the end (%), mean and half the 95 % t-interval, n = {n}."]
        lines += [f"% = matching, - not matching, ? undecided: paired against dense, tolerance {tolerance:g} points."]
        lines += [*_tabular(study), ""]
    return "\n".join(lines)
