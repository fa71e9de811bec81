"""Scores by subgroup, and groups at one case mix: by hand, and beside statsmodels."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from pants_dist import stats, subgroups

NAN = float("nan")


def test_bands_take_their_lower_edge() -> None:
    """A value at an edge belongs above it; what is not known is said."""
    found = subgroups.bands([39.9, 40, 59, 60, None, NAN], (40, 60))
    assert found == ["< 40", "40 to < 60", "40 to < 60", ">= 60", "unknown", "unknown"]


def test_diameter_of_a_sphere() -> None:
    """A ball of 20 mm across holds 4/3 pi 10^3 mm3."""
    assert subgroups.sphere_diameter_mm([4000 / 3 * math.pi, 0, None]) == pytest.approx([20, 0, NAN], nan_ok=True)


def test_rows_of_a_report_get_their_bands() -> None:
    """Age, slice spacing and tumor size as bands; a volume of 0 is no tumor; a table without ages has no age band."""
    mm3 = [0, 4000, 4500, None]  # spheres of 20 mm hold 4,189 mm3
    rows = pd.DataFrame({"age": [39, 80, None, 55], "spacing_z_mm": [0.8, 5, 2.5, 1], "reference_mm3/pancreatic_lesion": mm3})
    found = subgroups.with_bands(rows)
    assert found["age_band"].tolist() == ["< 40", ">= 80", "unknown", "50 to < 60"]
    assert found["slice_band"].tolist() == ["< 1", ">= 5", "2.5 to < 5", "1 to < 2.5"]
    assert found["tumor_band"].tolist() == ["no tumor", "< 20", "20 to < 40", "unknown"]
    assert "age_band" not in subgroups.with_bands(rows[["spacing_z_mm"]])


def test_subgroups_stand_in_order() -> None:
    """Bands by their edges, not as text; what is unknown last; blanks and case of cells do not make another one."""
    rows = pd.DataFrame({"age": [85, 35, 9, 45, 0, 100], "sex": ["M", "M ", "F", "", "F", "F"], "dice": 0.5})
    banded = subgroups.with_bands(rows)
    found = subgroups.subgroup_table(banded, ["age_band"], ["dice"])
    assert found["subgroup"].tolist() == ["< 40", "40 to < 50", ">= 80", "unknown"]
    assert subgroups.subgroup_table(rows, ["sex"], ["dice"])["subgroup"].tolist() == ["F", "M", "unknown"]


def test_a_subgroup_of_many_centers_is_as_certain_as_they_agree() -> None:
    """From five centers on the interval is over centers, as they are alike within; below it is over patients."""
    rng, center = np.random.default_rng(0), np.repeat(np.arange(8), 10)
    rows = pd.DataFrame({"sex": "F", "dice": 0.7 + 0.1 * np.sin(center) + rng.normal(0, 0.01, 80)})
    whole = subgroups.subgroup_table(rows, ["sex"], ["dice"], None, center).iloc[0]
    assert (whole["low"], whole["high"]) == pytest.approx(stats.t_interval(rows["dice"], center)[1:3])
    few = subgroups.subgroup_table(rows[:40], ["sex"], ["dice"], None, center[:40]).iloc[0]
    assert (few["low"], few["high"]) == pytest.approx(stats.t_interval(rows["dice"][:40])[1:3])


def cases() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "sex": ["female", "male", "", "male"] * 15,
            "phase": ["arterial", "arterial", "venous"] * 20,
            "dice": rng.random(60),
            "patient": np.repeat(np.arange(20), 3),
        }
    )


def test_subgroups_and_their_crossings() -> None:
    """Each row is the clustered t-interval of its cases; crossings name both; unknown comes last."""
    rows = cases()
    found = subgroups.subgroup_table(rows, ["sex"], ["dice"], rows["patient"])
    assert found["subgroup"].tolist() == ["female", "male", "unknown"]
    inside = rows["sex"] == "male"
    expected = stats.t_interval(rows["dice"][inside], rows["patient"][inside])
    assert tuple(found.loc[1, ["value", "low", "high", "n"]]) == expected
    crossed = subgroups.subgroup_table(rows, ["sex", "phase"], ["dice"])
    assert crossed["subgroup"].tolist()[:2] == ["female, arterial", "female, venous"]
    assert crossed["subgroup"].tolist()[-1] == "unknown, venous" and crossed["n"].sum() == 60
    few = subgroups.subgroup_table(rows[:8], ["sex"], ["dice"])
    assert few["value"].notna().all() and few["low"].isna().all()


def test_predictive_values_at_a_stated_prevalence() -> None:
    """8 of 10 found, 18 of 20 cleared, one prediction failed: at 10 % PPV is .08 / (.08 + .09), NPV .81 / (.81 + .02)."""
    truth, found = [1] * 10 + [0] * 20 + [1], [1] * 8 + [0, None] + [0] * 18 + [1, 1] + [0]
    rows = pd.DataFrame({"site": ["a"] * 30 + ["b"], "truth": truth, "found": pd.array(found, "Int64")})
    table = subgroups.detection_table(rows, ["site"], 0.1, "truth", "found").set_index(["subgroup", "figure"])
    assert table.loc[("a", "sensitivity"), "value"] == 0.8 and table.loc[("a", "specificity"), "value"] == 0.9
    assert table.loc[("a", "PPV"), "value"] == pytest.approx(0.08 / 0.17)
    assert table.loc[("a", "NPV"), "value"] == pytest.approx(0.81 / 0.83)
    low, high = table.loc[("a", "PPV"), ["low", "high"]]
    error = math.sqrt(0.2 / 8 + 0.9 / 2)  # Mercaldo's variance of logit PPV: (1 - Se) / (Se n1) + Sp / ((1 - Sp) n0)
    middle = math.log(0.08 / 0.09)
    limits = [1 / (1 + math.exp(-(middle + way * 1.959964 * error))) for way in (-1, 1)]
    assert [low, high] == pytest.approx(limits, rel=1e-5)
    assert table.loc["b", "value"].isna().all() and table.loc[("b", "sensitivity"), "n"] == 1


def test_adjusted_means_by_hand() -> None:
    """Both lose 0.2 without contrast, a in 3 of 4 scans and b in 1: at half of the scans, as in all, they are equal."""
    phase = ["non", "non", "non", "venous", "non", "venous", "venous", "venous"]
    dice = [0.6, 0.6, 0.6, 0.8, 0.6, 0.8, 0.8, 0.8]
    found = subgroups.adjusted_means(dice, ["a"] * 4 + ["b"] * 4, {"phase": phase})
    assert found["mean"].tolist() == pytest.approx([0.65, 0.75])
    assert found["value"].tolist() == pytest.approx([0.7, 0.7])


@pytest.fixture(scope="module")
def scored() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "center": rng.choice(["a", "b", "c"], 90),
            "phase": rng.choice(["arterial", "non", "venous"], 90),
            "size_mm": rng.gamma(3, 8, 90),
            "patient": rng.integers(0, 40, 90),
        }
    )
    rows["dice"] = 0.7 + 0.1 * (rows["center"] == "b") - 0.2 * (rows["phase"] == "non") + 0.002 * rows["size_mm"]
    rows["dice"] += rng.normal(0, 0.05, 90) + 0.03 * np.sin(rows["patient"])
    return rows


def test_adjusted_means_equal_statsmodels(scored: pd.DataFrame) -> None:
    """Means and cluster-robust limits are those of a regression without intercept on centered covariates."""
    phases = pd.get_dummies(scored["phase"], drop_first=True).astype(float)
    rows = scored.assign(size=scored["size_mm"] - scored["size_mm"].mean(), **(phases - phases.mean()))
    fit = smf.ols("dice ~ 0 + center + non + venous + size", rows).fit(
        cov_type="cluster", cov_kwds={"groups": rows["patient"]}, use_t=True
    )
    mix = {"phase": scored["phase"], "size": scored["size_mm"]}
    found = subgroups.adjusted_means(scored["dice"], scored["center"], mix, scored["patient"])
    names = [f"center[{name}]" for name in "abc"]
    assert found["value"].tolist() == pytest.approx(fit.params[names].tolist())
    assert found[["low", "high"]].to_numpy() == pytest.approx(fit.conf_int().loc[names].to_numpy())
    assert found["n"].tolist() == [int((scored["center"] == name).sum()) for name in "abc"]


def test_unknown_cases_are_left_out(scored: pd.DataFrame) -> None:
    """Cases without a score or a covariate do not count; without any case there is no row."""
    holes = scored.assign(phase=scored["phase"].mask(scored.index < 5), dice=scored["dice"].mask(scored.index >= 85))
    found = subgroups.adjusted_means(holes["dice"], holes["center"], {"phase": holes["phase"]})
    whole = holes[5:85]
    again = subgroups.adjusted_means(whole["dice"], whole["center"], {"phase": whole["phase"]})
    assert found["n"].sum() == 80
    pd.testing.assert_frame_equal(found, again)
    assert subgroups.adjusted_means([None], ["a"], {"phase": ["non"]}).empty


@pytest.mark.parametrize("only", ["a first phase", "venous late"])
def test_a_center_set_apart_by_its_phase_is_not_adjusted(scored: pd.DataFrame, only: str) -> None:
    """Whatever its phase is called, a center that shares none with others has NaN; the others are as without it."""
    apart = scored.assign(phase=scored["phase"].mask(scored["center"] == "c", only))
    found = subgroups.adjusted_means(apart["dice"], apart["center"], {"phase": apart["phase"]}).set_index("group")
    assert math.isnan(found.loc["c", "value"]) and found.loc["c", "mean"] > 0
    rest = apart[apart["center"] != "c"]
    expected = subgroups.adjusted_means(rest["dice"], rest["center"], {"phase": rest["phase"]}).set_index("group")
    assert found.loc[["a", "b"], ["value", "low", "high"]].to_numpy() == pytest.approx(
        expected[["value", "low", "high"]].to_numpy()
    )
