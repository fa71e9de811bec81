import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pants_dist import detection
from pants_dist.detection import (
    GRID,
    absent_table,
    component_wise,
    curve,
    froc,
    froc_score,
    grid_auc,
    grid_scores,
    operating_point,
    threshold_at,
)
from pants_dist.presets import carried_over, detection_table, pants_nnunet_volume, rsuper_maxprob
from pants_dist.resampling import nest, resampled_weights
from pants_dist.stats import clustered_wilson, wilson
from tests.scored import scored_rows


def rows_of(voxels: list[float], present: list[int], **columns: list) -> pd.DataFrame:
    """Rows of two centers with these predicted lesion voxels of 2 mm3."""
    return pd.DataFrame(
        {
            "center": ["A", "B"] * (len(voxels) // 2) + ["A"] * (len(voxels) % 2),
            "status": "scored",
            "lesion_present": np.array(present, bool),
            "tumor_flag": np.array(present, bool),
            "predicted_voxels/pancreatic_lesion": voxels,
            "predicted_mm3/pancreatic_lesion": np.array(voxels) * 2.0,
            "dsc/pancreatic_lesion": [0.5 if there else np.nan for there in present],
            "lesion_max_logit_1mm": np.array(voxels) / 100 - 1,
            **columns,
        }
    )


def test_the_leaderboards_grid() -> None:
    """0 to 100 by 1, to 1,000 by 10, to 10,000 by 100, to 99,000 by 1,000: 370 thresholds, none twice."""
    steps = [*range(101), *range(110, 1001, 10), *range(1100, 10001, 100), *range(11000, 99001, 1000)]
    assert GRID.tolist() == steps and len(steps) == 370


def test_curve_is_strict_by_hand() -> None:
    """Ten voxels are positive above 9 and not above 10; of two negatives one has none, one has 5."""
    points = curve(np.array([1, 1, 0, 0]), np.array([10, 3, 0, 5.0]), np.array([0, 3, 4, 9, 10]))
    assert points["sensitivity"].tolist() == [1, 0.5, 0.5, 0.5, 0]
    assert points["specificity"].tolist() == [0.5, 0.5, 0.5, 1, 1]


def test_grid_auc_by_hand() -> None:
    """From the anchor (0, 1) to (0.5, 1), then down to 0.5 and on to (1, 0.5): 0.5 + 0.25; ties count half."""
    points = curve(np.array([1, 1, 0, 0]), np.array([10, 3, 0, 5.0]), GRID)
    assert grid_auc(points) == pytest.approx(0.75)
    silent = curve(np.array([1, 0]), np.array([0.0, 0.0]), GRID)
    assert grid_auc(silent) == 0.5  # no voxel anywhere: a straight line from the anchor to (1, 0)


def test_grid_auc_is_the_mann_whitney_area_of_gridded_volumes() -> None:
    """With all volumes on the grid it is the exact area; beyond its end, where nothing is added, an area is lost."""
    rng = np.random.default_rng(0)
    present = rng.random(200) < 0.4
    volumes = rng.choice(GRID, 200) * np.where(present, 1.0, rng.random(200) < 0.7)
    volumes = GRID[np.searchsorted(GRID, volumes)].astype(float)
    assert grid_auc(curve(present, volumes, GRID)) == pytest.approx(roc_auc_score(present, volumes))
    volumes[:20] = 200_000
    lost = grid_auc(curve(present, volumes, GRID))
    assert lost < roc_auc_score(present, np.minimum(volumes, 99_001)) - 0.001
    assert roc_auc_score(present, grid_scores(present, volumes, GRID)) == pytest.approx(lost)


def test_operating_point_nearest_a_specificity() -> None:
    """0.85 and 0.95 are equally near 0.90, so the lower threshold is taken; it is carried over as a number."""
    points = pd.DataFrame({"threshold": [0, 7, 8, 9], "specificity": [0.5, 0.85, 0.95, 1.0], "sensitivity": 0.5})
    assert threshold_at(points) == 7
    sensitivity, specificity = operating_point(np.array([1, 1, 0, 0]), np.array([8, 7, 7, 9.0]), 7)
    assert (sensitivity.value, specificity.value) == (0.5, 0.5)
    assert math.isnan(threshold_at(points.assign(specificity=np.nan)))


def test_volume_preset_by_hand() -> None:
    """Ten negatives with 0..9 voxels: the specificity is 0.9 above 8, where 2 of 3 lesions are found."""
    rows = rows_of([*range(10), 9, 8, 500], [0] * 10 + [1] * 3)
    rows.loc[10, "dsc/pancreatic_lesion"] = 0.09
    rows.loc[11, "dsc/pancreatic_lesion"] = 0.1
    found = pants_nnunet_volume(rows, draws=200)
    assert (found["preset"], found["truth"], found["positives"], found["negatives"]) == (
        "pants_nnunet_volume", "mask", 3, 10,
    )  # fmt: skip
    assert (found["threshold"], found["sensitivity"], found["specificity"]) == (8, pytest.approx(2 / 3), 0.9)
    assert found["sensitivity/low"] == pytest.approx(wilson(2, 3).low)
    assert found["auc"] == pytest.approx(roc_auc_score(rows["lesion_present"], rows.iloc[:, 4]))
    assert (found["tumor_wise"], found["tumor_wise/n"]) == (pytest.approx(2 / 3), 3)
    assert found["dsc"] == pytest.approx((0.09 + 0.1 + 0.5) / 3)
    assert pants_nnunet_volume(rows, unit="mm3", draws=200)["threshold"] == 16


def test_failures_count_against_the_system() -> None:
    """A case without a prediction is a miss with a lesion and a false alarm without, and its Dice is 0."""
    rows = rows_of([0, 0, 50, 60], [0, 0, 1, 1])
    whole = pants_nnunet_volume(rows, draws=100)
    rows.loc[[1, 3], "status"] = "no prediction"
    rows.loc[[1, 3], ["predicted_voxels/pancreatic_lesion", "lesion_max_logit_1mm"]] = np.nan
    found = pants_nnunet_volume(rows, draws=100)
    assert (whole["sensitivity"], whole["specificity"], whole["auc"]) == (1, 1, 1)
    assert (found["sensitivity"], found["specificity"], found["failures"]) == (0.5, 0.5, 2)
    assert (found["tumor_wise"], found["dsc"]) == (0.5, 0.25)
    assert found["auc"] == pytest.approx(0.25 + 0.5 * 0.25)  # one pair of four is right, one ties at no voxels
    assert rsuper_maxprob(rows, draws=100)["auc"] == pytest.approx(0.25)


def test_truth_by_flag_and_by_mask_differ() -> None:
    """A case flagged without a mask is a positive by flag and a negative by mask; an unknown flag is left out."""
    rows = rows_of([0, 30, 20, 90], [0, 0, 1, 1], tumor_flag=[False, True, True, None])
    by_flag, by_mask = (rsuper_maxprob(rows, truth, draws=100) for truth in ("flag", "mask"))
    assert (by_flag["positives"], by_flag["negatives"], by_flag["auc"]) == (2, 1, 1)
    assert (by_mask["positives"], by_mask["negatives"], by_mask["auc"]) == (2, 2, 0.75)


def test_maximum_logit_equals_scikit_learn() -> None:
    """The area is scikit-learn's; ordering by logits is ordering by probabilities."""
    rng = np.random.default_rng(1)
    present = rng.random(40) < 0.5
    rows = rows_of(list(rng.integers(0, 30, 40)), list(present.astype(int)))
    found = rsuper_maxprob(rows, draws=200)
    probabilities = 1 / (1 + np.exp(-rows["lesion_max_logit_1mm"]))
    assert found["auc"] == pytest.approx(roc_auc_score(present, probabilities))
    assert found["auc/low"] <= found["auc"] <= found["auc/high"]


def component_rows() -> pd.DataFrame:
    """Three scans: both lesions found and a false one, one of two found, a normal scan with a false one."""
    return pd.DataFrame(
        {
            "status": "scored",
            "lesion_components": [2, 2, 0],
            "lesion_components_hit": [2, 1, 0],
            "lesion_components_false": [1, 0, 1],
            "lesion_component_logits": [[3.0, 1.0, 2.0], [0.5], [2.0]],
            "lesion_component_matched": [[True, True, False], [True], [False]],
        }
    )


def test_component_wise_by_hand() -> None:
    """3 of 4 lesions in 3 scans with 2 false ones; a failed scan misses all of its own, an unannotated one is left out."""
    found = component_wise(component_rows())
    assert (found["sensitivity"], found["sensitivity/n"], found["false_per_scan"]) == (0.75, 4, pytest.approx(2 / 3))
    lost = component_rows()
    lost.loc[0, "status"] = "no prediction"
    assert component_wise(lost)["sensitivity"] == 0.25
    assert component_wise(lost.assign(lesion_components=[np.nan, 2, 0]))["sensitivity"] == 0.5
    assert math.isnan(component_wise(component_rows().iloc[2:])["sensitivity"])


def test_froc_by_hand() -> None:
    """From strict to lax: 3.0 hits one of four; 2.0 adds two false ones in 3 scans; 1.0 and 0.5 hit one more each."""
    points = froc(component_rows())
    assert points["threshold"].tolist() == [np.inf, 3, 2, 1, 0.5]
    assert points["sensitivity"].tolist() == [0, 0.25, 0.25, 0.5, 0.75]
    assert points["false_per_scan"].tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3, 2 / 3])
    assert froc_score(component_rows(), rates=(0.5, 1.0)).value == pytest.approx((0.25 + 0.75) / 2)
    assert np.isnan(froc_score(component_rows().iloc[2:], draws=50)[:3]).all()


def test_a_froc_score_is_resampled_by_centers_then_patients() -> None:
    """Each resample's score is that of a table in which cases stand as often as they were drawn; ties and failures too."""
    rows = scored_rows(6, 8).round({"lesion_max_logit": 1})
    rows["lesion_component_logits"] = [[round(one, 1) for one in case] for case in rows["lesion_component_logits"]]
    rows.loc[[3, 11], "status"] = "no prediction"
    rows["lesion_components"] = rows["lesion_components"].astype(float).mask(rows.index == 7)
    centers, patients = rows["center"].tolist(), rows["patient"].tolist()
    found = froc_score(rows, patients, centers, draws=60, seed=3)
    keep = rows.index != 7
    weights = resampled_weights(nest(centers, patients, keep), 60, np.random.default_rng(3))
    scores = [one_froc_score(rows[keep].loc[rows.index[keep].repeat(times)]) for times in weights]
    assert (found.low, found.high) == pytest.approx(tuple(np.nanquantile(scores, [0.025, 0.975])))
    assert found.value == pytest.approx(one_froc_score(rows)) and found.n == 47
    assert found == froc_score(rows, patients, centers, draws=60, seed=3) != froc_score(rows, patients, centers, draws=60)
    table = detection_table(rows, patients, draws=60, seed=3).set_index("preset")
    line = table.loc["component_wise", ["froc_score", "froc_score/low", "froc_score/high"]]
    assert line.tolist() == pytest.approx(list(found[:3]))


def one_froc_score(rows: pd.DataFrame) -> float:
    """By scanning the points of the curve for each rate."""
    points = froc(rows).to_dict("records")
    rates = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
    return sum(max(point["sensitivity"] for point in points if point["false_per_scan"] <= rate) for rate in rates) / 7


def tuned_rows() -> pd.DataFrame:
    """Ten tuning cases of a seen center without a lesion, 0..9 voxels; two held-out centers; a training case."""
    rows = rows_of([*range(10), 9, 8, 9, 8, 50, 500], [0] * 10 + [1, 1, 0, 0, 0, 0])
    places = ["A"] * 10 + ["B"] * 4 + ["C"] + ["A"]
    splits = ["val_seen"] * 10 + ["held_out"] * 5 + ["train"]
    return rows.assign(center=places, split=splits, seen=[center == "A" for center in places])


def test_a_threshold_of_seen_tuning_cases_is_carried_over() -> None:
    """Specificity 0.9 above 8 voxels on tuning cases; there B finds 1 of 2 and clears 1 of 2, C clears none of 1."""
    table = carried_over(tuned_rows())
    found = table[(table["preset"] == "tuned_volume") & (table["truth"] == "mask")].set_index("cases")
    assert found.index.tolist() == ["tuning cases", "all others", "B", "C"] and set(found["threshold"]) == {8}
    assert found["set"].tolist() == ["seen", "", "held-out", "held-out"]
    assert found["specificity"].tolist() == pytest.approx([0.9, 1 / 3, 0.5, 0.0])
    assert found.loc["B", "sensitivity"] == 0.5 and math.isnan(found.loc["C", "sensitivity"])
    assert found["specificity/n"].tolist() == [10, 3, 2, 1]
    logits = table[(table["preset"] == "tuned_maxprob") & (table["truth"] == "flag")].set_index("cases")
    assert logits.loc["tuning cases", "threshold"] == pytest.approx(8 / 100 - 1)
    assert carried_over(tuned_rows(), specificity=0.5)["threshold"].iloc[0] == 4
    lost = tuned_rows()
    lost.loc[[11, 13], "status"] = "no prediction"
    assert carried_over(lost).set_index("cases").loc["B", "specificity"].iloc[0] == 0
    presets = detection_table(tuned_rows(), draws=50).set_index(["preset", "truth"])
    assert presets.loc[("tuned_volume", "mask"), ["positives", "negatives", "sensitivity"]].tolist() == [2, 3, 0.5]
    assert carried_over(tuned_rows().assign(split="test")).empty


def test_false_positive_volumes_by_hand() -> None:
    """Of four cases one has the structure, one has no prediction; 2 and 0 cm3 in the other two."""
    rows = pd.DataFrame({"reference_mm3/liver": [0.0, 0, 9, 0], "predicted_mm3/liver": [2000.0, 0, 9, math.nan]})
    assert absent_table(rows, ["liver", "spleen"]).to_dict("records") == [
        {"structure": "liver", "absent in": 2, "predicted in": 1, "mean, cm3": 1.0, "largest, cm3": 2.0}
    ]


def test_one_table_of_all_presets() -> None:
    """Every preset stands under each truth once, and the table is a function of the seed."""
    rows = rows_of([0, 3, 20, 90], [0, 0, 1, 1]).assign(
        lesion_components=[0, 0, 1, 1], lesion_components_hit=[0, 0, 1, 0], lesion_components_false=[0, 1, 0, 1]
    )
    table = detection_table(rows, draws=100)
    named = list(zip(table["preset"], table["truth"], strict=True))
    presets = ["pants_nnunet_volume", "pants_nnunet_volume_mm3", "rsuper_maxprob"]
    both = detection_table(rows.assign(lesion_max_logit=0.0), draws=100)
    assert set(both["preset"]) - set(table["preset"]) == {"maxprob_source_grid"}
    others = [(preset, truth) for truth in detection.TRUTHS for preset in presets[1:]]
    assert named == [(presets[0], "mask"), (presets[0], "flag"), ("component_wise", "mask"), *others]
    pd.testing.assert_frame_equal(table, detection_table(rows, draws=100))
    without = detection_table(rows.drop(columns=["tumor_flag", "lesion_components"]), draws=100)
    assert without["truth"].tolist() == ["mask"] * 3


def test_volumes_in_mm3_rank_otherwise_where_voxels_differ() -> None:
    """A large lesion of few thick voxels outranks a small one of many thin ones in mm3 alone."""
    rows = rows_of([100, 60], [0, 1])
    rows["predicted_mm3/pancreatic_lesion"] = [100 * 0.5, 60 * 3.0]
    assert pants_nnunet_volume(rows, draws=50)["auc"] == 0
    assert pants_nnunet_volume(rows, unit="mm3", draws=50)["auc"] == 1


def test_shares_of_pooled_cases_are_as_certain_as_centers_agree() -> None:
    """From five centers on sensitivity, specificity, tumor-wise and component-wise sensitivity are over centers, else over
    patients: the interval of a table in which a center's cases are one cluster; a single center's is over its patients."""
    rows = scored_rows(8, 20).assign(tumor_flag=lambda table: table["lesion_present"])
    centers, patients = rows["center"].tolist(), rows["patient"].tolist()
    table = detection_table(rows, patients, draws=50).set_index(["preset", "truth"])
    present, voxels = rows["lesion_present"].to_numpy(), rows["predicted_voxels/pancreatic_lesion"].to_numpy()
    line = table.loc[("pants_nnunet_volume", "mask")]
    for side, name in ((present, "sensitivity"), (~present, "specificity")):
        right = (voxels > line["threshold"]) == present
        expected = clustered_wilson(right[side], np.array(centers)[side])
        assert (line[f"{name}/low"], line[f"{name}/high"]) == (expected.low, expected.high)
        assert expected != clustered_wilson(right[side], np.array(patients)[side])
    hit = clustered_wilson(rows["lesion_components_hit"][present], np.array(centers)[present])
    assert table.loc[("component_wise", "mask"), "sensitivity/low"] == hit.low
    carried = carried_over(rows, patients).set_index(["preset", "truth", "cases"]).sort_index().loc[("tuned_volume", "mask")]
    part = rows[rows["center"] == "Hospital H"]
    found = (part["predicted_voxels/pancreatic_lesion"] > carried["threshold"].iloc[0])[part["lesion_present"]]
    within = clustered_wilson(found, part.loc[part["lesion_present"], "patient"])
    assert (carried.loc["Hospital H", "sensitivity/low"], within.n) == (within.low, found.size)
