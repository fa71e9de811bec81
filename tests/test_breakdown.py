from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pants_dist.breakdown import breakdown, subgroup_rows
from pants_dist.bycenter import distance_table, generalization_gap
from pants_dist.errors import UserError
from pants_dist.protocol import Analysis, read_analysis
from pants_dist.results import report_results
from tests.scored import scored_rows

LESION = "pancreatic_lesion"
ROWS = scored_rows(4, 30).assign(
    sex=lambda rows: ["M", "F", None] * 40, age=lambda rows: [35, 55, 65, 85] * 30, dataset="PanTS", nationality=""
)


def tables_of(rows: pd.DataFrame, analysis: Analysis | None = None) -> dict[str, pd.DataFrame]:
    parts = breakdown(rows, ["liver", "pancreas"], "dsc/pancreas", analysis or Analysis())
    return {name: table for name, _, table in parts}


def test_scores_by_every_column_that_tells_cases_apart() -> None:
    """One dataset and no nationality: neither is a subgroup. What is not known is one; crossings are of two columns."""
    found = tables_of(ROWS)["subgroups"]
    assert set(found["by"]) == {"sex", "age_band", "phase", "slice_band", "sex x age_band", "phase x slice_band"}
    assert set(found["score"]) == {"dsc/liver", "dsc/pancreas", "nsd/pancreas"}
    line = found[(found["by"] == "sex") & (found["subgroup"] == "unknown") & (found["score"] == "dsc/liver")].iloc[0]
    assert line["n"] == 40 and line["value"] == pytest.approx(ROWS["dsc/liver"][2::3].mean())
    older = ROWS[(ROWS["sex"] == "F") & (ROWS["age"] == 85)]
    crossed = tables_of(ROWS)["subgroups_primary"].set_index(["by", "subgroup"]).loc[("sex x age_band", "F, >= 80")]
    assert crossed["n"] == len(older) and crossed["dsc/pancreas"] == pytest.approx(older["dsc/pancreas"].mean())


def test_predictive_values_are_those_of_the_stated_prevalence() -> None:
    """Bayes' theorem by hand, from the sensitivity and specificity of the same line."""
    line = tables_of(ROWS, Analysis(prevalence=0.2))["subgroup_detection"].iloc[0]
    sensitivity, specificity = line["sensitivity"], line["specificity"]
    assert line["by"] == "all" and line["sensitivity/n"] + line["specificity/n"] == 120
    expected = sensitivity * 0.2 / (sensitivity * 0.2 + (1 - specificity) * 0.8)
    assert line["PPV"] == pytest.approx(expected) and line["PPV/low"] < expected < line["PPV/high"]
    assert line["NPV"] == pytest.approx(specificity * 0.8 / (specificity * 0.8 + (1 - sensitivity) * 0.2))


def test_centers_at_one_case_mix() -> None:
    """Thick slices score 0.2 lower, and center B has mostly such: its mean as it is is worse, the adjusted one alike."""
    thick = np.array([False] * 30 + [True] * 10 + [True] * 30 + [False] * 10)
    noise = np.random.default_rng(0).normal(0, 0.01, 80)
    rows = pd.DataFrame({
        "case": range(80), "center": ["A"] * 40 + ["B"] * 40, "spacing_z_mm": np.where(thick, 5.0, 1.0),
        "dsc/pancreas": 0.8 - 0.2 * thick + noise,
    })  # fmt: skip
    table = tables_of(rows)["adjusted"].set_index("center")
    assert table["mean"]["A"] - table["mean"]["B"] > 0.08
    assert abs(table["adjusted"]["A"] - table["adjusted"]["B"]) < 0.01
    assert table["adjusted/low"]["A"] < table["adjusted"]["A"] < table["adjusted/high"]["A"]


def test_a_crossing_of_what_is_not_there_is_refused_if_it_was_asked_for() -> None:
    assert len(subgroup_rows(ROWS.drop(columns="sex"), Analysis())[1]) == 4
    with pytest.raises(UserError, match="crossings name race; the rows and the metadata have sex, age_band"):
        subgroup_rows(ROWS, Analysis(crossings=(("sex", "race"),)))


def fold(seen: list[bool], scores: list[float], trained: int, split: str = "") -> pd.DataFrame:
    return pd.DataFrame({
        "case": list("abcdef"), "center": list("AABBCC"), "center_kind": "single", "seen": seen, "trained_cases": trained,
        "split": [split or ("val_seen" if one else "held_out") for one in seen], "dsc/pancreas": scores,
    })  # fmt: skip


def test_the_generalization_gap_is_paired_by_case() -> None:
    """A model that saw all centers, and one for each of A and B that did not: by hand, (0.2 + 0.1) / 2 over centers A and B."""
    every = fold([True] * 6, [0.8, 0.8, 0.9, 0.9, 0.7, 0.7], 100)
    no_a = fold([False] * 2 + [True] * 4, [0.6, 0.6, 0.9, 0.9, 0.7, 0.7], 100)
    no_b = fold([True] * 2 + [False] * 2 + [True] * 2, [0.8, 0.8, 0.7, 0.9, 0.7, 0.7], 100)
    models = {"every": every, "no A": no_a, "no B": no_b}
    table, said = generalization_gap(models, ["pancreas"], Analysis(draws=100))
    assert table["gap"].tolist() == [pytest.approx((0.2 + 0.1) / 2)] and table["centers"][0] == 2 and table["cases"][0] == 4
    assert table["method"][0] == "paired t" and "trained on 100 cases each" in said
    _, said = generalization_gap({"every": every, "no A": no_a.assign(trained_cases=60)}, ["pancreas"], Analysis(draws=100))
    assert "on 100 cases with the center and on 60 without" in said
    trained = fold([True] * 6, [0.99] * 6, 100, split="train")
    for others in ({}, {"no A": no_a[:2]}):
        table, said = generalization_gap({"trained": trained, **others}, ["pancreas"], Analysis(draws=100))
        assert table.empty and "is not given" in said


def test_distances_count_what_is_undefined() -> None:
    rows = pd.DataFrame({
        "dsc/liver": [0.9, 0.0, None, 0.8], "nsd/liver": [0.9, 0.0, None, 0.7], "hd95_mm/liver": [2.0, None, None, 4.0],
        "tolerance_mm/liver": [2.0, 2.0, None, 2.0], "center": "A",
    })  # fmt: skip
    (line,) = distance_table(rows, ["liver"]).to_dict("records")
    assert (line["n"], line["HD95, mm (median)"], line["HD95 undefined"], line["tolerance, mm"]) == (3, 3.0, 1, 2.0)


def test_tolerances_that_rows_were_not_scored_with_are_refused(tmp_path: Path) -> None:
    """A declared one decides: what is scored with another says so; without a declaration the page names those used."""
    ROWS.assign(**{"tolerance_mm/pancreas": 3.0}).to_parquet(tmp_path / "ours.parquet")
    report_results([tmp_path / "ours.parquet"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "in mm: pancreas 3" in page and "Subgroups and case mix" in page
    (tmp_path / "plan.yaml").write_text("draws: 100\ntolerances_mm: {liver: 1}\n")
    assert read_analysis(tmp_path / "plan.yaml").tolerances_mm["pancreas"] == 5
    with pytest.raises(UserError, match="tolerances_mm of pancreas is 5, but ours was scored with 3; score it again"):
        report_results([tmp_path / "ours.parquet"], tmp_path / "out", analysis=tmp_path / "plan.yaml")
