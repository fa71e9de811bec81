"""What reporting guidelines ask of an evaluation, and what this report answers; what it cannot know is left to the authors.

Items in our words after Metrics Reloaded (Maier-Hein, Reinke et al., Nat Methods 2024;21:195) and CLAIM (Tejani et al.,
Radiol Artif Intell 2024;6:e240300).
"""

from typing import NamedTuple

import pandas as pd

from pants_dist.protocol import Analysis


class Item(NamedTuple):
    """One line of the list; `met` is None where only the authors know."""

    guideline: str
    asks: str
    met: bool | None
    answer: str


def checklist(rows: pd.DataFrame, models: int, analysis: Analysis, declared: bool) -> list[Item]:
    """The items for these rows. `declared`: the analysis was given as a file."""
    reloaded, claim = "Metrics Reloaded", "CLAIM"
    surface = any(name.startswith("nsd/") and rows[name].notna().any() for name in rows)
    lesions = "lesion_present" in rows or "tumor_flag" in rows
    seen = bool(rows["seen"].notna().any())
    return [
        Item(reloaded, "An overlap and a boundary measure together", surface,
             "Dice and surface Dice" if surface else "Dice alone: the rows have no nsd/<structure>"),
        Item(reloaded, "Detection scored by patient and by component", lesions and "lesion_components" in rows,
             "sensitivity, specificity, AUC, FROC" if "lesion_components" in rows else "the rows have no lesion components"),
        Item(reloaded, "Empty references and predictions defined", True,
             "no reference: not scored; no prediction: 0, or a miss"),
        Item(reloaded, "Scores aggregated over the right unit", True,
             "by patient within a center" if "patient" in rows else "by case: the rows name no suspected patients"),
        Item(reloaded, "Calibration reported", "lesion_max_logit" in rows,
             "intercept, slope, Brier" if "lesion_max_logit" in rows else "the rows have no lesion_max_logit"),
        Item(claim, "Uncertainty of every figure", True, f"95 % intervals, {analysis.draws:,} draws, seed {analysis.seed}"),
        Item(claim, "Primary endpoint set beforehand", declared,
             f"{analysis.primary}, analysis {analysis.digest[:12]}" if declared else "no analysis.yaml was given: defaults"),
        Item(claim, "External testing, sources kept apart", seen,
             "seen and held-out centers" if seen else "the rows do not say which centers were trained on"),
        Item(claim, "Subgroups and failures shown", True, "tables by group; worst_cases.csv"),
        Item(claim, "Comparison with other systems on the same cases", models > 1,
             f"{models} models, paired" if models > 1 else "one model"),
        Item(claim, "Reference standard and who drew it", None, "state how the outlines were made; there is no histology"),
        Item(claim, "Eligibility, dates, scanners, demographics", None, "state them for every source"),
        Item(claim, "Ethics, registration, access to code and data", None, "state them"),
    ]  # fmt: skip
