"""A row a center with all that is said of it, and what centers say together: gap, spread, worst.

Intervals are over suspected patients where the rows name them (`patient`), else over cases; of groups that are no centers
over centers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pants_dist.cases import UNKNOWN
from pants_dist.detection import amounts_of, component_wise, named, operating_point, truth_of, tuned_threshold
from pants_dist.gaps import center_estimates, descriptive_gap, paired_gap, random_effects, worst_center
from pants_dist.protocol import Analysis
from pants_dist.report import center_table, centers_of, patients_of, witnesses_of
from pants_dist.roc import auc, clustered_auc, delong
from pants_dist.scores import UNIT
from pants_dist.stats import NAN, as_floats, brier, calibration, t_interval
from pants_dist.structures import LESION

FEWEST_FOR_AN_AUC, FEWEST_FOR_A_FIRM_ONE = 10, 20  # positives and negatives of a center: below blank; below hollow
SCORES = ("lesion_max_logit", f"predicted_voxels/{LESION}", f"predicted_mm3/{LESION}")
LOGIT = SCORES[0]
SHORTCUT = "shortcut/scan"  # a column: the lesion's probability by spacing, shape and phase alone (shortcuts.with_shortcut)


def group_table(rows: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """Dice of every group (the rows' center) and structure: group, structure, n, mean, median, low, high.

    n counts scored cases; low and high are Student's 95 % interval of the mean, from 5 cases (or patients) on.
    """
    table = []
    for group, part in rows.groupby("center", sort=True):
        for name in structures:
            found = t_interval(part[f"dsc/{name}"], witnesses_of(part), bounds=(0, 1))
            median = float(np.nanmedian(as_floats(part[f"dsc/{name}"]))) if found.n else NAN
            table.append((group, name, found.n, found.value, median, found.low, found.high))
    return pd.DataFrame(table, columns=["group", "structure", "n", "mean", "median", "low", "high"])


def truth_known(rows: pd.DataFrame) -> str | None:
    """The truth of lesions that rows are judged by: "mask", or "flag" where no mask is known; None for neither."""
    return next((truth for truth in ("mask", "flag") if not np.isnan(truth_of(rows, truth)).all()), None)


def score_known(rows: pd.DataFrame) -> str | None:
    """The column that orders cases by suspicion: the largest lesion logit, else the predicted volume; None for neither."""
    return next((name for name in SCORES if name in rows and rows[name].notna().any()), None)


def full_center_table(rows: pd.DataFrame, structures: Sequence[str], analysis: Analysis) -> pd.DataFrame:
    """`report.center_table`, and where the rows know lesions also detection and calibration of each center.

    Adds the columns of `detection_row`.
    """
    table = center_table(rows, structures)
    truth, score = truth_known(rows), score_known(rows)
    if truth is None or score is None:
        return table
    threshold = tuned_threshold(rows, truth, score, analysis.specificity)
    extra = []
    for row in table.to_dict("records"):
        part = rows[(rows["center"] == row["center"]) & rows["seen"].isin([row["seen"]])]
        extra.append(detection_row(part, truth, score, threshold, analysis))
    return pd.concat([table, pd.DataFrame(extra)], axis=1)


def detection_row(part: pd.DataFrame, truth: str, score: str, threshold: float, analysis: Analysis) -> dict[str, Any]:
    """What is said of lesions in some cases, a center's or a subgroup's, by a truth and a score of `detection`.

    auc with /low, /high, /method and auc/firm (NaN below 10 positives and 10 negatives; not firm below 20 and 20) and
    scan_auc, that of spacing, shape and phase; sensitivity and specificity at `threshold` (`tuned_*`); the share of lesion
    components hit (`component_sensitivity`); calibration intercept and slope, and Brier score of the largest logit.
    """
    present, clusters = truth_of(part, truth), witnesses_of(part)
    amounts = amounts_of(part, score, present)
    row = _area(part, present, amounts, score, analysis)
    found = operating_point(present, amounts, threshold, patients_of(part), centers_of(part))
    row |= named("tuned_sensitivity", found[0]) | named("tuned_specificity", found[1])
    if "lesion_components" in part:
        hits = component_wise(part, patients_of(part), centers_of(part))
        row |= {name.replace("sensitivity", "component_sensitivity"): hits[name] for name in named("sensitivity", found[0])}
    if LOGIT in part:
        logits = as_floats(part[LOGIT])
        weak = calibration(present, logits, clusters)
        row |= _interval("calibration_intercept", weak.intercept) | _interval("calibration_slope", weak.slope)
        row |= _interval("brier", brier(present, 1 / (1 + np.exp(-np.clip(logits, -500, 500))), clusters))
    return row


def _area(part: pd.DataFrame, present: np.ndarray, amounts: np.ndarray, score: str, analysis: Analysis) -> dict[str, Any]:
    """AUC by DeLong where cases are independent (one center, no patient twice) and the score orders as probabilities do;
    else by bootstrap."""
    fewer = fewer_of((present, amounts))
    row: dict[str, Any] = {"auc": NAN, "auc/low": NAN, "auc/high": NAN, "auc/method": "", "scan_auc": NAN}
    row["auc/firm"] = fewer >= FEWEST_FOR_A_FIRM_ONE
    if fewer < FEWEST_FOR_AN_AUC:
        return row
    centers, patients = centers_of(part), patients_of(part)
    alone = score == LOGIT and len(set(centers)) == 1 and (patients is None or bool(patients.is_unique))
    given = (centers, patients, analysis.draws, analysis.seed)
    found = auc(present, amounts) if alone else clustered_auc(present, amounts, *given)
    if SHORTCUT in part:
        row["scan_auc"] = float(delong(present, [as_floats(part[SHORTCUT])])[0][0])
    return row | _interval("auc", found) | {"auc/method": "DeLong" if alone else "bootstrap"}


def _interval(name: str, found: Any) -> dict[str, float]:
    return {name: found.value, f"{name}/low": found.low, f"{name}/high": found.high}


def auc_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """How many centers (or what else the groups are) have an AUC: set (seen, held-out, "" if nobody knows), centers, firm,
    hollow, blank; and a line "all" where there are several sets. Empty where rows have no truth or no score of lesions."""
    truth, score = truth_known(rows), score_known(rows)
    if truth is None or score is None:
        return pd.DataFrame()
    lines = []
    for side, part in sides(rows):
        sizes = np.array([fewer_of(_truth_and_amounts(own, truth, score)) for _, own in part.groupby("center")])
        firm, given = int((sizes >= FEWEST_FOR_A_FIRM_ONE).sum()), int((sizes >= FEWEST_FOR_AN_AUC).sum())
        lines.append({"set": side, "centers": sizes.size, "firm": firm, "hollow": given - firm, "blank": sizes.size - given})
    table = pd.DataFrame(lines)
    if len(lines) > 1:
        table.loc[len(lines)] = {**table.sum(numeric_only=True), "set": "all"}
    return table


def aucs_left(rows: pd.DataFrame) -> str:
    """How many of the centers (or other groups) have an AUC, in a sentence."""
    counts, noun = auc_counts(rows), "groups" if UNIT in rows else "centers"
    if counts.empty:
        return f"No AUC of {noun}: the rows have no truth or no score of lesions."
    last = counts.iloc[-1]
    given = int(last["firm"] + last["hollow"])
    said = (
        f"{given} of {last['centers']} {noun} have the {FEWEST_FOR_AN_AUC} cases with and {FEWEST_FOR_AN_AUC} without a lesion "
        "that an AUC takes"
    )
    firm = f"{last['firm']} of them have {FEWEST_FOR_A_FIRM_ONE} and {FEWEST_FOR_A_FIRM_ONE}, the others are hollow"
    return f"{said}; {firm}." if given else f"{said}."


def _truth_and_amounts(rows: pd.DataFrame, truth: str, score: str) -> tuple[np.ndarray, np.ndarray]:
    present = truth_of(rows, truth)
    return present, amounts_of(rows, score, present)


def fewer_of(scored: tuple[np.ndarray, np.ndarray]) -> int:
    """The smaller number of cases with and without a lesion among those whose truth and amount are known."""
    present, amounts = scored
    known = ~np.isnan(amounts)
    return min(int((present[known] == 1).sum()), int((present[known] == 0).sum()))


def gap_table(rows: pd.DataFrame, structures: Sequence[str], analysis: Analysis) -> pd.DataFrame:
    """The descriptive gap, seen less held-out, of every score: `gaps.descriptive_gap`."""
    known = rows[rows["seen"].notna()]
    table = []
    for column in _scored(known, structures):
        centers, seen = known["center"].tolist(), known["seen"].astype(bool)
        gap = descriptive_gap(known[column], centers, seen, patients_of(known), analysis.draws, analysis.seed)
        table.append({
            "score": column, "gap": gap.value, "gap/low": gap.low, "gap/high": gap.high, "p": gap.p, "method": gap.method,
            "seen centers": gap.seen_centers, "held-out centers": gap.held_out_centers, "cases": gap.cases,
        })  # fmt: skip
    return pd.DataFrame(table)


def generalization_gap(
    models: Mapping[str, pd.DataFrame], structures: Sequence[str], analysis: Analysis
) -> tuple[pd.DataFrame, str]:
    """The paired gap of every score, and a sentence on what it rests on, or why there is none.

    The same cases of a hospital, scored by models that were trained with it (`seen`) less scored by models that were not:
    a case's mean over the models of each kind, then `gaps.paired_gap`. Cases that a model was trained on do not count.
    """
    kinds = {True: list[pd.DataFrame](), False: list[pd.DataFrame]()}
    for rows in models.values():
        usable = rows[rows["seen"].notna() & (rows["split"] != "train") & ~rows["center_kind"].isin(["pool", UNKNOWN])]
        for seen, parts in kinds.items():
            parts.append(usable[usable["seen"].astype(bool) == seen])
    ours, theirs = (pd.concat(parts, ignore_index=True) for parts in kinds.values())
    both = sorted(set(ours["case"]) & set(theirs["case"]))
    if not both:
        return pd.DataFrame(), (
            "The generalization gap is not given: it takes cases that were scored both by a model trained with their center "
            "and by one trained without it."
        )
    ours, theirs = (part[part["case"].isin(both)] for part in (ours, theirs))
    one = ours.drop_duplicates("case").set_index("case").loc[both]
    table = []
    for column in _scored(ours, structures):
        first, second = (part.groupby("case")[column].mean().reindex(both) for part in (ours, theirs))
        gap = paired_gap(first, second, one["center"].tolist(), patients_of(one), analysis.draws, analysis.seed)
        table.append({
            "score": column, "gap": gap.value, "gap/low": gap.low, "gap/high": gap.high, "p": gap.p, "method": gap.method,
            "centers": gap.seen_centers, "cases": gap.cases,
        })  # fmt: skip
    return pd.DataFrame(table), _sizes(ours, theirs)


def _sizes(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """How many cases the models with and without the center were trained on: a gap of unequal ones is of size, too."""
    if "trained_cases" not in ours or "trained_cases" not in theirs:
        return "Generalization gap: nobody says how many cases the models were trained on; it takes as many for both."
    counts = [sorted({int(count) for count in part["trained_cases"].dropna()}) for part in (ours, theirs)]
    said = [" or ".join(f"{count:,}" for count in part) or "unknown" for part in counts]
    if counts[0] == counts[1] and len(counts[0]) == 1:
        return f"Generalization gap: models with and without the center were trained on {said[0]} cases each."
    return (
        f"Generalization gap: trained on {said[0]} cases with the center and on {said[1]} without it; as far as these numbers "
        "differ the gap is one of training size, too (data.subset makes them equal)."
    )


def distance_table(rows: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """Surface Dice and HD95 of each structure over all cases: structure, n, nsd with limits, tolerance_mm, HD95 in mm.

    HD95 is the median where both masks have the structure; undefined: cases whose prediction has nothing of it.
    """
    table = []
    for name in structures:
        found = t_interval(rows[f"nsd/{name}"], witnesses_of(rows), bounds=(0, 1))
        far = as_floats(rows[f"hd95_mm/{name}"]) if f"hd95_mm/{name}" in rows else np.full(len(rows), NAN)
        known, scored = far[~np.isnan(far)], ~np.isnan(as_floats(rows[f"dsc/{name}"]))
        line: dict[str, Any] = {"structure": name, "n": found.n, **_interval("surface Dice", found)}
        if f"tolerance_mm/{name}" in rows:
            line["tolerance, mm"] = float(rows[f"tolerance_mm/{name}"].max())
        line |= {"HD95, mm (median)": float(np.median(known)) if known.size else NAN}
        table.append(line | {"HD95 undefined": int((scored & np.isnan(far)).sum())})
    return pd.DataFrame(table)


def spread_tables(rows: pd.DataFrame, structures: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables, a line a score and side (seen, held-out, or all if unknown): the spread of centers, and the worst one.

    Spread: mean over centers by random effects (REML, Hartung-Knapp) with its interval, where a new center's mean is
    expected, tau, and the 10th percentile of cases. Worst: as observed and shrunken, beside the worst of as many equal
    centers by chance (`gaps.random_effects`, `gaps.worst_center`).
    """
    spread, worst = [], []
    for column in _scored(rows, structures):
        for side, part in sides(rows):
            means = center_estimates(part[column], part["center"].tolist(), patients_of(part))
            overall = random_effects(means["mean"], means["variance"])
            head = {"score": column, "centers": f"{overall.centers} {side}".strip()}
            row: dict[str, Any] = {"mean": overall.mean, "mean/low": overall.low, "mean/high": overall.high}
            row |= {"new center from": overall.prediction_low, "new center to": overall.prediction_high}
            row["tau"] = float(np.sqrt(overall.tau2))
            row["10th percentile of cases"] = float(part[column].astype(float).quantile(0.1))
            spread.append(head | row)
            worst.append(head | _worst(means))
    return pd.DataFrame(spread), pd.DataFrame(worst)


def _worst(means: pd.DataFrame) -> dict[str, Any]:
    found = worst_center(means["center"].tolist(), means["mean"], means["variance"])
    if found is None:
        return {"worst center": None, "worst": NAN, "shrunken": NAN, "by chance": NAN, "p by chance": NAN}
    numbers = {
        "worst": found.observed, "shrunken": found.shrunken, "shrunken/low": found.low, "shrunken/high": found.high,
        "by chance": found.chance, "by chance/low": found.chance_low, "by chance/high": found.chance_high,
    }  # fmt: skip
    bounded = {name: min(max(value, 0.0), 1.0) for name, value in numbers.items()}  # scores are from 0 to 1
    return {"worst center": found.center, **bounded, "p by chance": found.p}


def sides(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(seen, held-out or "", rows) of each kind of center that is there."""
    for seen, name in ((True, "seen"), (False, "held-out"), (None, "")):
        if (mask := rows["seen"].isin([seen])).any():
            yield name, rows[mask]


def _scored(rows: pd.DataFrame, structures: Sequence[str]) -> list[str]:
    """Columns of Dice and surface Dice that have a value."""
    columns = [f"{metric}/{name}" for name in structures for metric in ("dsc", "nsd")]
    return [column for column in columns if column in rows and rows[column].notna().any()]
