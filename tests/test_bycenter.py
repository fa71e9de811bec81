import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn.metrics import brier_score_loss, roc_auc_score
from statsmodels.discrete.discrete_model import Logit

from pants_dist.bycenter import (
    auc_counts,
    aucs_left,
    full_center_table,
    gap_table,
    group_table,
    spread_tables,
)
from pants_dist.detection import tuned_threshold
from pants_dist.protocol import Analysis
from tests.scored import scored_rows

STRUCTURES = ("liver", "pancreas", "pancreatic_lesion")
QUICK = Analysis(draws=200)


def test_groups_by_hand() -> None:
    """Mean, median and Student's interval of the known values; a group without any has n = 0 and blanks."""
    rows = pd.DataFrame({"center": list("AAAAAAB"), "dsc/liver": [0.1, 0.2, 0.3, 0.4, 0.5, None, None]})
    first, second = group_table(rows, ["liver"]).to_dict("records")
    half = stats.t.ppf(0.975, 4) * np.sqrt(0.025 / 5)
    expected = [5, 0.3, 0.3, 0.3 - half, 0.3 + half]
    assert [first[name] for name in ("n", "mean", "median", "low", "high")] == pytest.approx(expected)
    assert second["n"] == 0 and np.isnan([second["mean"], second["median"], second["low"]]).all()


def test_scans_of_one_patient_are_not_two_witnesses() -> None:
    """Every scan doubled as another of the same patient leaves the interval as it was; taken as new patients it narrows."""
    rows = scored_rows(1, 20).drop(columns="patient")
    twice = pd.concat([rows, rows], ignore_index=True)
    widths = []
    for table in (rows, twice.assign(patient=twice["case"]), twice):
        row = group_table(table, ["pancreas"]).iloc[0]
        widths.append(row["high"] - row["low"])
    assert widths[1] == pytest.approx(widths[0]) and widths[2] < 0.8 * widths[0]


def test_detection_of_a_center_equals_scikit_learn_and_statsmodels() -> None:
    """AUC, Brier score, calibration slope and intercept of one center's cases."""
    rows = scored_rows(4, 60)
    table = full_center_table(rows, STRUCTURES, QUICK).set_index("center")
    part = rows[rows["center"] == "Hospital B"]
    truth, logits = part["lesion_present"].astype(float), part["lesion_max_logit"]
    found = table.loc["Hospital B"]
    assert found["auc"] == pytest.approx(roc_auc_score(truth, logits)) and found["auc/low"] < found["auc"] < found["auc/high"]
    assert found["brier"] == pytest.approx(brier_score_loss(truth, special.expit(logits)))
    by_patient = {"cov_type": "cluster", "cov_kwds": {"groups": pd.factorize(part["patient"])[0]}}
    both = Logit(truth, np.column_stack([np.ones(len(part)), logits])).fit(disp=0, **by_patient)
    assert found["calibration_slope"] == pytest.approx(both.params.iloc[1], abs=1e-6)
    limits = found["calibration_slope/low"], found["calibration_slope/high"]
    assert limits == pytest.approx(both.conf_int().loc["x1"], abs=1e-5)
    large = Logit(truth, np.ones((len(part), 1)), offset=logits).fit(disp=0)
    assert found["calibration_intercept"] == pytest.approx(large.params.iloc[0], abs=1e-6)


def test_an_auc_takes_cases_of_both_kinds() -> None:
    """Blank below 10 and 10, not firm below 20 and 20; the sentence counts what is left."""
    few, some, many = (
        scored_rows(1, 2 * n).assign(center=name, lesion_present=[True, False] * n)
        for name, n in (("few", 9), ("some", 10), ("many", 20))
    )
    table = full_center_table(pd.concat([few, some, many], ignore_index=True), STRUCTURES, QUICK).set_index("center")
    assert np.isnan(table.loc["few", "auc"]) and not np.isnan(table.loc[["some", "many"], "auc"]).any()
    assert not table.loc["some", "auc/firm"] and table.loc["many", "auc/firm"]
    rows = pd.concat([few, some, many], ignore_index=True)
    assert aucs_left(rows).startswith("2 of 3 centers") and "1 of them have 20 and 20" in aucs_left(rows)
    assert auc_counts(rows).to_dict("records") == [{"set": "seen", "centers": 3, "firm": 1, "hollow": 1, "blank": 1}]
    both = auc_counts(rows.assign(seen=rows["center"] != "few"))
    assert both["set"].tolist() == ["seen", "held-out", "all"] and both["blank"].tolist() == [0, 1, 1]
    assert both.loc[2, ["centers", "firm", "hollow"]].tolist() == [3, 1, 1]
    lost = rows.assign(status=np.where(rows["center"] == "some", "no prediction", "scored"), lesion_max_logit=rows.index)
    assert auc_counts(lost)["hollow"].tolist() == [1]  # a failure counts as a score
    unknown = rows.assign(lesion_present=rows["lesion_present"].astype(object).where(rows["center"] != "many", None))
    assert auc_counts(unknown)["firm"].tolist() == [0]
    assert "no truth or no score" in aucs_left(rows.drop(columns="lesion_present"))


def test_the_threshold_is_tuned_on_seen_cases_alone() -> None:
    """Held-out scores do not move it; among seen negatives it leaves the wanted share, strictly above, out."""
    rows = scored_rows(6, 50)
    found = tuned_threshold(rows, "mask", "lesion_max_logit", 0.8)
    changed = rows.assign(lesion_max_logit=rows["lesion_max_logit"].where(rows["split"] == "val_seen", 9.0))
    assert tuned_threshold(changed, "mask", "lesion_max_logit", 0.8) == found
    negatives = rows.loc[(rows["split"] == "val_seen") & ~rows["lesion_present"], "lesion_max_logit"]
    assert (negatives <= found).mean() == pytest.approx(0.8, abs=1 / len(negatives))
    assert np.isnan(tuned_threshold(rows.assign(split=""), "mask", "lesion_max_logit"))


def test_gap_and_spread_have_a_line_a_score() -> None:
    """The gap is Welch's on center means; mean and worst center are of seen and of held-out ones apart."""
    rows = scored_rows(6, 20)
    gap = gap_table(rows, STRUCTURES, QUICK).set_index("score").loc["dsc/pancreas"]
    means = rows.groupby(["seen", "center"])["dsc/pancreas"].mean()
    expected = stats.ttest_ind(means[True], means[False], equal_var=False)
    assert (gap["gap"], gap["p"]) == pytest.approx((means[True].mean() - means[False].mean(), expected.pvalue))
    spread, worst = spread_tables(rows, STRUCTURES)
    assert spread["score"].tolist() == worst["score"].tolist() and set(worst["centers"]) == {"4 seen", "2 held-out"}
    line = spread[(spread["score"] == "dsc/pancreas") & (spread["centers"] == "4 seen")].iloc[0]
    assert line["10th percentile of cases"] == pytest.approx(np.quantile(rows.loc[rows["seen"], "dsc/pancreas"], 0.1))
    line = worst[(worst["score"] == "dsc/pancreas") & (worst["centers"] == "4 seen")].iloc[0]
    assert line["worst center"] == means[True].idxmin()


def test_who_was_trained_on_need_not_be_known() -> None:
    """Without it there is one side, and no gap."""
    rows = scored_rows(6, 20).assign(seen=None)
    assert gap_table(rows, STRUCTURES, QUICK).empty
    spread, _ = spread_tables(rows, STRUCTURES)
    assert set(spread["centers"]) == {"6"} and full_center_table(rows, STRUCTURES, QUICK)["seen"].isna().all()
