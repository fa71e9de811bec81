import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pants_dist.comparisons import compare_models, kruskal, pairwise_mann_whitney, touchstone_wilcoxon
from pants_dist.stats import holm


def test_kruskal_by_hand() -> None:
    """Ranks 1 2 3 against 4 5 6: H = 12 / 42 (36 / 3 + 225 / 3) - 21 = 27 / 7, and epsilon squared H / 5."""
    found = kruskal([1, 2, 3, 4, 5, 6, None], list("aaabbbb"))
    assert (found.statistic, found.epsilon2) == pytest.approx((27 / 7, 27 / 35))
    assert found.p == pytest.approx(scipy_stats.chi2.sf(27 / 7, 1)) and (found.groups, found.n) == (2, 6)
    assert kruskal([1, 1, 1], list("aab")).p == 1
    assert math.isnan(kruskal([1, 2], ["a", "a"]).p)


@pytest.mark.parametrize("adjust", ["holm", "bh"])
def test_pairwise_mann_whitney_equals_scipy(adjust: str) -> None:
    """U and p of each pair are SciPy's, p is adjusted over all pairs, and delta counts pairs won less pairs lost."""
    rng = np.random.default_rng(0)
    groups = np.repeat(list("abc"), 12)
    values = rng.integers(0, 9, 36) + (groups == "c") * 3.0
    table = pairwise_mann_whitney(values, groups, adjust)
    assert table[["first", "second"]].agg("".join, axis=1).tolist() == ["ab", "ac", "bc"]
    parts = {name: values[groups == name] for name in "abc"}
    for row in table.to_dict("records"):
        expected = scipy_stats.mannwhitneyu(parts[row["first"]], parts[row["second"]])
        assert (row["u"], row["p"]) == pytest.approx(tuple(expected))
        won = np.sign(parts[row["first"]][:, None] - parts[row["second"]]).mean()
        assert row["cliffs_delta"] == pytest.approx(won)
    expected_p = scipy_stats.false_discovery_control(table["p"]) if adjust == "bh" else holm(table["p"])
    np.testing.assert_allclose(table["p_adjusted"], expected_p)


def test_models_are_compared_by_center() -> None:
    """One center where a model is better in every case is one piece of evidence, not one a case."""
    centers = ["A"] * 50 + ["B"] * 2 + ["C"] * 2
    first = np.r_[np.full(50, 0.9), 0.5, 0.5, 0.4, 0.5]
    second = np.r_[np.full(50, 0.8), 0.5, 0.6, 0.5, 0.4]
    row = compare_models({"x": first, "y": second}, centers).iloc[0]
    expected = scipy_stats.ttest_1samp([0.1, -0.05, 0.0], 0)
    assert (row["difference"], row["p"]) == pytest.approx((0.05 / 3, expected.pvalue))
    assert (row["centers"], row["cases"], row["method"]) == (3, 54, "paired t")
    three = compare_models({"x": first, "y": second, "z": second - 0.01}, centers)
    np.testing.assert_allclose(three["p_adjusted"], holm(three["p"]))


def test_touchstone_tests_both_directions_in_one_family() -> None:
    """Each ordered pair has SciPy's one-sided p, Holm over all of them; equal models have p 1."""
    rng = np.random.default_rng(1)
    scores = {"x": rng.random(20), "y": rng.random(20) * 0.7}
    scores["z"] = scores["y"].copy()
    table = touchstone_wilcoxon(scores).set_index(["better", "worse"])
    signed = scipy_stats.wilcoxon(scores["x"], scores["y"], alternative="greater").statistic  # sum of ranks above 0
    assert table.loc[("x", "y"), "rank_biserial"] == pytest.approx(2 * signed / 210 - 1)
    assert table.loc[("y", "x"), "rank_biserial"] == -table.loc[("x", "y"), "rank_biserial"]
    assert len(table) == 6
    expected = scipy_stats.wilcoxon(scores["x"], scores["y"], alternative="greater").pvalue
    assert table.loc[("x", "y"), "p"] == pytest.approx(expected)
    assert table.loc[("x", "y"), "p_adjusted"] == pytest.approx(min(expected * 6, 1))
    assert table.loc[("y", "z"), "p"] == 1
