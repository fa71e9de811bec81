"""Lesion detection from rows of cases, by every definition in use, each under its own name.

A case without a prediction counts against the system on both sides: a miss where the lesion is present, a false alarm
where it is not (intention to diagnose: Schuetz et al., BMJ 2012;345:e6717). Truth is by "mask" (the reference has a
lesion voxel) or by "flag" (the metadata say so); the two differ in some scans, so every result names its truth.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pants_dist.resampling import DRAWS
from pants_dist.roc import clustered_auc
from pants_dist.stats import NAN, Estimate, Labels, as_floats, clustered_wilson, sensitivity_specificity, t_interval
from pants_dist.structures import LESION

TRUTHS = {"mask": "lesion_present", "flag": "tumor_flag"}
GRID = np.r_[0:100, 100:1000:10, 1000:10_000:100, 10_000:100_000:1000]  # 0 to 99,000: 370 thresholds
SPECIFICITY = 0.90
PATIENT_DICE = 0.1  # a tumor counts as found from this Dice of its patient on
MAXPROB = {  # preset -> its column
    "rsuper_maxprob": "lesion_max_logit_1mm", "rsuper_maxprob_in_pancreas": "lesion_max_logit_1mm_pancreas",
    "maxprob_source_grid": "lesion_max_logit",
}  # fmt: skip
OTHERS = "all others"
TUNING = "val_seen"  # the split of seen tuning cases
TUNED = {  # preset with a threshold carried over -> its column
    "tuned_volume": f"predicted_voxels/{LESION}", "tuned_volume_mm3": f"predicted_mm3/{LESION}",
    "tuned_maxprob": MAXPROB["rsuper_maxprob"],
}  # fmt: skip
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def truth_of(rows: pd.DataFrame, truth: str) -> np.ndarray:
    """1, 0 or NaN a case, by the column that `truth` ("mask" or "flag") stands for; NaN where there is none."""
    column = TRUTHS[truth]
    return as_floats(rows[column]) if column in rows else np.full(len(rows), NAN)


def failed(rows: pd.DataFrame) -> np.ndarray:
    """Whether a case has no prediction."""
    return rows["status"].eq("no prediction").to_numpy(bool) if "status" in rows else np.zeros(len(rows), bool)


def amounts_of(rows: pd.DataFrame, column: str, present: np.ndarray) -> np.ndarray:
    """A score a case; of failures the one that counts against the system: -inf with a lesion, inf without."""
    amounts = as_floats(rows[column]) if column in rows else np.full(len(rows), NAN)
    return np.where(failed(rows), np.where(present == 1, -np.inf, np.inf), amounts)


def curve(present: np.ndarray, amounts: np.ndarray, thresholds: np.ndarray) -> pd.DataFrame:
    """Sensitivity and specificity where an amount strictly above the threshold is positive; one row a threshold.

    Cases with an unknown truth or amount are left out. NaN where a class is missing.
    """
    table = pd.DataFrame({"threshold": thresholds})
    for name, value in (("sensitivity", 1), ("specificity", 0)):
        ordered = np.sort(amounts[(present == value) & ~np.isnan(amounts)])
        below = np.searchsorted(ordered, thresholds, side="right") / ordered.size if ordered.size else NAN
        table[name] = 1 - below if value else below
    return table


def grid_auc(points: pd.DataFrame) -> float:
    """Area under sensitivity over specificity by the trapezoid rule, from (0, 1) through the grid's points.

    Nothing is added at the other end: where negatives lie above the last threshold, the area beyond is not counted.
    """
    specificity, sensitivity = np.r_[0.0, points["specificity"]], np.r_[1.0, points["sensitivity"]]
    return float(np.trapezoid(sensitivity, specificity))


def grid_scores(present: np.ndarray, amounts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Scores whose Mann-Whitney AUC is `grid_auc`: thresholds passed, negatives above the last one over all."""
    passed = np.searchsorted(thresholds, amounts, side="left").astype(float)
    passed[(passed == thresholds.size) & (present == 0)] += 1
    return np.where(np.isnan(amounts), NAN, passed)


def threshold_at(points: pd.DataFrame, specificity: float = SPECIFICITY) -> float:
    """The threshold whose specificity is nearest; of equally near ones the lowest. NaN where there are no negatives."""
    apart = (points["specificity"] - specificity).abs().round(12).to_numpy()
    return NAN if np.isnan(apart).all() else float(points["threshold"].iloc[int(np.nanargmin(apart))])


def observed_thresholds(amounts: np.ndarray) -> np.ndarray:
    """Every threshold that matters for these amounts: below all, then each distinct finite one."""
    return np.r_[-np.inf, np.unique(amounts[np.isfinite(amounts)])]


def operating_point(
    present: np.ndarray, amounts: np.ndarray, threshold: float, clusters: Labels | None = None
) -> tuple[Estimate, Estimate]:
    """Sensitivity and specificity at a threshold that was fixed elsewhere, as on tuning cases of seen centers."""
    predicted = (amounts > threshold).astype(float)
    truth = np.where(np.isnan(amounts) | np.isnan(threshold), NAN, present)
    return sensitivity_specificity(truth, predicted, clusters)


def named(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as columns: name, name/low, name/high, name/n."""
    return {
        name: estimate.value,
        f"{name}/low": estimate.low,
        f"{name}/high": estimate.high,
        f"{name}/n": estimate.n,
    }


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
    found = operating_point(present, amounts, threshold, clusters)
    areas = clustered_auc(present, grid_scores(present, amounts, GRID), list(rows["center"]), clusters, draws, seed)
    name = "pants_nnunet_volume" + ("" if unit == "voxels" else f"_{unit}")
    return _result(name, truth, rows, present, areas._replace(value=grid_auc(points)), threshold, found) | overlap(
        rows, clusters
    )


def overlap(rows: pd.DataFrame, clusters: Labels | None = None) -> dict[str, float]:
    """Tumor-wise sensitivity (patient Dice >= 0.1) and mean Dice over mask-positive patients; failures have Dice 0."""
    dice = as_floats(rows[f"dsc/{LESION}"]) if f"dsc/{LESION}" in rows else np.full(len(rows), NAN)
    dice = np.where(failed(rows), 0.0, dice)
    dice = np.where(truth_of(rows, "mask") == 1, dice, NAN)
    labels = list(range(len(rows))) if clusters is None else clusters
    hits = np.where(np.isnan(dice), NAN, dice >= PATIENT_DICE)
    mean = t_interval(dice, labels, bounds=(0.0, 1.0))
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
    found = operating_point(present, amounts, threshold, clusters)
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
    preset, truth, cases, set, threshold, then sensitivity and specificity with /low, /high and /n. The threshold is that
    whose specificity on the tuning cases is nearest, among the grid of volumes or all observed logits; of equally near
    ones the lowest. Training cases are left out. Empty where there are no tuning cases without a lesion.
    """
    if "split" not in rows or "seen" not in rows:
        return pd.DataFrame()
    tuning, trained = (rows["split"].eq(name).to_numpy(bool) for name in (TUNING, "train"))
    lines = []
    for truth in TRUTHS:
        present = truth_of(rows, truth)
        for name, column in TUNED.items():
            if column not in rows or rows[column].isna().all():
                continue
            amounts = amounts_of(rows, column, present)
            choices = observed_thresholds(amounts[tuning]) if column in MAXPROB.values() else GRID
            threshold = threshold_at(curve(present[tuning], amounts[tuning], choices), specificity)
            for part, seen, own in _places(rows, tuning, trained) if not np.isnan(threshold) else ():
                labels = None if clusters is None else np.asarray(clusters, object)[own]
                found = operating_point(present[own], amounts[own], threshold, labels)
                head = {"preset": name, "truth": truth, "cases": part, "set": seen, "threshold": threshold}
                lines.append(head | named("sensitivity", found[0]) | named("specificity", found[1]))
    return pd.DataFrame(lines)


def _places(rows: pd.DataFrame, tuning: np.ndarray, trained: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """What `carried_over` tells apart: how it is called, seen or held-out, and which cases (n,) it has."""
    others = ~tuning & ~trained
    found = [("tuning cases", "seen", tuning), (OTHERS, "", others)]
    for seen, said in ((True, "seen"), (False, "held-out")):
        own = others & rows["seen"].isin([seen]).to_numpy(bool)
        centers = rows["center"].to_numpy(object)
        found += [(center, said, own & (centers == center)) for center in sorted(set(centers[own]), key=str)]
    return [place for place in found if place[2].any()]


def absent_table(rows: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """False-positive volumes: of each structure the cases whose reference has none, and what was predicted in them.

    Columns: structure, absent in (cases with a prediction), predicted in, then mean and largest volume in cm3 over them.
    """
    lines = []
    for name in structures:
        columns = [f"{side}_mm3/{name}" for side in ("reference", "predicted")]
        if all(column in rows for column in columns):
            reference, predicted = (as_floats(rows[column]) for column in columns)
            volumes = predicted[(reference == 0) & ~np.isnan(predicted)] / 1000
            if volumes.size:
                line = {"structure": name, "absent in": volumes.size, "predicted in": int((volumes > 0).sum())}
                lines.append(line | {"mean, cm3": volumes.mean(), "largest, cm3": volumes.max()})
    return pd.DataFrame(lines)


def component_wise(rows: pd.DataFrame, clusters: Labels | None = None) -> dict[str, Any]:
    """Share of lesion components hit (26-neighborhood, one-to-one, IoU >= 0.1) and false components a scan.

    Interval of the share: Wilson at the effective size of components clustered in patients. Scans without an annotated
    lesion structure are left out; of a failure every component is missed, and no false one is counted.
    """
    lost = failed(rows)
    components = as_floats(rows["lesion_components"])
    hit = np.where(lost, 0.0, as_floats(rows["lesion_components_hit"]))
    false = np.where(lost, 0.0, as_floats(rows["lesion_components_false"]))
    keep = ~np.isnan(components)
    labels = np.arange(len(rows)) if clusters is None else np.asarray(clusters, object)
    counts, hits = components[keep].astype(int), hit[keep].astype(int)
    patients = np.repeat(labels[keep], counts)
    found = np.concatenate([np.arange(n) < h for n, h in zip(counts, hits, strict=True)]) if keep.any() else counts
    head = {"preset": "component_wise", "truth": "mask", "failures": int(lost[keep].sum())}
    rate = t_interval(false[keep], labels[keep], bounds=(0.0, np.inf))
    return head | named("sensitivity", clustered_wilson(found, patients)) | named("false_per_scan", rate)


def froc(rows: pd.DataFrame) -> pd.DataFrame:
    """Component-wise FROC: threshold, sensitivity, false_per_scan, from strict to lax.

    A predicted component counts from its largest logit on; which lesion it matches is fixed by its whole mask (Bandos et
    al., Biometrics 2009;65:247 for the curve). Rows need `lesion_component_logits` and `lesion_component_matched`.
    """
    components = as_floats(rows["lesion_components"])
    keep = ~np.isnan(components)
    part = rows[keep & ~failed(rows)]
    logits = np.array([logit for case in part["lesion_component_logits"] for logit in case], float)
    matched = np.array([hit for case in part["lesion_component_matched"] for hit in case], bool)
    order = np.argsort(-logits, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(logits[order]) != 0, True]) if logits.size else np.zeros(0, int)
    total, scans = components[keep].sum(), int(keep.sum())
    hits, false = np.cumsum(matched[order])[last], np.cumsum(~matched[order])[last]
    return pd.DataFrame(
        {
            "threshold": np.r_[np.inf, logits[order][last]],
            "sensitivity": np.r_[0, hits] / total if total else NAN,
            "false_per_scan": np.r_[0, false] / scans if scans else NAN,
        }
    )


def froc_score(points: pd.DataFrame, rates: Sequence[float] = FROC_RATES) -> float:
    """Mean of the highest sensitivities at up to 1/8, ..., 8 false components a scan (Setio et al., MedIA 2017;42:1)."""
    best = [points.loc[points["false_per_scan"] <= rate, "sensitivity"].max() for rate in rates]
    return float(np.mean(best))


def detection_table(
    rows: pd.DataFrame,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    specificity: float = SPECIFICITY,
) -> pd.DataFrame:
    """Every preset under every truth that the rows know, one line each; columns that a preset lacks are NaN.

    The tuned presets are of all cases but the tuning ones, at the `specificity` wanted on those.
    """
    given: dict[str, Any] = {"clusters": clusters, "draws": draws, "seed": seed}
    lines = []
    for truth in TRUTHS:
        if not np.isnan(truth_of(rows, truth)).all():
            lines += [pants_nnunet_volume(rows, truth, unit, **given) for unit in ("voxels", "mm3")]
            known = [column for column in MAXPROB.values() if column in rows and rows[column].notna().any()]
            lines += [rsuper_maxprob(rows, truth, column, **given) for column in known]
    for line in carried_over(rows, clusters, specificity).to_dict("records"):
        if line.pop("cases") == OTHERS:
            lines.append(line | {"positives": line["sensitivity/n"], "negatives": line["specificity/n"]})
            lines[-1].pop("set")
    if "lesion_components" in rows:
        lines.append(component_wise(rows, clusters))
        if "lesion_component_logits" in rows:
            lines[-1]["froc_score"] = froc_score(froc(rows))
    return pd.DataFrame(lines)
