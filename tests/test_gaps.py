import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats

from pants_dist.gaps import (
    center_estimates,
    descriptive_gap,
    paired_gap,
    random_effects,
    shrunken_means,
    worst_center,
)
from pants_dist.resampling import nest, resampled_means, resampled_weights, two_sided_p

# Colditz et al., JAMA 1994;271:698: 13 trials of BCG, cases and others of vaccinated, then of controls.
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
], float)  # fmt: skip


def bcg() -> tuple[np.ndarray, np.ndarray]:
    """Log risk ratios and their variances."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_descriptive_gap_by_hand() -> None:
    """Centers count once: seen means 0.8 and 0.6, held-out 0.5 and 0.3, so 0.3, whatever the sizes; Welch's limits."""
    values = [0.7, 0.9, 0.8, 0.8, 0.6, 0.5, 0.3, 0.2, 0.4, None]
    centers = ["A", "A", "A", "A", "B", "C", "D", "D", "D", "C"]
    gap = descriptive_gap(values, centers, [center in "AB" for center in centers])
    assert (gap.value, gap.method, gap.seen_centers, gap.held_out_centers, gap.cases) == (
        pytest.approx(0.3), "welch", 2, 2, 9,
    )  # fmt: skip
    expected = scipy_stats.ttest_ind([0.8, 0.6], [0.5, 0.3], equal_var=False)
    limits = expected.confidence_interval()
    assert (gap.low, gap.high, gap.p) == pytest.approx((limits.low, limits.high, expected.pvalue))


def test_a_gap_needs_two_centers_a_side() -> None:
    """With one center a side the difference has no interval; with none there is no difference."""
    gap = descriptive_gap([0.8, 0.5], ["A", "B"], [True, False])
    assert gap.value == pytest.approx(0.3) and math.isnan(gap.low) and math.isnan(gap.p)
    assert math.isnan(descriptive_gap([0.8], ["A"], [True]).value)


def test_paired_gap_equals_a_t_test_of_center_means() -> None:
    """Below 20 centers: SciPy's one-sample t-test of each center's mean difference; pairs with an unknown drop out."""
    rng = np.random.default_rng(0)
    centers = np.repeat(list("ABCDEF"), 7)
    first, second = rng.random(42), [*rng.random(41), None]
    gap = paired_gap(first, second, centers)
    apart = first[:41] - np.array(second[:41], float)
    means = [apart[centers[:41] == center].mean() for center in "ABCDEF"]
    expected = scipy_stats.ttest_1samp(means, 0)
    assert (gap.value, gap.p, gap.cases, gap.method) == pytest.approx((np.mean(means), expected.pvalue, 41, "paired t"))
    assert (gap.low, gap.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_paired_gap_without_centers_is_a_t_test_of_cases() -> None:
    """Nobody names the centers: SciPy's paired t-test, of patients' sums where some have several scans."""
    rng = np.random.default_rng(3)
    first, second = rng.random(30), [*rng.random(28), None, None]
    gap = paired_gap(first, second, None)
    expected = scipy_stats.ttest_rel(first[:28], np.array(second[:28], float))
    assert (gap.p, gap.low, gap.high) == pytest.approx((expected.pvalue, *expected.confidence_interval()))
    assert (gap.seen_centers, gap.cases, gap.method) == (0, 28, "t over cases")
    twice = paired_gap(np.repeat(first[:28], 2), np.repeat(np.array(second[:28], float), 2), None, np.repeat(np.arange(28), 2))
    assert (twice.p, twice.low) == pytest.approx((gap.p, gap.low))
    assert math.isnan(paired_gap([1.0], [0.5], None).p)


def simulate(rng: np.random.Generator, centers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dice of cases in clusters of two in seen and held-out centers, whose true gap is 0.1."""
    center = np.repeat(np.arange(centers), 12)
    seen = center < centers // 2
    cluster = np.arange(center.size) // 2
    values = 0.7 - 0.1 * ~seen + rng.normal(0, 0.08, centers)[center] + rng.normal(0, 0.1, center.size // 2)[cluster]
    return values + rng.normal(0, 0.05, center.size), center, seen


@pytest.mark.parametrize(("centers", "method", "rounds"), [(12, "welch", 300), (50, "bootstrap", 120)])
def test_gap_intervals_cover(centers: int, method: str, rounds: int) -> None:
    """95 % intervals hold the true gap in about 95 % of simulated studies; a bootstrap of cases alone in far fewer."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(rounds):
        values, center, seen = simulate(rng, centers)
        gap = descriptive_gap(values, center, seen, np.arange(values.size) // 2, draws=300)
        assert gap.method == method
        covered += gap.low <= 0.1 <= gap.high
        error = math.sqrt(values[seen].var() / seen.sum() + values[~seen].var() / (~seen).sum())
        naive += abs(values[seen].mean() - values[~seen].mean() - 0.1) <= 1.96 * error
    assert 0.90 <= covered / rounds <= 0.99
    assert naive / rounds < 0.8


def test_bootstrap_is_a_function_of_the_seed() -> None:
    """The same seed gives the same interval, another seed another; the interval holds the value."""
    values, center, seen = simulate(np.random.default_rng(2), 44)
    first, again, other = (descriptive_gap(values, center, seen, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.low < first.value < first.high


def test_resampling_draws_centers_then_clusters() -> None:
    """Weights come in whole centers' worth of clusters, equal within a cluster, and average to one a case."""
    centers, clusters = ["A", "A", "A", "A", "B", "B", "C"], [1, 1, 2, 2, 1, 2, 1]
    groups = nest(centers, clusters)
    weights = resampled_weights(groups, 4000, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 3]).all()
    drawn = np.stack([(weights[:, 0] + weights[:, 2]) / 2, (weights[:, 4] + weights[:, 5]) / 2, weights[:, 6]])
    assert (drawn == drawn.round()).all() and (drawn.sum(axis=0) == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)


def test_resampled_means_have_the_nested_variance() -> None:
    """Variance of the mean of k drawn centers is that of their means, plus that of their clusters, each over k."""
    values = np.array([0.0, 1.0, 4.0, 5.0, 9.0, 10.0])
    groups = nest(list("AABBCC"))
    found = resampled_means(values, groups, 40_000, np.random.default_rng(0))
    assert found.mean() == pytest.approx(values.mean(), abs=0.05)
    assert found.var() == pytest.approx((np.var([0.5, 4.5, 9.5]) + 0.25 / 2) / 3, rel=0.03)


def test_two_sided_bootstrap_p_by_hand() -> None:
    """One of 99 resamples at or below 0: 2 (1 + 1) / (99 + 1)."""
    assert two_sided_p(np.r_[-1.0, np.ones(98)]) == pytest.approx(0.04)
    assert two_sided_p(np.array([-1.0, 1.0])) == 1


def test_random_effects_equal_the_published_example() -> None:
    """BCG trials by REML with Hartung-Knapp as metafor 4 prints them: tau^2 0.3132, -0.7145 (-1.1084 to -0.3206)."""
    found = random_effects(*bcg())
    assert (found.tau2, found.mean, found.error) == pytest.approx((0.3132, -0.7145, 0.1808), abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-1.1084, -0.3206), abs=5e-5)
    reach = scipy_stats.t.ppf(0.975, 11) * math.sqrt(found.tau2 + found.error**2)
    assert (found.prediction_low, found.prediction_high) == pytest.approx((found.mean - reach, found.mean + reach))


def test_random_effects_are_the_maximum_and_hartung_knapp() -> None:
    """No other tau^2 has a higher restricted likelihood; the interval is that of weighted regression in statsmodels."""
    y, v = bcg()
    found = random_effects(y, v)

    def likelihood(tau2: float) -> float:
        weights = 1 / (v + tau2)
        mean = (weights * y).sum() / weights.sum()
        return float((np.log(weights).sum() - np.log(weights.sum()) - (weights * (y - mean) ** 2).sum()) / 2)

    assert likelihood(found.tau2) >= max(likelihood(tau2) for tau2 in np.linspace(0, 2, 4001))
    fit = sm.WLS(y, np.ones(13), weights=1 / (v + found.tau2)).fit()
    assert (found.mean, found.error) == pytest.approx((fit.params[0], fit.bse[0]))
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]))


def test_random_effects_of_alike_or_few_centers() -> None:
    """Means closer than their errors have tau^2 0; one center has a mean only, two no prediction, none nothing."""
    assert random_effects([0.50, 0.51, 0.49], [0.1, 0.1, 0.1]).tau2 == 0
    one, two = random_effects([0.5], [0.1]), random_effects([0.4, 0.6, None], [0.01, 0.01, 0.01])
    assert one.mean == 0.5 and math.isnan(one.low)
    assert two.low < 0.5 < two.high and math.isnan(two.prediction_low)
    assert random_effects([], []).centers == 0


def test_center_estimates_pool_the_variance() -> None:
    """Pooled variance of (0, 1), (0, 0, 3) and a single value is (0.5 + 6) / 3, over n; clusters replace cases."""
    table = center_estimates([0, 1, 0, 0, 3, 7, None], list("AABBBCC"))
    assert table["mean"].tolist() == [0.5, 1, 7]
    np.testing.assert_allclose(table["variance"], (0.5 + 6) / 3 / np.array([2, 3, 1]))
    clustered = center_estimates([0, 0, 1, 1], list("AAAA"), [1, 1, 2, 2])
    assert clustered["variance"].tolist() == pytest.approx([2 * (1 + 1) / 4**2])  # C/(C-1) sum of squares / n^2


def test_shrunken_means_by_hand() -> None:
    """With equal variances v REML's tau^2 is s^2 - v, and each mean is drawn in by tau^2 / s^2."""
    means, v = np.array([0.2, 0.5, 0.6, 0.7]), 0.01
    table = shrunken_means(means, [v] * 4)
    s2 = means.var(ddof=1)
    share = (s2 - v) / s2
    np.testing.assert_allclose(table["shrunken"], 0.5 + share * (means - 0.5))
    error = math.sqrt(v * share + (1 - share) ** 2 * s2 / 4)
    np.testing.assert_allclose(table["high"] - table["shrunken"], 1.959964 * error, rtol=1e-6)


def test_the_worst_of_equal_centers_by_chance() -> None:
    """The lowest of 5 equal centers lies 1.16296 errors below their mean (Harter, Biometrika 1961;48:151)."""
    worst = worst_center(list("ABCDE"), [0.5, 0.45, 0.5, 0.55, 0.5], [0.04] * 5)
    assert worst is not None and worst.center == "B"
    assert worst.chance == pytest.approx(0.5 - 1.16296 * 0.2, abs=1e-6)
    assert worst.shrunken == pytest.approx(0.5)  # they differ by less than chance
    assert worst.p == pytest.approx(1 - scipy_stats.norm.sf(-0.25) ** 5)
    lowest = np.random.default_rng(0).normal(0.5, 0.2, (200_000, 5)).min(axis=1)
    assert (worst.chance_low, worst.chance_high) == pytest.approx(np.quantile(lowest, [0.025, 0.975]), abs=0.005)


def test_a_small_center_is_not_taken_for_the_worst() -> None:
    """A center of large error with the lowest mean is drawn in further than one whose low mean is certain."""
    worst = worst_center(list("ABCD"), [0.30, 0.35, 0.70, 0.72], [0.09, 0.0004, 0.0004, 0.0004])
    assert worst is not None and worst.center == "B"
    assert worst.lowest_observed == 0.30 and worst.observed == 0.35
    assert worst_center(["A"], [0.3], [0.1]) is None
