"""Areas under ROC curves: of independent cases, of clustered ones, and within centers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pants_dist.resampling import DRAWS, nest, percentile_interval, resampled_weights, two_sided_p
from pants_dist.stats import NAN, Estimate, Labels, as_floats

BLOCK = 4_000_000  # weights summed at once


def delong(present: Iterable[Any], scores: Sequence[Iterable[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of several scores of the same cases and their covariance, shapes (models,) and (models, models).

    DeLong, DeLong & Clarke-Pearson, Biometrics 1988;44:837, by midranks (Sun & Xu, IEEE Signal Process Lett
    2014;21:1389); ties count half. Cases with an unknown truth or any unknown score are left out. NaN where a class is
    missing; the covariance is NaN where a class has one case.
    """
    truth, table = as_floats(present), np.stack([as_floats(score) for score in scores])
    whole = ~np.isnan(truth) & ~np.isnan(table).any(axis=0)
    positive, negative = table[:, whole & (truth == 1)], table[:, whole & (truth == 0)]
    m, n, models = positive.shape[1], negative.shape[1], len(table)
    if not m or not n:
        return np.full(models, NAN), np.full((models, models), NAN)
    ranks = stats.rankdata(np.hstack([positive, negative]), axis=1)
    above = (ranks[:, :m] - stats.rankdata(positive, axis=1)) / n  # share of negatives below each positive
    below = 1 - (ranks[:, m:] - stats.rankdata(negative, axis=1)) / m  # share of positives above each negative
    if min(m, n) < 2:
        return above.mean(axis=1), np.full((models, models), NAN)
    covariance = np.cov(above).reshape(models, models) / m + np.cov(below).reshape(models, models) / n
    return above.mean(axis=1), covariance


def auc(present: Iterable[Any], scores: Iterable[Any], level: float = 0.95) -> Estimate:
    """AUC with DeLong's interval on the logit scale (Pepe 2003, 5.2.5), for independent cases.

    The value is the Mann-Whitney probability with ties as half. At 0 or 1 the variance is 0 and the limits are NaN.
    """
    truth, score = as_floats(present), as_floats(scores)
    (area,), covariance = delong(truth, [score])
    n, error = int((~np.isnan(truth) & ~np.isnan(score)).sum()), float(np.sqrt(covariance[0, 0]))
    if not 0 < area < 1 or not error > 0:
        return Estimate(float(area), NAN, NAN, n)
    half = float(stats.norm.ppf((1 + level) / 2)) * error / (area * (1 - area))
    logit = float(np.log(area / (1 - area)))
    return Estimate(float(area), 1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit)), n)


class Difference(NamedTuple):
    """A difference of two AUCs with its interval and two-sided p value."""

    value: float
    low: float
    high: float
    p: float


def delong_difference(present: Iterable[Any], first: Iterable[Any], second: Iterable[Any], level: float = 0.95) -> Difference:
    """AUC of the first score less that of the second on the same independent cases; DeLong's z test."""
    areas, covariance = delong(present, [first, second])
    value = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if np.isnan(variance):
        return Difference(value, NAN, NAN, NAN)
    error = float(np.sqrt(max(variance, 0)))
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    p = float(2 * stats.norm.sf(abs(value) / error)) if error else (1.0 if value == 0 else 0.0)
    return Difference(value, value - half, value + half, p)


def weighted_areas(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC under each row of case weights (draws, n), ties as half; NaN where a class has no weight."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if scores.size else np.zeros(0, int)
    areas = np.full(len(weights), NAN)
    step = max(BLOCK // max(scores.size, 1), 1)
    for start in range(0, len(weights) if scores.size else 0, step):
        part = weights[start : start + step, order].astype(np.float64)
        hits = np.add.reduceat(part * positive[order], first, axis=1)
        others = np.add.reduceat(part * ~positive[order], first, axis=1)
        pairs = (hits * (np.cumsum(others, axis=1) - others / 2)).sum(axis=1)
        total = hits.sum(axis=1) * others.sum(axis=1)
        areas[start : start + step] = np.divide(pairs, total, out=np.full(len(part), NAN), where=total > 0)
    return areas


def clustered_auc(
    present: Iterable[Any],
    scores: Iterable[Any],
    centers: Labels,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Pooled AUC with the percentile interval of a bootstrap of centers, then clusters; for cases that are not alone.

    For one center give every case the same center. Resamples without one of the classes are left out.
    """
    (area,), (found,), n = _resampled_areas(present, [scores], centers, clusters, draws, seed)
    return Estimate(area, *percentile_interval(found, level), n)


def clustered_difference(
    present: Iterable[Any],
    first: Iterable[Any],
    second: Iterable[Any],
    centers: Labels,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """AUC of the first score less that of the second on the same cases, both in the same resamples; two-sided."""
    areas, found, _ = _resampled_areas(present, [first, second], centers, clusters, draws, seed)
    apart = found[0] - found[1]
    return Difference(areas[0] - areas[1], *percentile_interval(apart, level), two_sided_p(apart))


def _resampled_areas(
    present: Iterable[Any],
    scores: Sequence[Iterable[Any]],
    centers: Labels,
    clusters: Labels | None,
    draws: int,
    seed: int,
) -> tuple[list[float], list[np.ndarray], int]:
    """AUC of each score, its resamples, and the number of cases with a truth and all scores."""
    truth, tables = as_floats(present), [as_floats(score) for score in scores]
    whole = ~np.isnan(truth) & ~np.isnan(np.stack(tables)).any(axis=0)
    groups = nest(centers, clusters, whole)
    positive, once = truth[whole] == 1, np.ones((1, int(whole.sum())))
    if not once.size:
        return [NAN] * len(tables), [np.zeros(0)] * len(tables), 0
    weights = resampled_weights(groups, draws, np.random.default_rng(seed))
    areas = [float(weighted_areas(positive, table[whole], once)[0]) for table in tables]
    return areas, [weighted_areas(positive, table[whole], weights) for table in tables], int(whole.sum())


class AdjustedAuc(NamedTuple):
    """Center-adjusted AUC, and `centers`: center, positives, negatives, auc and its weight (0 where it has no AUC)."""

    estimate: Estimate
    centers: pd.DataFrame


def center_adjusted_auc(
    present: Iterable[Any],
    scores: Iterable[Any],
    centers: Labels,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> AdjustedAuc:
    """Mean of AUCs within centers, weighted by each center's share of the positives (Janes & Pepe, Biometrika 2009;96:371).

    Each positive is compared with the negatives of its own center only, so a center's prevalence cannot help. Centers
    without positives or without negatives have no weight and are in the table to be seen. Interval: bootstrap of centers,
    then clusters.
    """
    value, resamples, table, size = _adjusted(as_floats(present), as_floats(scores), centers, clusters, draws, seed)
    return AdjustedAuc(Estimate(value, *percentile_interval(resamples, level), size), table)


def center_adjusted_difference(
    present: Iterable[Any],
    first: Iterable[Any],
    second: Iterable[Any],
    centers: Labels,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Center-adjusted AUC of the first score less that of the second on the same cases, both in the same resamples."""
    truth, one, other = as_floats(present), as_floats(first), as_floats(second)
    truth = np.where(np.isnan(one) | np.isnan(other), NAN, truth)
    found = [_adjusted(truth, score, centers, clusters, draws, seed) for score in (one, other)]
    apart = found[0][1] - found[1][1]
    return Difference(found[0][0] - found[1][0], *percentile_interval(apart, level), two_sided_p(apart))


def _adjusted(
    truth: np.ndarray, score: np.ndarray, centers: Labels, clusters: Labels | None, draws: int, seed: int
) -> tuple[float, np.ndarray, pd.DataFrame, int]:
    """Center-adjusted AUC, its resamples, the table of centers, and the number of cases."""
    whole = ~np.isnan(truth) & ~np.isnan(score)
    groups = nest(centers, clusters, whole)
    positive, score = truth[whole] == 1, score[whole]
    size = int(whole.sum())
    weights = resampled_weights(groups, draws, np.random.default_rng(seed)) if size else np.zeros((0, 0), int)
    total, weighted, rows = np.zeros(draws), np.zeros(draws), []
    for name, own in zip(groups.names, groups.members, strict=True):
        hits, area = positive[own], float(weighted_areas(positive[own], score[own], np.ones((1, own.size)))[0])
        rows.append({"center": name, "positives": int(hits.sum()), "negatives": int((~hits).sum()), "auc": area})
        areas = weighted_areas(hits, score[own], weights[:, own])
        share = np.where(np.isnan(areas), 0, weights[:, own] @ hits)
        total, weighted = total + share, weighted + share * np.nan_to_num(areas)
    table = pd.DataFrame(rows, columns=["center", "positives", "negatives", "auc"])
    scored = table["positives"].where(table["auc"].notna(), 0)
    table["weight"] = scored / scored.sum() if scored.sum() else 0.0
    value = float((table["weight"] * table["auc"]).sum()) if scored.sum() else NAN
    resamples = np.divide(weighted, total, out=np.full(draws, NAN), where=total > 0)
    return value, resamples, table, size
