import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from pants_dist.roc import (
    auc,
    center_adjusted_auc,
    center_adjusted_difference,
    clustered_auc,
    clustered_difference,
    delong,
    delong_difference,
    weighted_areas,
)

# DeLong et al. 1988 as in SAS/STAT's PROC LOGISTIC example "Comparing Receiver Operating Characteristic Curves":
# albumin, total protein, K-G score (10 less the one listed), outcome.
OVARIAN = np.array("""
3.0 5.8 10 0 3.2 6.3  5 1 3.9 6.8  3 1 2.8 4.8  6 0 3.2 5.8  3 1 0.9 4.0  5 0 2.5 5.7  8 0 1.6 5.6  5 1 3.8 5.7  5 1
3.7 6.7  6 1 3.2 5.4  4 1 3.8 6.6  6 1 4.1 6.6  5 1 3.6 5.7  5 1 4.3 7.0  4 1 3.6 6.7  4 0 2.3 4.4  6 1 4.2 7.6  4 0
4.0 6.6  6 0 3.5 5.8  6 1 3.8 6.8  7 1 3.0 4.7  8 0 4.5 7.4  5 1 3.7 7.4  5 1 3.1 6.6  6 1 4.1 8.2  6 1 4.3 7.0  5 1
4.3 6.5  4 1 3.2 5.1  5 1 2.6 4.7  6 1 3.3 6.8  6 0 1.7 4.0  7 0 3.7 6.1  5 1 3.3 6.3  7 1 4.2 7.7  6 1 3.5 6.2  5 1
2.9 5.7  9 0 2.1 4.8  7 1 2.8 6.2  8 0 4.0 7.0  7 1 3.3 5.7  6 1 3.7 6.9  5 1 3.6 6.6  5 1
""".split(), float).reshape(-1, 4)  # fmt: skip


def test_delong_equals_the_published_example() -> None:
    """Areas, errors and differences of albumin, protein and K-G score as SAS prints them for DeLong's patients."""
    albumin, protein, score, present = OVARIAN.T
    areas, covariance = delong(present, [albumin, protein, 10 - score])
    assert areas == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([0.0927, 0.1000, 0.1028], abs=5e-5)
    contrast = np.array([[1, 0, -1], [0, 1, -1]])
    apart, spread = contrast @ areas, contrast @ covariance @ contrast.T
    assert apart @ np.linalg.solve(spread, apart) == pytest.approx(2.5340, abs=5e-5)  # chi-square of both contrasts
    found = delong_difference(present, protein, 10 - score)
    assert found == pytest.approx((-0.0780, -0.2830, 0.1271, 0.4561), abs=5e-5)


def test_delong_equals_its_definition() -> None:
    """The covariance is that of the structural components, written out pair by pair, with ties."""
    rng = np.random.default_rng(0)
    present, scores = rng.random(40) < 0.4, rng.integers(0, 8, (2, 40)).astype(float)
    areas, covariance = delong(present, list(scores))
    kernel = np.sign(scores[:, present][:, :, None] - scores[:, ~present][:, None, :]) / 2 + 0.5
    assert areas == pytest.approx(kernel.mean(axis=(1, 2)))
    expected = np.cov(kernel.mean(axis=2)) / present.sum() + np.cov(kernel.mean(axis=1)) / (~present).sum()
    np.testing.assert_allclose(covariance, expected)


def test_auc_equals_scikit_learn_and_mann_whitney() -> None:
    """AUC with ties is scikit-learn's, and U over the number of pairs; its limits enclose it within 0 and 1."""
    rng = np.random.default_rng(1)
    present = rng.random(60) < 0.3
    scores = np.round(rng.normal(size=60) + present, 1)
    found = auc([*present, None], [*scores, 1.0])
    u = scipy_stats.mannwhitneyu(scores[present], scores[~present]).statistic
    assert found.value == pytest.approx(roc_auc_score(present, scores))
    assert found.value == pytest.approx(u / (present.sum() * (~present).sum()))
    assert 0 < found.low < found.value < found.high < 1 and found.n == 60


def test_auc_without_a_class_is_unknown() -> None:
    """One class gives no AUC; a perfect score has the area 1 and no limits."""
    assert math.isnan(auc([1, 1], [0.2, 0.3]).value)
    perfect = auc([0, 0, 1, 1], [1, 2, 3, 4])
    assert perfect.value == 1 and math.isnan(perfect.low)


def test_weighted_areas_equal_repeated_cases() -> None:
    """Weight 2 is the same as listing a case twice, weight 0 as leaving it out; infinities order like numbers."""
    rng = np.random.default_rng(2)
    present, scores = rng.random(30) < 0.5, rng.integers(0, 6, 30).astype(float)
    scores[[3, 7]] = -np.inf, np.inf
    weights = rng.integers(0, 4, (5, 30))
    found = weighted_areas(present, scores, weights)
    ranked = scipy_stats.rankdata(scores)
    for area, weight in zip(found, weights, strict=True):
        assert area == pytest.approx(roc_auc_score(np.repeat(present, weight), np.repeat(ranked, weight)))
    assert math.isnan(weighted_areas(np.ones(2, bool), np.ones(2), np.ones((1, 2)))[0])


def test_clustered_auc_is_wider_than_delongs_where_scans_repeat() -> None:
    """Each case four times does not make the area more certain, though DeLong would have it halve the interval."""
    rng = np.random.default_rng(3)
    present = rng.random(80) < 0.5
    scores = rng.normal(size=80) + present
    once = auc(present, scores)
    repeated = [np.tile(part, 4) for part in (present, scores, np.arange(80))]
    four = auc(repeated[0], repeated[1])
    found = clustered_auc(repeated[0], repeated[1], ["X"] * 320, repeated[2], seed=1)
    assert found.value == pytest.approx(once.value)
    assert four.high - four.low < 0.6 * (once.high - once.low)
    assert found.high - found.low == pytest.approx(once.high - once.low, rel=0.15)
    assert found == clustered_auc(repeated[0], repeated[1], ["X"] * 320, repeated[2], seed=1)


def test_clustered_difference_of_one_score_with_itself() -> None:
    """A score does not differ from itself; from noise it does, with limits near DeLong's for independent cases."""
    rng = np.random.default_rng(4)
    present = rng.random(200) < 0.5
    scores, noise = rng.normal(size=200) + 1.5 * present, rng.normal(size=200)
    assert clustered_difference(present, scores, scores, ["X"] * 200) == (0, 0, 0, 1)
    found, expected = clustered_difference(present, scores, noise, ["X"] * 200), delong_difference(present, scores, noise)
    assert found == pytest.approx(expected, abs=0.03)
    assert math.isnan(clustered_difference([], [], [], []).value)


def test_center_adjusted_auc_by_hand() -> None:
    """Within A the area is 0.5 (2 positives), within B 1 (1 positive): (2 * 0.5 + 1) / 3; the pooled one is higher.

    C has positives only: they count in the pooled area and for nothing in the adjusted one.
    """
    centers = ["A"] * 4 + ["B"] * 3 + ["C"] * 2
    present = [1, 1, 0, 0, 1, 0, 0, 1, 1]
    scores = [5, 1, 3, 4, 2, 1, 0, 9, 9]
    found = center_adjusted_auc(present, scores, centers, seed=0)
    assert found.estimate.value == pytest.approx(2 / 3)
    table = found.centers.set_index("center")
    assert table["weight"].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert table["auc"].tolist()[:2] == [0.5, 1] and math.isnan(table.loc["C", "auc"])
    assert auc(present, scores).value > found.estimate.value


def test_prevalence_alone_has_no_center_adjusted_auc() -> None:
    """A score that only knows its center's prevalence does well when pooled and not at all within centers."""
    rng = np.random.default_rng(5)
    center = np.repeat(np.arange(6), 60)
    prevalence = np.linspace(0.05, 0.9, 6)[center]
    present = rng.random(360) < prevalence
    found = center_adjusted_auc(present, prevalence, center)
    assert auc(present, prevalence).value > 0.75
    assert found.estimate[:3] == (0.5, 0.5, 0.5)


def test_center_adjusted_difference_is_of_the_same_cases_and_resamples() -> None:
    """Its value is that of the two areas over cases that have both scores; a score does not differ from itself."""
    rng = np.random.default_rng(6)
    center, present = np.repeat(np.arange(5), 40), rng.random(200) < 0.4
    good, noise = rng.normal(size=200) + 2 * present, [*rng.normal(size=190), *[None] * 10]
    found = center_adjusted_difference(present, good, noise, center)
    areas = [center_adjusted_auc(present[:190], part[:190], center[:190]).estimate.value for part in (good, noise)]
    assert found.value == pytest.approx(areas[0] - areas[1]) and 0 < found.low < found.value < found.high
    assert found.p == pytest.approx(2 / 2001)
    assert center_adjusted_difference(present, good, good, center) == (0, 0, 0, 1)


def test_center_adjusted_auc_without_any_usable_center() -> None:
    """Where no center has both classes the weights are 0 and the area unknown."""
    found = center_adjusted_auc([1, 0], [1, 0], ["A", "B"])
    assert math.isnan(found.estimate.value) and found.centers["weight"].tolist() == [0, 0]
    assert math.isnan(center_adjusted_auc([], [], []).estimate.value)
