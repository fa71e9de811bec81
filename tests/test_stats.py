import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import special
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from pants_dist import stats

NOT_KNOWN = [None, float("nan")]


def test_t_interval_by_hand() -> None:
    """Of 2, 4, 4, 4, 6 the mean is 4, the error sqrt(2 / 5) and the 95 % limits 4 -+ 2.776 * 0.6325; unknowns drop out."""
    found = stats.t_interval([2, 4, 4, 4, 6, *NOT_KNOWN])
    assert (found.value, found.n) == (4, 5)
    assert (found.low, found.high) == pytest.approx((4 - 2.7764 * 0.632456, 4 + 2.7764 * 0.632456), abs=1e-4)
    expected = scipy_stats.ttest_1samp([2, 4, 4, 4, 6], 0).confidence_interval(0.9)
    assert stats.t_interval([2, 4, 4, 4, 6], level=0.9)[1:3] == pytest.approx((expected.low, expected.high))


def test_t_interval_keeps_silent_about_few_values() -> None:
    """Below five values there is a mean but no interval; without values there is neither; bounds cut the limits off."""
    few = stats.t_interval([0.2, 0.4, 0.9, 1.0])
    assert few.value == 0.625 and math.isnan(few.low) and math.isnan(few.high) and few.n == 4
    assert math.isnan(stats.t_interval(NOT_KNOWN).value) and stats.t_interval([]).n == 0
    assert stats.t_interval([0, 1, 1, 1, 1], bounds=(0, 1)).high == 1
    nullable = pd.Series([True, False, None, True, True, True], dtype="boolean")
    assert stats.t_interval(nullable).value == 0.8


def test_clustered_t_interval_equals_statsmodels() -> None:
    """With clusters the limits are those of a cluster-robust regression on a constant with t of C - 1 degrees."""
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 12, 40)
    values = rng.normal(size=40) + clusters / 6
    fit = sm.OLS(values, np.ones(40)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    found = stats.t_interval(values, [f"patient {n}" for n in clusters])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]))
    assert stats.t_interval(values, range(40)) == pytest.approx(stats.t_interval(values))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_examples(successes: int, n: int, low: float, high: float) -> None:
    """The four examples of Newcombe, Stat Med 1998;17:857, table I, method 3; and statsmodels to full precision."""
    found = stats.wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert (found.low, found.high) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


def test_clustered_wilson_widens_with_clusters() -> None:
    """Pairs of equal outcomes count once each, so 2n paired cases have the interval of n; single cases that of n."""
    hits = [1, 1, 0, 1, 0, 1, 1, 1, 0, 1]
    paired = stats.clustered_wilson(np.repeat(hits, 2), np.repeat(range(10), 2))
    # Variance of 10 cluster means with the factor 10 / 9, so the effective size is 9; less for 9 degrees and not 19.
    size = 9 * (2.0930 / 2.2622) ** 2
    expected = stats.wilson(0.7 * size, size)
    assert (paired.low, paired.high, paired.n) == pytest.approx((expected.low, expected.high, 20), abs=1e-5)
    agree = stats.clustered_wilson([1] * 6, [0, 0, 0, 1, 1, 1])
    assert agree.low == pytest.approx(stats.wilson(2, 2).low) and agree.value == 1
    assert math.isnan(stats.clustered_wilson([], []).value)


def test_sensitivity_and_specificity_by_hand() -> None:
    """3 of 4 positives and 1 of 2 negatives; a failed prediction is wrong on both sides; unknown truth is left out."""
    present = [1, 1, 1, 1, 0, 0, None]
    sensitivity, specificity = stats.sensitivity_specificity(present, [1, 1, 1, 0, 0, 1, 1])
    assert (sensitivity.value, sensitivity.n, specificity.value, specificity.n) == (0.75, 4, 0.5, 2)
    assert sensitivity == stats.wilson(3, 4)
    sensitivity, specificity = stats.sensitivity_specificity(present, [1, 1, None, 0, 0, None, 1])
    assert (sensitivity.value, specificity.value) == (0.5, 0.5)
    sensitivity, specificity = stats.sensitivity_specificity([1, 1], [1, 0], clusters=["a", "a"])
    assert sensitivity.value == 0.5 and math.isnan(specificity.value)


def test_predictive_values_by_hand() -> None:
    """At 90 / 100 and 160 / 200 and 10 % prevalence PPV is 1 / 3 and NPV 72 / 73; limits by a numeric delta method."""
    present, predicted = [1] * 100 + [0] * 200, [1] * 90 + [0] * 10 + [1] * 40 + [0] * 160
    ppv, npv = stats.predictive_values(present, predicted, prevalence=0.1)
    assert (ppv.value, npv.value) == pytest.approx((0.09 / 0.27, 0.72 / 0.73))

    def logit_ppv(sensitivity: float, specificity: float) -> float:
        return math.log(sensitivity * 0.1 / ((1 - specificity) * 0.9))

    step = 1e-6
    slopes = [
        (logit_ppv(0.9 + step, 0.8) - logit_ppv(0.9 - step, 0.8)) / (2 * step),
        (logit_ppv(0.9, 0.8 + step) - logit_ppv(0.9, 0.8 - step)) / (2 * step),
    ]
    error = math.sqrt(slopes[0] ** 2 * 0.9 * 0.1 / 100 + slopes[1] ** 2 * 0.8 * 0.2 / 200)
    limits = [1 / (1 + math.exp(-(logit_ppv(0.9, 0.8) + way * 1.959964 * error))) for way in (-1, 1)]
    assert (ppv.low, ppv.high) == pytest.approx(tuple(limits), abs=1e-6)
    certain, _ = stats.predictive_values([1] * 10 + [0] * 20, [1] * 10 + [0] * 20, prevalence=0.1)
    assert certain.value == 1 and 0.1 < certain.low < 0.9


def clustered_shares(centers: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, predictions and centers of cases whose center finds more lesions the more false alarms it gives."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(centers), rng.integers(10, 60, centers))
    present, lax = rng.random(label.size) < 0.4, rng.normal(0, 1, centers)[label]
    predicted = rng.normal(0, 1, label.size) + 1.8 * present + 0.6 * lax > 1
    return present.astype(float), predicted.astype(float), label


def test_predictive_values_know_that_cases_of_a_center_are_alike() -> None:
    """Their errors are those of a jackknife that leaves out one center after the other; with clusters of one case each
    those of Mercaldo; and where nothing is wrong the limits are as of so many cases as there are centers."""
    present, predicted, label = clustered_shares(60, 1)

    def logits(keep: np.ndarray) -> np.ndarray:
        found = stats.predictive_values(present[keep], predicted[keep], 0.05)
        return np.array([math.log(one.value / (1 - one.value)) for one in found])

    left = np.array([logits(label != one) for one in range(60)])
    errors = np.sqrt(59 / 60 * ((left - left.mean(axis=0)) ** 2).sum(axis=0))
    by_center = stats.predictive_values(present, predicted, 0.05, np.arange(label.size), label)
    for found, error, middle in zip(by_center, errors, logits(label >= 0), strict=True):
        ends = np.log(np.array(found[1:3]) / (1 - np.array(found[1:3])))
        assert ends == pytest.approx(middle + np.array([-1, 1]) * 2.0010 * error, rel=0.05)
    alone, cases = stats.predictive_values(present, predicted, 0.05), np.arange(label.size)
    assert stats.predictive_values(present, predicted, 0.05, cases)[0][:3] == pytest.approx(alone[0][:3], rel=1e-3)
    right = stats.predictive_values(present, present, 0.05, None, label)[0]
    few = stats.predictive_values([1] * 60 + [0] * 60, [1] * 60 + [0] * 60, 0.05)[0]
    assert (right.value, right.low) == (1, pytest.approx(few.low))


def test_a_share_over_centers_is_covered() -> None:
    """Of 300 tables of 8 centers that differ, over nine in ten intervals hold the true share; taken as independent, few do."""
    rng, hits = np.random.default_rng(0), np.zeros(2)
    truth = special.expit(2.2 + 0.8 * rng.normal(size=400_000)).mean()
    for _ in range(300):
        label = np.repeat(np.arange(8), rng.integers(5, 60, 8))
        found = (rng.random(label.size) < special.expit(2.2 + 0.8 * rng.normal(size=8))[label]).astype(float)
        for place, clusters in enumerate((label, np.arange(label.size))):
            share = stats.clustered_wilson(found, clusters)
            hits[place] += share.low <= truth <= share.high
    assert hits[0] / 300 > 0.9 and hits[1] / 300 < 0.8


BENJAMINI_HOCHBERG_1995 = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0
]  # fmt: skip


def test_adjusted_p_values_equal_the_published_example_and_statsmodels() -> None:
    """The 15 p values of Benjamini & Hochberg 1995, section 3.2: four rejections by theirs, three by Holm."""
    shuffled = np.random.default_rng(0).permutation(BENJAMINI_HOCHBERG_1995)
    for adjust, method, rejected in ((stats.benjamini_hochberg, "fdr_bh", 4), (stats.holm, "holm", 3)):
        found = adjust(shuffled)
        assert (found <= 0.05).sum() == rejected
        np.testing.assert_allclose(found, multipletests(shuffled, method=method)[1])
    with_unknown = stats.holm([0.01, float("nan"), 0.04])
    np.testing.assert_allclose(with_unknown, [0.02, np.nan, 0.04])


def test_mcnemar_equals_statsmodels() -> None:
    """Exact p of 6 against 1 discordant pairs is 2 (C(7,0) + C(7,1)) / 2^7 = 0.125; none at all gives 1."""
    first, second = [1] * 6 + [0] + [1] * 4 + [0] * 3 + [None], [0] * 6 + [1] + [1] * 4 + [0] * 3 + [1]
    found = stats.mcnemar(first, second)
    assert found == (6, 1, pytest.approx(0.125))
    assert found.p == pytest.approx(statsmodels_mcnemar([[4, 6], [1, 3]], exact=True).pvalue)
    assert stats.mcnemar([1, 0], [1, 0]) == (0, 0, 1)


def test_brier_by_hand() -> None:
    """(0.1^2 + 0.4^2 + 0.8^2) / 3 over the three cases that are known."""
    found = stats.brier([1, 0, 0, None], [0.9, 0.4, 0.8, 0.5])
    assert found.value == pytest.approx((0.01 + 0.16 + 0.64) / 3) and found.n == 3
    assert math.isnan(stats.brier([], []).value)
    rng = np.random.default_rng(0)
    present, chance = rng.random(30) < 0.5, rng.random(30)
    assert stats.brier(present, chance) == stats.t_interval((chance - present) ** 2)


def test_calibration_equals_statsmodels() -> None:
    """Intercept with the logit as offset, slope of the free model, with their Wald intervals."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 300)
    present = rng.random(300) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    found = stats.calibration(present, logits)
    family = sm.families.Binomial()
    large = sm.GLM(present.astype(float), np.ones(300), family=family, offset=logits).fit()
    slope = sm.GLM(present.astype(float), sm.add_constant(logits), family=family).fit()
    assert found.intercept[:3] == pytest.approx((large.params[0], *large.conf_int()[0]), abs=1e-6)
    assert found.slope[:3] == pytest.approx((slope.params[1], *slope.conf_int()[1]), abs=1e-6)


def test_clustered_calibration_equals_statsmodels() -> None:
    """Limits by the sandwich over patients are those of a GLM with clustered covariance."""
    rng = np.random.default_rng(2)
    logits, patients = np.repeat(rng.normal(0, 2, 100), 3), np.repeat(np.arange(100), 3)
    present = rng.random(300) < 1 / (1 + np.exp(-(0.6 * logits + np.repeat(rng.normal(0, 1, 100), 3))))
    found, family = stats.calibration(present, logits, [f"p{n}" for n in patients]), sm.families.Binomial()
    by_patient = {"cov_type": "cluster", "cov_kwds": {"groups": patients}}
    large = sm.GLM(present.astype(float), np.ones(300), family=family, offset=logits).fit(**by_patient)
    slope = sm.GLM(present.astype(float), sm.add_constant(logits), family=family).fit(**by_patient)
    assert found.intercept[:3] == pytest.approx((large.params[0], *large.conf_int()[0]), abs=1e-6)
    assert found.slope[:3] == pytest.approx((slope.params[1], *slope.conf_int()[1]), abs=1e-6)
    assert math.isnan(stats.calibration(present, logits, ["one"] * 300).slope.low)


def test_calibration_of_separated_or_single_classes_is_unknown() -> None:
    """Where no maximum exists there is no number: classes that logits separate, one class, no case."""
    assert math.isnan(stats.calibration([0, 0, 1, 1], [-2, -1, 1, 2]).slope.value)
    assert math.isnan(stats.calibration([1, 1], [0, 1]).intercept.value)
    assert math.isnan(stats.calibration([], []).slope.value)
