"""Intervals, rates and tests of one quantity at a time. Pure functions; values that are None or NaN are left out.

An interval is returned with its estimate and the n behind it; what cannot be computed is NaN, never a guess.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

NAN = float("nan")
Labels: TypeAlias = Sequence[Any] | np.ndarray | pd.Series  # one a case
FEWEST = 5  # values below which no interval is given


class Estimate(NamedTuple):
    """A number with its interval (NaN where there is none) and how many values it rests on."""

    value: float
    low: float
    high: float
    n: int


def as_floats(values: Iterable[Any]) -> np.ndarray:
    """The values as floats; None and pandas' NA become NaN."""
    if isinstance(values, pd.Series):  # NA compares to nothing, so it has to go first
        values = values.astype(object).where(values.notna(), None)
    return np.array([NAN if value is None else float(value) for value in values], np.float64)


def numbered(labels: np.ndarray) -> np.ndarray:
    """Equal labels as equal numbers from 0."""
    return pd.factorize(labels, use_na_sentinel=False)[0]


def critical(level: float, degrees: float) -> float:
    """Two-sided critical value of Student's t."""
    return float(stats.t.ppf((1 + level) / 2, degrees))


def outermost(centers: Labels | None, clusters: Labels | None, keep: np.ndarray | None = None) -> Labels | None:
    """What counts as one in an interval: centers, whose cases are alike, if there are FEWEST; else the clusters within.

    Clusters of the outermost stage carry the variance of all stages (Cochran, Sampling Techniques 1977, 11.2). Labels of
    the cases in `keep` (n,) alone, if it is given; None where neither is known.
    """
    places, inner = (
        labels if labels is None or keep is None else np.asarray(labels, object)[keep] for labels in (centers, clusters)
    )
    return places if places is not None and len(set(places)) >= FEWEST else inner


def t_interval(
    values: Iterable[Any],
    clusters: Labels | None = None,
    fewest: int = FEWEST,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean with Student's t-interval (Student 1908), cut off at `bounds`; NaN limits below `fewest` values or clusters.

    With `clusters` (a label each, as of suspected patients) the variance is that of a ratio estimator over clusters,
    C / (C - 1) sum of squared cluster residuals / n^2 with C - 1 degrees of freedom (Cochran, Sampling Techniques 1977,
    9A.2), which is the plain t-interval where each cluster has one value.
    """
    found = as_floats(values)
    keep = ~np.isnan(found)
    found = found[keep]
    labels = np.arange(found.size) if clusters is None else numbered(np.asarray(clusters, object)[keep])
    mean = float(found.mean()) if found.size else NAN
    residuals = np.bincount(labels, weights=found - mean) if found.size else np.zeros(0)
    if residuals.size < max(fewest, 2):
        return Estimate(mean, NAN, NAN, int(found.size))
    count = residuals.size
    error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / found.size
    half = critical(level, count - 1) * error
    return Estimate(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), int(found.size))


def wilson(successes: float, n: float, level: float = 0.95) -> Estimate:
    """Proportion with Wilson's score interval (Wilson, J Am Stat Assoc 1927;22:209); all NaN where n is 0."""
    if not n:
        return Estimate(NAN, NAN, NAN, 0)
    share, z = successes / n, float(stats.norm.ppf((1 + level) / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0), round(n))


def clustered_wilson(hits: Iterable[Any], clusters: Labels, level: float = 0.95) -> Estimate:
    """Proportion of true values with Wilson's interval at the effective sample size of clustered cases.

    n_eff = p (1 - p) / variance, the variance over clusters as in `t_interval`, never above n, times the squared ratio of
    Student's critical values with n - 1 and C - 1 degrees, for the variance of few clusters is itself uncertain (Korn &
    Graubard, Survey Methodology 1998;24:193; with Wilson: Franco et al., J Surv Stat Methodol 2019;7:334). Where all agree,
    n_eff is the number of clusters.
    """
    found = as_floats(hits)
    keep = ~np.isnan(found)
    found = found[keep]
    if not found.size:
        return wilson(0, 0, level)
    effective = _effective_size(found, numbered(np.asarray(clusters, object)[keep]), level)
    return wilson(float(found.mean()) * effective, effective, level)._replace(n=int(found.size))


def _effective_size(found: np.ndarray, labels: np.ndarray, level: float) -> float:
    """As how many independent values these 0 and 1 count, whose clusters are numbered: see `clustered_wilson`."""
    share, count = float(found.mean()), int(labels.max()) + 1
    squares = float((np.bincount(labels, weights=found - share) ** 2).sum())
    if not 0 < share < 1 or count < 2 or not squares:
        return count
    variance = count / (count - 1) * squares / found.size**2
    uncertain = critical(level, found.size - 1) / critical(level, count - 1)
    return min(share * (1 - share) / variance, found.size) * uncertain**2


def sensitivity_specificity(
    present: Iterable[Any],
    predicted: Iterable[Any],
    clusters: Labels | None = None,
    centers: Labels | None = None,
    level: float = 0.95,
) -> tuple[Estimate, Estimate]:
    """Share of positives that are predicted, and of negatives that are not, with Wilson's intervals.

    The intervals count what is `outermost` among the positives, and among the negatives. Cases whose truth is None or NaN
    are left out. A prediction that is None is a failure and counts against the system on both sides: a miss where the
    lesion is present, a false alarm where it is not (intention to diagnose: Schuetz et al., BMJ 2012;345:e6717).
    """
    truth, right = _judged(present, predicted)
    parts = []
    for side in (truth == 1, truth == 0):
        labels = outermost(centers, clusters, side)
        if labels is None:
            parts.append(wilson(float(right[side].sum()), int(side.sum()), level))
        else:
            parts.append(clustered_wilson(right[side], labels, level))
    return parts[0], parts[1]


def _judged(present: Iterable[Any], predicted: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Truth (1, 0, NaN) and whether the prediction is right (1 or 0; one that is missing never is), each (n,)."""
    truth, found = as_floats(present), as_floats(predicted)
    return truth, np.where(np.isnan(found), 0.0, found == truth)


def predictive_values(
    present: Iterable[Any],
    predicted: Iterable[Any],
    prevalence: float,
    clusters: Labels | None = None,
    centers: Labels | None = None,
    level: float = 0.95,
) -> tuple[Estimate, Estimate]:
    """PPV and NPV at a stated prevalence, with logit intervals by the delta method; predictions as above.

    Mercaldo, Lau & Zhou, Stat Med 2007;26:2170. With clusters (or centers, if `outermost`) the variance is that of the
    linearized logits summed within them, C / (C - 1) sum of squares (Binder, Int Stat Rev 1983;51:279), so that it knows
    that cases of a center are alike and how sensitivity and specificity go together, but never below that of independent
    cases; t of C - 1 degrees. Where sensitivity or specificity is 0 or 1 the limits are Mercaldo's with adjusted counts
    (z^2 / 2 added to each cell), at the effective sizes of `clustered_wilson`; the estimates are the raw ones.
    """
    truth, right = _judged(present, predicted)
    known, sides = ~np.isnan(truth), (truth == 1, truth == 0)
    n = int(known.sum())
    if not sides[0].any() or not sides[1].any():
        return (Estimate(NAN, NAN, NAN, n),) * 2
    shares = tuple(float(right[side].mean()) for side in sides)
    labels = outermost(centers, clusters, known)
    if all(0 < share < 1 for share in shares):
        given = (right[known], truth[known] == 1, shares)
        logits, errors = _logits(shares, prevalence), np.maximum(_linear_errors(*given, labels), _linear_errors(*given, None))
        degrees = math.inf if labels is None else len(set(labels)) - 1
    else:
        within = [outermost(centers, clusters, side) for side in sides]
        logits, errors = _mercaldo_adjusted([right[side] for side in sides], within, prevalence, level)
        degrees = math.inf
    half = [critical(level, degrees) * error if degrees else NAN for error in errors]
    lows, highs = ([1 / (1 + math.exp(-(logit + way * h))) for logit, h in zip(logits, half, strict=True)] for way in (-1, 1))
    ppv, npv = (Estimate(*each, n) for each in zip(_predictive(shares, prevalence), lows, highs, strict=True))
    return ppv, npv


def _logits(shares: Sequence[float], prevalence: float) -> tuple[float, float]:
    """Logits of PPV and NPV from sensitivity and specificity between 0 and 1."""
    (sensitivity, specificity), odds = shares, prevalence / (1 - prevalence)
    return math.log(sensitivity * odds / (1 - specificity)), math.log(specificity / ((1 - sensitivity) * odds))


def _linear_errors(
    right: np.ndarray, positive: np.ndarray, shares: Sequence[float], labels: Labels | None
) -> tuple[float, float]:
    """Standard errors of these logits: each case's share in them, summed within clusters, squared and summed."""
    sizes = np.where(positive, positive.sum(), (~positive).sum())
    apart, (sensitivity, specificity) = (right - np.where(positive, *shares)) / sizes, shares
    each = numbered(np.asarray(labels, object)) if labels is not None else np.arange(right.size)
    count = int(each.max()) + 1
    factor = 1.0 if labels is None else count / max(count - 1, 1)
    slopes = ((1 / sensitivity, 1 / (1 - specificity)), (1 / (1 - sensitivity), 1 / specificity))
    ppv, npv = (
        math.sqrt(factor * float((np.bincount(each, apart * np.where(positive, *slope)) ** 2).sum())) for slope in slopes
    )
    return ppv, npv


def _mercaldo_adjusted(
    right: Sequence[np.ndarray], within: Sequence[Labels | None], prevalence: float, level: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Logits of PPV and NPV and their errors with z^2 / 2 added to each cell: right and wrong, with a lesion and without."""
    added = critical(level, math.inf) ** 2 / 2
    cells = []
    for side, labels in zip(right, within, strict=True):
        size = side.size if labels is None else _effective_size(side, numbered(np.asarray(labels, object)), level)
        cells.append((float(side.mean()) * size + added, float(1 - side.mean()) * size + added))
    (hits, misses), (clears, alarms) = cells
    sensitivity, specificity = hits / (hits + misses), clears / (clears + alarms)
    ppv = math.sqrt((1 - sensitivity) / hits + specificity / alarms)
    npv = math.sqrt(sensitivity / misses + (1 - specificity) / clears)
    return _logits((sensitivity, specificity), prevalence), (ppv, npv)


def _predictive(shares: Sequence[float], prevalence: float) -> tuple[float, float]:
    sensitivity, specificity = shares
    hits, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    clears, misses = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    return (hits / (hits + alarms) if hits + alarms else NAN, clears / (clears + misses) if clears + misses else NAN)


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Family-wise adjusted p values, in the given order (Holm, Scand J Stat 1979;6:65). NaN stays NaN, uncounted."""
    return _adjusted(p_values, lambda ordered: np.maximum.accumulate(ordered * np.arange(ordered.size, 0, -1)))


def benjamini_hochberg(p_values: Iterable[float]) -> np.ndarray:
    """Adjusted p values of the false discovery rate, in the given order (J R Stat Soc B 1995;57:289). NaN stays NaN."""
    return _adjusted(
        p_values,
        lambda ordered: np.minimum.accumulate((ordered * ordered.size / np.arange(1, ordered.size + 1))[::-1])[::-1],
    )


def _adjusted(p_values: Iterable[float], of_ordered: Any) -> np.ndarray:
    found = as_floats(p_values)
    adjusted = np.full(found.size, NAN)
    order = np.argsort(found, kind="stable")[: int((~np.isnan(found)).sum())]  # NaN sorts last
    adjusted[order] = np.minimum(of_ordered(found[order]), 1.0)
    return adjusted


class McNemar(NamedTuple):
    """Discordant pairs, and the exact two-sided p value that both kinds are equally likely."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Iterable[Any], second: Iterable[Any]) -> McNemar:
    """Exact McNemar test of two paired binary outcomes, as hits of two models on the same positives.

    McNemar, Psychometrika 1947;12:153; exact by the binomial distribution of discordant pairs. Pairs with a None or NaN
    are left out; p is 1 without discordant pairs.
    """
    one, two = as_floats(first), as_floats(second)
    whole = ~np.isnan(one) & ~np.isnan(two)
    only_first = int((whole & (one == 1) & (two == 0)).sum())
    only_second = int((whole & (one == 0) & (two == 1)).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)


def brier(present: Iterable[Any], probabilities: Iterable[Any], clusters: Labels | None = None) -> Estimate:
    """Mean squared difference of probability and truth (Brier, Mon Weather Rev 1950;78:1) with `t_interval`'s limits."""
    return t_interval((as_floats(probabilities) - as_floats(present)) ** 2, clusters, bounds=(0, 1))


class Calibration(NamedTuple):
    """Intercept with the slope held at 1 (0 is right), slope (1 is right), each with its interval."""

    intercept: Estimate
    slope: Estimate


def calibration(
    present: Iterable[Any], logits: Iterable[Any], clusters: Labels | None = None, level: float = 0.95
) -> Calibration:
    """Logistic recalibration of logits: calibration in the large, and the slope of a model with its own intercept.

    Cox, Biometrika 1958;45:562; Van Calster et al., J Clin Epidemiol 2016;74:167 (weak calibration). Wald intervals, with
    `clusters` robust to them (Liang & Zeger, Biometrika 1986;73:13; times C / (C - 1) (n - 1) / (n - k)). NaN where one class
    is missing or the classes are separated, so that no maximum exists.
    """
    truth, score = as_floats(present), as_floats(logits)
    whole = ~np.isnan(truth) & np.isfinite(score)
    truth, score = truth[whole], score[whole]
    labels = None if clusters is None else numbered(np.asarray(clusters, object)[whole])
    ones = np.ones((truth.size, 1))
    large = _logistic(ones, truth, score, labels, level)
    both = _logistic(np.column_stack([ones, score]), truth, np.zeros_like(score), labels, level)
    return Calibration(large[0], both[1])


def _logistic(
    design: np.ndarray, truth: np.ndarray, offset: np.ndarray, labels: np.ndarray | None, level: float
) -> list[Estimate]:
    """Maximum-likelihood coefficients by Newton's method, with Wald intervals; NaN where there is no maximum."""
    nothing = [Estimate(NAN, NAN, NAN, int(truth.size))] * design.shape[1]
    if not truth.size or truth.min() == truth.max():
        return nothing
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-np.clip(design @ beta + offset, -500, 500)))
        information = design.T @ (design * (chance * (1 - chance))[:, None])
        if np.linalg.cond(information) > 1e12:
            return nothing
        step = np.linalg.solve(information, design.T @ (truth - chance))
        beta = beta + step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            covariance = np.linalg.inv(information)
            if labels is not None:
                covariance = _robust(covariance, design * (truth - chance)[:, None], labels)
            half = stats.norm.ppf((1 + level) / 2) * np.sqrt(np.diag(covariance))
            return [Estimate(float(b), float(b - h), float(b + h), int(truth.size)) for b, h in zip(beta, half, strict=True)]
    return nothing


def _robust(bread: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sandwich covariance from each case's score (n, k), summed within clusters; NaN with one cluster."""
    (n, k), count = scores.shape, int(labels.max()) + 1
    if count < 2 or n <= k:
        return np.full((k, k), NAN)
    sums = np.zeros((count, k))
    np.add.at(sums, labels, scores)
    return bread @ sums.T @ sums @ bread * count / (count - 1) * (n - 1) / (n - k)
