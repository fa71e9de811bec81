"""How much worse a model is on centers it has not seen, how much centers differ, and which one is worst.

The unit is the center: a center's mean counts once, however many cases it has.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import integrate, optimize, stats

from pants_dist.resampling import DRAWS, Nest, cluster_sums, nest, percentile_interval, resampled_means, two_sided_p
from pants_dist.stats import NAN, Labels, as_floats, critical, t_interval

CENTERS_FOR_BOOTSTRAP = 20  # centers a side below which a bootstrap of centers is too narrow


class Gap(NamedTuple):
    """A difference of center means, its interval and p value, by `method`, from so many centers and cases."""

    value: float
    low: float
    high: float
    p: float
    method: str
    seen_centers: int
    held_out_centers: int
    cases: int


def descriptive_gap(
    values: Iterable[Any],
    centers: Labels,
    seen: Iterable[Any],
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Gap:
    """Mean of seen centers less mean of held-out centers, over center means.

    Below 20 centers on either side: Welch's t (Biometrika 1947;34:28) on center means. From 20 on: percentile interval of
    a bootstrap of centers, then clusters, each side on its own. NaN limits where a side has one center.
    """
    found, side = as_floats(values), np.asarray(list(seen), bool)
    groups, parts = [], []
    for wanted in (True, False):
        keep = ~np.isnan(found) & (side == wanted)
        groups.append(nest(centers, clusters, keep))
        parts.append(found[keep])
    means = [_center_means(part, group) for part, group in zip(parts, groups, strict=True)]
    counts = (means[0].size, means[1].size, parts[0].size + parts[1].size)
    if min(counts[:2]) == 0:
        return Gap(NAN, NAN, NAN, NAN, "none", *counts)
    value = float(means[0].mean() - means[1].mean())
    if min(counts[:2]) < CENTERS_FOR_BOOTSTRAP:
        return Gap(value, *_welch(means[0], means[1], level), "welch", *counts)
    rng = np.random.default_rng(seed)
    first, second = (resampled_means(part, group, draws, rng) for part, group in zip(parts, groups, strict=True))
    low, high = percentile_interval(first - second, level)
    return Gap(value, low, high, two_sided_p(first - second), "bootstrap", *counts)


def _center_means(values: np.ndarray, groups: Nest) -> np.ndarray:
    return np.array([values[rows].mean() for rows in groups.members])


def _welch(first: np.ndarray, second: np.ndarray, level: float) -> tuple[float, float, float]:
    """Limits and p value of the difference of two means of unequal variance."""
    if min(first.size, second.size) < 2:
        return NAN, NAN, NAN
    a, b = first.var(ddof=1) / first.size, second.var(ddof=1) / second.size
    difference, error = float(first.mean() - second.mean()), math.sqrt(a + b)
    if error == 0:
        return difference, difference, 1.0 if difference == 0 else 0.0
    degrees = (a + b) ** 2 / (a**2 / (first.size - 1) + b**2 / (second.size - 1))
    half = critical(level, degrees) * error
    return difference - half, difference + half, float(2 * stats.t.sf(abs(difference) / error, degrees))


def paired_gap(
    first: Iterable[Any],
    second: Iterable[Any],
    centers: Labels | None,
    clusters: Labels | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Gap:
    """Mean over centers of the mean of first - second on the same cases; two-sided.

    The generalization gap where `first` is scored by models that were trained with the case's center and `second` by
    models of equal training size without it; also one model against another. Below 20 centers a t-test of center means
    (Student 1908), from 20 on the bootstrap of centers and clusters. Cases where either is None or NaN are
    left out. Without `centers` each cluster is one: the t-test of `stats.t_interval`.
    """
    difference = as_floats(first) - as_floats(second)
    keep = ~np.isnan(difference)
    if centers is None:
        return _unplaced(difference[keep], None if clusters is None else np.asarray(clusters, object)[keep], level)
    groups = nest(centers, clusters, keep)
    means, counts = _center_means(difference[keep], groups), (len(groups.names), len(groups.names), int(keep.sum()))
    if not means.size:
        return Gap(NAN, NAN, NAN, NAN, "none", *counts)
    value = float(means.mean())
    if means.size < CENTERS_FOR_BOOTSTRAP:
        return Gap(value, *_one_sample(means, level), "paired t", *counts)
    resamples = resampled_means(difference[keep], groups, draws, np.random.default_rng(seed))
    return Gap(value, *percentile_interval(resamples, level), two_sided_p(resamples), "bootstrap", *counts)


def _unplaced(difference: np.ndarray, clusters: Labels | None, level: float) -> Gap:
    """The gap of cases whose centers nobody names: clusters are all that is known to be alike."""
    found = t_interval(difference, clusters, fewest=2, level=level)
    count = difference.size if clusters is None else len(set(np.asarray(clusters, object).tolist()))
    if count < 2:
        return Gap(found.value, NAN, NAN, NAN, "none", 0, 0, found.n)
    error = (found.high - found.low) / 2 / critical(level, count - 1)
    p = float(2 * stats.t.sf(abs(found.value) / error, count - 1)) if error else (1.0 if found.value == 0 else 0.0)
    return Gap(found.value, found.low, found.high, p, "t over cases", 0, 0, found.n)


def _one_sample(means: np.ndarray, level: float) -> tuple[float, float, float]:
    if means.size < 2:
        return NAN, NAN, NAN
    value, error = float(means.mean()), float(means.std(ddof=1) / math.sqrt(means.size))
    if error == 0:
        return value, value, 1.0 if value == 0 else 0.0
    half = critical(level, means.size - 1) * error
    return value - half, value + half, float(2 * stats.t.sf(abs(value) / error, means.size - 1))


def center_estimates(values: Iterable[Any], centers: Labels, clusters: Labels | None = None) -> pd.DataFrame:
    """One row a center with any value: center, n, clusters, mean and variance of that mean.

    The variance of a case is pooled over centers (weights: clusters less one), so that a center of three equal cases is
    not taken for an exact one; it counts clusters as `stats.t_interval` does. NaN where no center has two clusters.
    """
    found, keep = as_floats(values), ~np.isnan(as_floats(values))
    groups = nest(centers, clusters, keep)
    means = _center_means(found[keep], groups)
    residuals, _ = cluster_sums(found[keep] - means[groups.center], groups)
    sizes = np.array([rows.size for rows in groups.members])
    counts = np.array([own.size for own in groups.clusters_of])
    # (clusters - 1) * variance of one case, center by center
    spread = sum(
        own.size * float((residuals[own] ** 2).sum()) / n
        for own, n in zip(groups.clusters_of, sizes, strict=True)
        if own.size > 1
    )
    pooled = spread / (counts - 1).sum() if (counts > 1).any() else NAN
    return pd.DataFrame({"center": groups.names, "n": sizes, "clusters": counts, "mean": means, "variance": pooled / sizes})


class RandomEffects(NamedTuple):
    """Mean over a population of centers, its interval, the interval for a new center, and the spread of centers."""

    mean: float
    low: float
    high: float
    prediction_low: float
    prediction_high: float
    tau2: float
    error: float
    centers: int


def random_effects(means: Iterable[Any], variances: Iterable[Any], level: float = 0.95) -> RandomEffects:
    """Normal random-effects model of center means: REML, Hartung-Knapp interval, prediction interval.

    tau^2 by REML (Viechtbauer, J Educ Behav Stat 2005;30:261); interval with k - 1 degrees of freedom
    (Hartung & Knapp, Stat Med 2001;20:3875); prediction with k - 2 (Higgins, Thompson & Spiegelhalter, J R Stat Soc A
    2009;172:137; Partlett & Riley, Stat Med 2017;36:301). NaN limits below 2 centers, NaN prediction below 3.
    """
    y, v = _usable(means, variances)
    if not y.size:
        return RandomEffects(NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0)
    tau2 = _reml(y, v)
    weights = 1 / (v + tau2)
    mean = float((weights * y).sum() / weights.sum())
    if y.size < 2:
        return RandomEffects(mean, NAN, NAN, NAN, NAN, tau2, NAN, 1)
    error = math.sqrt(float((weights * (y - mean) ** 2).sum() / ((y.size - 1) * weights.sum())))
    half = critical(level, y.size - 1) * error
    reach = critical(level, y.size - 2) * math.hypot(math.sqrt(tau2), error) if y.size > 2 else NAN
    return RandomEffects(mean, mean - half, mean + half, mean - reach, mean + reach, tau2, error, int(y.size))


def _usable(means: Iterable[Any], variances: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    y, v = as_floats(means), as_floats(variances)
    keep = ~np.isnan(y) & (v > 0)
    return y[keep], v[keep]


def _reml(y: np.ndarray, v: np.ndarray) -> float:
    """tau^2 where the restricted likelihood is flat; 0 where it only falls."""
    if y.size < 2 or _slope(0.0, y, v) <= 0:
        return 0.0
    high = float(y.var(ddof=1) + v.max())
    while _slope(high, y, v) > 0:
        high *= 2
    return float(optimize.brentq(_slope, 0.0, high, args=(y, v), xtol=1e-15, rtol=1e-13))


def _slope(tau2: float, y: np.ndarray, v: np.ndarray) -> float:
    """Twice the derivative of the restricted log-likelihood by tau^2."""
    weights = 1 / (v + tau2)
    residuals = y - (weights * y).sum() / weights.sum()
    return float(((weights * residuals) ** 2).sum() - weights.sum() + (weights**2).sum() / weights.sum())


class Worst(NamedTuple):
    """The worst center: as observed, shrunken with its interval, and what the worst of equal centers would be.

    `chance`, `chance_low`, `chance_high`: expectation and limits of the lowest observed mean if all centers were equal.
    `p`: probability of one as low as the lowest observed mean under that.
    """

    center: Any
    observed: float
    shrunken: float
    low: float
    high: float
    lowest_observed: float
    chance: float
    chance_low: float
    chance_high: float
    p: float


def shrunken_means(means: Iterable[Any], variances: Iterable[Any], level: float = 0.95) -> pd.DataFrame:
    """Empirical-Bayes estimate of each center: observed, shrunken, low, high (Morris, J Am Stat Assoc 1983;78:47).

    A center is drawn to the overall mean by tau^2 / (tau^2 + variance); the interval adds the error of the overall mean.
    Centers without a mean or with variance 0 or NaN get NaN.
    """
    y, v = as_floats(means), as_floats(variances)
    overall = random_effects(y, v)
    share = overall.tau2 / (overall.tau2 + np.where(v > 0, v, NAN))
    shrunken = overall.mean + share * (y - overall.mean)
    usable = ~np.isnan(y) & (v > 0)
    error = np.sqrt(v * share + (1 - share) ** 2 / (1 / (v[usable] + overall.tau2)).sum())
    half = stats.norm.ppf((1 + level) / 2) * error
    return pd.DataFrame({"observed": y, "shrunken": shrunken, "low": shrunken - half, "high": shrunken + half})


def worst_center(centers: Labels, means: Iterable[Any], variances: Iterable[Any], level: float = 0.95) -> Worst | None:
    """The center of the lowest shrunken mean (then observed), beside the lowest of that many equal centers by chance.

    Equal centers: independent normal means around the precision-weighted mean with the centers' own variances. None
    where fewer than two centers have a mean and a variance.
    """
    y, v = as_floats(means), as_floats(variances)
    usable = ~np.isnan(y) & (v > 0)
    if usable.sum() < 2:
        return None
    table = shrunken_means(y, v, level)
    place = int(np.lexsort((table["observed"], table["shrunken"]))[0])
    observed, shrunken, low, high = (float(value) for value in table.iloc[place])
    lowest, errors = float(y[usable].min()), np.sqrt(v[usable])
    common = float((y[usable] / v[usable]).sum() / (1 / v[usable]).sum())
    by_chance = _lowest_by_chance(common, errors, level)
    p = 1 - _all_above(lowest, common, errors)
    return Worst(list(centers)[place], observed, shrunken, low, high, lowest, *by_chance, p)


def _all_above(value: float, common: float, errors: np.ndarray) -> float:
    return float(np.exp(stats.norm.logsf((value - common) / errors).sum()))


def _lowest_by_chance(common: float, errors: np.ndarray, level: float) -> tuple[float, float, float]:
    """Expectation and limits of the minimum of independent normals around `common`."""
    far = 10 * float(errors.max())
    low, high = (
        optimize.brentq(lambda x, q=q: _all_above(x, common, errors) - (1 - q), common - far, common + far)
        for q in ((1 - level) / 2, (1 + level) / 2)
    )
    below = integrate.quad(lambda x: 1 - _all_above(x, common, errors), common - far, common, limit=200)[0]
    above = integrate.quad(lambda x: _all_above(x, common, errors), common, common + far, limit=200)[0]
    return common - below + above, float(low), float(high)
