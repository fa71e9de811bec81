"""Lesion detection from rows of cases: truths, thresholds and operating points, lesion components and FROC.

A case without a prediction counts against the system on both sides: a miss where the lesion is present, a false alarm
where it is not (intention to diagnose: Schuetz et al., BMJ 2012;345:e6717). Truth is by "mask" (the reference has a
lesion voxel) or by "flag" (the metadata say so); the two differ in some scans, so every result names its truth.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pants_dist.resampling import BLOCK, DRAWS, nest, percentile_interval, resampled_weights
from pants_dist.stats import (
    NAN,
    Estimate,
    Labels,
    as_floats,
    clustered_wilson,
    outermost,
    sensitivity_specificity,
    t_interval,
)

TRUTHS = {"mask": "lesion_present", "flag": "tumor_flag"}
GRID = np.r_[0:100, 100:1000:10, 1000:10_000:100, 10_000:100_000:1000]  # 0 to 99,000: 370 thresholds
SPECIFICITY = 0.90
TUNING = "val_seen"  # the split of seen tuning cases
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


def tuned_threshold(rows: pd.DataFrame, truth: str, column: str, specificity: float = SPECIFICITY) -> float:
    """The threshold whose specificity on seen tuning cases (split val_seen) is nearest; of equally near ones the lowest.

    Of volumes among GRID, of logits among all that the tuning cases have. NaN where there is no tuning case without a lesion.
    """
    tuning = rows[rows["split"] == TUNING]
    present = truth_of(tuning, truth)
    amounts = amounts_of(tuning, column, present)
    choices = GRID if column.startswith("predicted_") else observed_thresholds(amounts)
    return threshold_at(curve(present, amounts, choices), specificity)


def operating_point(
    present: np.ndarray, amounts: np.ndarray, threshold: float, clusters: Labels | None = None, centers: Labels | None = None
) -> tuple[Estimate, Estimate]:
    """Sensitivity and specificity at a threshold, with the intervals of `stats.sensitivity_specificity`."""
    predicted = (amounts > threshold).astype(float)
    truth = np.where(np.isnan(amounts) | np.isnan(threshold), NAN, present)
    return sensitivity_specificity(truth, predicted, clusters, centers)


def named(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as columns: name, name/low, name/high, name/n."""
    return {
        name: estimate.value,
        f"{name}/low": estimate.low,
        f"{name}/high": estimate.high,
        f"{name}/n": estimate.n,
    }


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


def component_wise(rows: pd.DataFrame, clusters: Labels | None = None, centers: Labels | None = None) -> dict[str, Any]:
    """Share of lesion components hit (26-neighborhood, one-to-one, IoU >= 0.1) and false components a scan.

    Interval of the share: Wilson at the effective size of components clustered in what is `stats.outermost`, of the rate:
    t over the same. Scans without an annotated lesion structure are left out; of a failure every component is missed, and
    no false one is counted.
    """
    lost = failed(rows)
    components = as_floats(rows["lesion_components"])
    hit = np.where(lost, 0.0, as_floats(rows["lesion_components_hit"]))
    false = np.where(lost, 0.0, as_floats(rows["lesion_components_false"]))
    keep = ~np.isnan(components)
    labels = np.arange(len(rows)) if clusters is None else np.asarray(clusters, object)
    counts, hits = components[keep].astype(int), hit[keep].astype(int)
    with_any = keep & (components > 0)
    places = np.repeat(np.asarray(outermost(centers, labels, with_any), object), components[with_any].astype(int))
    found = np.concatenate([np.arange(n) < h for n, h in zip(counts, hits, strict=True)]) if keep.any() else counts
    head = {"preset": "component_wise", "truth": "mask", "failures": int(lost[keep].sum())}
    rate = t_interval(false[keep], outermost(centers, labels, keep), bounds=(0.0, np.inf))
    return head | named("sensitivity", clustered_wilson(found, places)) | named("false_per_scan", rate)


class Marks(NamedTuple):
    """Predicted components (m,) from strict to lax, and what FROC counts of n scans.

    `scan` numbers each mark's scan, `last` are the places of the last mark of each logit.
    """

    logits: np.ndarray
    matched: np.ndarray
    scan: np.ndarray
    last: np.ndarray
    lesions: np.ndarray  # (n,) of each scan


def marks_of(rows: pd.DataFrame) -> tuple[Marks, np.ndarray]:
    """Predicted components of the scans whose lesions are annotated, and which rows (n,) these are; failures have none."""
    components, lost = as_floats(rows["lesion_components"]), failed(rows)
    keep = ~np.isnan(components)
    part = rows[keep & ~lost]
    logits = np.array([logit for case in part["lesion_component_logits"] for logit in case], float)
    matched = np.array([hit for case in part["lesion_component_matched"] for hit in case], bool)
    scan = np.repeat(np.flatnonzero(~lost[keep]), [len(case) for case in part["lesion_component_logits"]])
    order = np.argsort(-logits, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(logits[order]) != 0, True]) if logits.size else np.zeros(0, int)
    return Marks(logits[order], matched[order], scan[order], last, components[keep]), keep


def froc(rows: pd.DataFrame) -> pd.DataFrame:
    """Component-wise FROC: threshold, sensitivity, false_per_scan, from strict to lax.

    A predicted component counts from its largest logit on; which lesion it matches is fixed by its whole mask (Bandos et
    al., Biometrics 2009;65:247 for the curve). Rows need `lesion_component_logits` and `lesion_component_matched`.
    """
    marks, _ = marks_of(rows)
    total, scans = marks.lesions.sum(), marks.lesions.size
    hits, false = np.cumsum(marks.matched)[marks.last], np.cumsum(~marks.matched)[marks.last]
    return pd.DataFrame(
        {
            "threshold": np.r_[np.inf, marks.logits[marks.last]],
            "sensitivity": np.r_[0, hits] / total if total else NAN,
            "false_per_scan": np.r_[0, false] / scans if scans else NAN,
        }
    )


def froc_score(
    rows: pd.DataFrame,
    clusters: Labels | None = None,
    centers: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    rates: Sequence[float] = FROC_RATES,
) -> Estimate:
    """Mean of the highest sensitivities at up to 1/8, ..., 8 false components a scan (Setio et al., MedIA 2017;42:1).

    Interval: percentiles of a bootstrap of centers (none given: all scans are of one), then clusters, each resample with a
    curve of its own; those without a lesion are left out. n is the number of scans.
    """
    marks, keep = marks_of(rows)
    scans = int(keep.sum())
    if not marks.lesions.sum():
        return Estimate(NAN, NAN, NAN, scans)
    places = np.zeros(len(rows), int) if centers is None else centers
    weights = resampled_weights(nest(places, clusters, keep), draws, np.random.default_rng(seed))
    step = max(BLOCK // max(marks.logits.size, 1), 1)
    found = [_froc_scores(marks, weights[start : start + step], rates) for start in range(0, draws, step)]
    value = float(_froc_scores(marks, np.ones((1, scans), int), rates)[0])
    return Estimate(value, *percentile_interval(np.concatenate(found)), scans)


def _froc_scores(marks: Marks, weights: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """The score where scan i counts weights[draw, i] times; (draws,), NaN without a lesion."""
    draws, times, lesions = len(weights), weights[:, marks.scan], weights @ marks.lesions
    hits = np.cumsum(times * marks.matched, axis=1)[:, marks.last]
    false = np.cumsum(times * ~marks.matched, axis=1)[:, marks.last] / weights.sum(axis=1)[:, None]
    found = np.divide(hits, lesions[:, None], out=np.full(hits.shape, NAN), where=lesions[:, None] > 0)
    sensitivity = np.column_stack([np.where(lesions > 0, 0.0, NAN), found])
    return np.mean([sensitivity[np.arange(draws), (false <= rate).sum(axis=1)] for rate in rates], axis=0)
