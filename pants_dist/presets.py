"""Every definition of lesion detection in use, each under its own name, and the one table of them all.

Intervals know that cases of a center are alike: AUC and FROC score by a bootstrap of centers, then clusters; sensitivity,
specificity, the share of components and rates over centers from five on, below that over clusters (`stats.outermost`).
"""

from typing import Any

import numpy as np
import pandas as pd

from pants_dist.detection import (
    GRID,
    SPECIFICITY,
    TRUTHS,
    TUNING,
    amounts_of,
    component_wise,
    curve,
    failed,
    froc_score,
    grid_auc,
    grid_scores,
    named,
    observed_thresholds,
    operating_point,
    threshold_at,
    truth_of,
    tuned_threshold,
)
from pants_dist.resampling import DRAWS
from pants_dist.roc import clustered_auc
from pants_dist.stats import NAN, Estimate, Labels, as_floats, clustered_wilson, outermost, t_interval
from pants_dist.structures import LESION

PATIENT_DICE = 0.1  # a tumor counts as found from this Dice of its patient on
MAXPROB = {  # preset -> its column
    "rsuper_maxprob": "lesion_max_logit_1mm", "rsuper_maxprob_in_pancreas": "lesion_max_logit_1mm_pancreas",
    "maxprob_source_grid": "lesion_max_logit",
}  # fmt: skip
OTHERS = "all others"
TUNED = {  # preset with a threshold carried over -> its column
    "tuned_volume": f"predicted_voxels/{LESION}", "tuned_volume_mm3": f"predicted_mm3/{LESION}",
    "tuned_maxprob": MAXPROB["rsuper_maxprob"],
}  # fmt: skip


def pants_nnunet_volume(
    rows: pd.DataFrame,
    truth: str = "mask",
    unit: str = "voxels",
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The PanTS leaderboard's volume preset, or with `unit` "mm3" the same in cubic millimeters.

    Positive: more than a threshold of predicted lesion in the source grid, thresholds 0..100 by 1, to 1,000 by 10, to
    10,000 by 100, to 99,000 by 1,000. AUC by `grid_auc`, interval by bootstrap of centers and clusters; operating point
    at the specificity nearest 0.90, found on these same rows. Tumor-wise: share of mask-positive patients with Dice >=
    0.1. Dice: mean over mask-positive patients. A failure is Dice 0.
    """
    present = truth_of(rows, truth)
    amounts = amounts_of(rows, f"predicted_{unit}/{LESION}", present)
    points = curve(present, amounts, GRID)
    threshold = threshold_at(points)
    found = operating_point(present, amounts, threshold, clusters, rows["center"])
    areas = clustered_auc(present, grid_scores(present, amounts, GRID), list(rows["center"]), clusters, draws, seed)
    name = "pants_nnunet_volume" + ("" if unit == "voxels" else f"_{unit}")
    return _result(name, truth, rows, present, areas._replace(value=grid_auc(points)), threshold, found) | overlap(
        rows, clusters
    )


def overlap(rows: pd.DataFrame, clusters: Labels | None = None) -> dict[str, float]:
    """Tumor-wise sensitivity (patient Dice >= 0.1) and mean Dice over mask-positive patients; failures have Dice 0."""
    dice = as_floats(rows[f"dsc/{LESION}"]) if f"dsc/{LESION}" in rows else np.full(len(rows), NAN)
    dice = np.where(failed(rows), 0.0, dice)
    known = (truth_of(rows, "mask") == 1) & ~np.isnan(dice)
    labels = outermost(rows["center"], range(len(rows)) if clusters is None else clusters, known)
    mean, hits = t_interval(dice[known], labels, bounds=(0.0, 1.0)), dice[known] >= PATIENT_DICE
    return named("tumor_wise", clustered_wilson(hits, labels)) | named("dsc", mean)


def rsuper_maxprob(
    rows: pd.DataFrame,
    truth: str = "flag",
    column: str = MAXPROB["rsuper_maxprob"],
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """R-Super's preset: score of a case is its largest lesion probability at 1 mm (maxprob.py), truth the metadata's flag.

    `column` (one of MAXPROB) holds logits, which order cases as probabilities do but do not tie at 1. AUC by Mann-Whitney
    with ties as half; operating point at the specificity nearest 0.90 among all observed thresholds, on these same rows.
    """
    present = truth_of(rows, truth)
    amounts = amounts_of(rows, column, present)
    threshold = threshold_at(curve(present, amounts, observed_thresholds(amounts)))
    found = operating_point(present, amounts, threshold, clusters, rows["center"])
    areas = clustered_auc(present, amounts, list(rows["center"]), clusters, draws, seed)
    name = next((name for name, one in MAXPROB.items() if one == column), column)
    return _result(name, truth, rows, present, areas, threshold, found)


def _result(
    name: str,
    truth: str,
    rows: pd.DataFrame,
    present: np.ndarray,
    areas: Estimate,
    threshold: float,
    found: tuple[Estimate, Estimate],
) -> dict[str, Any]:
    head = {
        "preset": name,
        "truth": truth,
        "positives": int((present == 1).sum()),
        "negatives": int((present == 0).sum()),
        "failures": int((failed(rows) & ~np.isnan(present)).sum()),
    }
    points = named("sensitivity", found[0]) | named("specificity", found[1])
    return head | named("auc", areas) | {"threshold": threshold} | points


def carried_over(rows: pd.DataFrame, clusters: Labels | None = None, specificity: float = SPECIFICITY) -> pd.DataFrame:
    """Thresholds fixed on seen tuning cases (split val_seen), and what they give there and in cases of other splits.

    A line for each of TUNED, each truth and each of: the tuning cases, all others, the others of each center. Columns:
    preset, truth, cases, set, threshold (`detection.tuned_threshold`), then sensitivity and specificity with /low, /high
    and /n. Training cases are left out. Empty where there are no tuning cases without a lesion.
    """
    if "split" not in rows or "seen" not in rows:
        return pd.DataFrame()
    centers, lines = rows["center"].to_numpy(object), []
    for truth in TRUTHS:
        present = truth_of(rows, truth)
        for name, column in TUNED.items():
            if column not in rows or rows[column].isna().all():
                continue
            amounts = amounts_of(rows, column, present)
            threshold = tuned_threshold(rows, truth, column, specificity)
            for part, seen, own in _places(rows) if not np.isnan(threshold) else ():
                labels = None if clusters is None else np.asarray(clusters, object)[own]
                found = operating_point(present[own], amounts[own], threshold, labels, centers[own])
                head = {"preset": name, "truth": truth, "cases": part, "set": seen, "threshold": threshold}
                lines.append(head | named("sensitivity", found[0]) | named("specificity", found[1]))
    return pd.DataFrame(lines)


def _places(rows: pd.DataFrame) -> list[tuple[str, str, np.ndarray]]:
    """What `carried_over` tells apart: how it is called, seen or held-out, and which cases (n,) it has."""
    tuning, trained = (rows["split"].eq(name).to_numpy(bool) for name in (TUNING, "train"))
    others = ~tuning & ~trained
    found = [("tuning cases", "seen", tuning), (OTHERS, "", others)]
    for seen, said in ((True, "seen"), (False, "held-out")):
        own = others & rows["seen"].isin([seen]).to_numpy(bool)
        centers = rows["center"].to_numpy(object)
        found += [(center, said, own & (centers == center)) for center in sorted(set(centers[own]), key=str)]
    return [place for place in found if place[2].any()]


def detection_table(
    rows: pd.DataFrame,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    specificity: float = SPECIFICITY,
) -> pd.DataFrame:
    """Every preset under every truth that the rows know, one line each; columns that a preset lacks are NaN.

    The leaderboard's volume and components stand first. The tuned presets are of all cases but the tuning ones, at the
    `specificity` wanted on those.
    """
    given: dict[str, Any] = {"clusters": clusters, "draws": draws, "seed": seed}
    truths = [truth for truth in TRUTHS if not np.isnan(truth_of(rows, truth)).all()]
    lines = [pants_nnunet_volume(rows, truth, **given) for truth in truths]
    if "lesion_components" in rows:
        lines.append(component_wise(rows, clusters, rows["center"]))
        if "lesion_component_logits" in rows:
            lines[-1] |= named("froc_score", froc_score(rows, centers=rows["center"], **given))
    known = [column for column in MAXPROB.values() if column in rows and rows[column].notna().any()]
    for truth in truths:
        lines.append(pants_nnunet_volume(rows, truth, "mm3", **given))
        lines += [rsuper_maxprob(rows, truth, column, **given) for column in known]
    for line in carried_over(rows, clusters, specificity).to_dict("records"):
        if line.pop("cases") == OTHERS:
            lines.append(line | {"positives": line["sensitivity/n"], "negatives": line["specificity/n"]})
            lines[-1].pop("set")
    return pd.DataFrame(lines)
