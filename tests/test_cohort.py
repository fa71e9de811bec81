"""The population: PanTS's published figures to the digit, what was wrong put right, and what a store knows besides."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from pants_dist import cli, cohort, population
from pants_dist.casefile import RECORD
from pants_dist.errors import UserError
from pants_dist.store import open_store, write_case, write_manifest
from pants_dist.structures import PANTS

HEADINGS = ("PanTS ID", *cohort.NEEDED)
FEW = [  # two train and three test scans
    ("PanTS_00000001", "(0.5, 0.5, 2.0)", "Venous", "F", "40", "SIEMENS", "1 Site", "Alpha", "US", "1"),
    ("PanTS_00000002", "(5.0, 0.8, 0.8)", "", "M ", "0", "GE", "1 Site", "Alpha", "US", "0"),
    ("PanTS_00009001", "(1.5, 1.5, 1.5)", "Arterial", "M", "60", "GE MEDICAL SYSTEMS", "1 Site", "Beta", "CN", "0"),
    ("PanTS_00009002", "(1.0, 1.0, 1.0)", "Delay", "", "80", "", "NA", "NA", "NA", "1"),
    ("PanTS_00009003", "(0.8, 3.0, 0.81)", "Non-contrast", "F", "", "", "NA", "NA", "NA", "0"),
]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.csv"
    pd.DataFrame(FEW, columns=HEADINGS).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def released(shared_data: Path) -> pd.DataFrame:
    return cohort.scans_of_metadata(shared_data / "pants_released" / "metadata.xlsx")


@pytest.fixture(scope="module")
def of_released(released: pd.DataFrame) -> population.Population:
    return population.population(released)


def column(found: population.Population, rule: str, group: str = "all") -> dict[tuple[str, str], str]:
    """(variable, level) -> the text of one rule's column."""
    rows = found.table[(found.table["rule"] == rule) & (found.table["group"] == group)].to_dict("records")
    return {(row["variable"], row["level"]): population.text(row) for row in rows}


PUBLISHED = {
    ("scans", ""): "9,901", (cohort.AGE, ""): "60.6 (13.0)",
    ("sex", "female"): "2,358 (23.8)", ("sex", "male"): "2,923 (29.5)", ("sex", "unknown"): "4,620 (46.7)",
    (cohort.IN_PLANE, ""): "0.81 (0.74, 0.98)", (cohort.SLICE, ""): "1.25 (0.80, 2.50)",
    ("phase", "non-contrast"): "4,488 (45.3)", ("phase", "portal venous"): "2,895 (29.2)",
    ("phase", "arterial"): "2,450 (24.7)", ("phase", "delayed"): "68 (0.8)", ("tumor", "yes"): "1,077 (10.9)",
}  # fmt: skip
PUT_RIGHT = {
    ("sex", "male"): "2,924 (29.5)", ("sex", "unknown"): "4,619 (46.7)", (cohort.AGE, "unknown"): "4,810 (48.6)",
    ("phase", "non-contrast"): "4,487 (45.3)", ("phase", "delayed"): "68 (0.7)", ("phase", "unknown"): "1 (0.0)",
    ("slice axis", "elsewhere"): "518 (5.2)",
    ("resampled at source", "1.5 mm isotropic"): "1,107 (11.2)", ("resampled at source", "1.0 mm isotropic"): "619 (6.3)",
}  # fmt: skip


def test_published_gives_the_published_figures(of_released: population.Population) -> None:
    """Of the 9,901 released scans every figure of the published table, digit by digit."""
    found = column(of_released, "published")
    assert {key: found[key] for key in PUBLISHED} == PUBLISHED


def test_corrected_puts_right_what_was_wrong(released: pd.DataFrame, of_released: population.Population) -> None:
    """'M ' is male, a missing phase and an age of 0 unknown; 518 scans have other slice axes, 489 of them Minnesota's."""
    found = column(of_released, "corrected")
    assert {key: found[key] for key in PUT_RIGHT} == PUT_RIGHT
    elsewhere = released[cohort.corrected(released)[cohort.SLICE_AXIS] == "elsewhere"]
    assert elsewhere["center"].value_counts().iloc[0] == 489
    assert "Minnesota" in elsewhere["center"].value_counts().index[0]


@pytest.mark.parametrize(
    ("rule", "variable", "test", "p"),
    [
        ("published", cohort.AGE, "Mann-Whitney", "0.0992"),
        ("published", cohort.AGE, "Welch", "0.0146"),
        ("published", cohort.SLICE, "Mann-Whitney", "4.03e-35"),
        ("corrected", "sex", "chi-square (Yates)", "0.826"),
        ("corrected", "phase", "chi-square", "3.49e-147"),
        ("corrected", "tumor", "chi-square (Yates)", "3.84e-09"),
    ],
)
def test_official_train_against_test(of_released: population.Population, rule: str, variable: str, test: str, p: str) -> None:
    """The p values of 9,000 training scans against 901 test scans, under the rule that each is known by."""
    tests = of_released.tests.set_index(["rule", "variable", "test"])["p"]
    assert of_released.pair == ("train", "test")
    assert f"{tests[rule, variable, test]:.3g}" == p


def test_few_scans_by_hand(few: Path) -> None:
    """Five scans, worked out by hand under both rules."""
    scans = cohort.scans_of_metadata(few)
    found = population.population(scans)
    published, corrected = column(found, "published"), column(found, "corrected")
    assert published[cohort.AGE, ""] == "45.0 (34.2)"  # 40, 0, 60, 80: sum of squares about 45 is 3,500
    assert corrected[cohort.AGE, ""] == "60.0 (20.0)"
    assert (published["sex", "unknown"], corrected["sex", "unknown"]) == ("2 (40.0)", "1 (20.0)")
    assert (published["phase", "non-contrast"], corrected["phase", "non-contrast"]) == ("2 (40.0)", "1 (20.0)")
    assert published[cohort.IN_PLANE, ""] == "1.00 (0.80, 1.50)"  # 0.5, 0.8, 1, 1.5, 5
    assert corrected[cohort.IN_PLANE, ""] == "0.80 (0.80, 1.00)"  # 0.5, 0.8, 0.8, 1, 1.5
    assert corrected[cohort.SLICE, ""] == "2.00 (1.50, 3.00)"  # 2, 5, 1.5, 1, 3
    assert corrected["slice axis", "elsewhere"] == "2 (40.0)"
    assert column(found, "corrected", "test")["scans", ""] == "3"
    assert column(found, "corrected", "test")["tumor", "yes"] == "1 (33.3)"


def test_groups_are_named_as_people_know_them(few: Path) -> None:
    """Makers under one spelling, centers by the rule of cases.py, unknown last; no tests but of two groups."""
    scans = cohort.scans_of_metadata(few)
    makers = population.population(scans, "manufacturer")
    assert list(makers.table["group"].unique()) == ["all", "GE", "Siemens", "unknown"]
    assert makers.pair == ("GE", "Siemens")
    centers = population.population(scans, "center")
    assert list(centers.table["group"].unique()) == ["all", "Alpha", "Beta", "unknown"]
    by_phase = population.population(scans, "phase")
    assert by_phase.pair is None and by_phase.tests.empty
    assert "SMD" not in population.side_by_side(by_phase)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((0.8, 0.8, 5), 2), ((5, 0.8, 0.8), 0), ((0.8, 5, 0.8), 1), ((1, 1, 1), 2), ((0.8, 5, 0.9), 1), ((2, 0.7, 0.8), 0)],
)
def test_the_through_plane_axis_is_the_odd_one(spacing: tuple[float, float, float], axis: int) -> None:
    """The axis unlike the two others, which need be equal only when they are the first two."""
    assert cohort.through_plane_axis(np.array([spacing])).tolist() == [axis]


def test_contrasts_equal_scipy_and_the_formulas() -> None:
    """p values are SciPy's on the known values; SMD by hand: Austin's for numbers and, of two levels, the same for shares."""
    rng = np.random.default_rng(0)
    ages = np.concatenate([rng.normal(60, 10, 40), rng.normal(65, 12, 30)])
    two, three = ["a"] * 10 + ["b"] * 30 + ["a"] * 15 + ["b"] * 15, list("abc" * 13) + ["a"] + list("aab" * 10)
    variables = pd.DataFrame({cohort.AGE: ages, "two": two, "three": three, "none": [None] * 70}).astype({"none": object})
    variables.loc[0, cohort.AGE] = math.nan
    found = population.contrasts(variables, pd.Series(["x"] * 40 + ["y"] * 30), "x", "y").set_index(["variable", "test"])
    x, y = ages[1:40], ages[40:]
    assert found.loc[(cohort.AGE, "Mann-Whitney"), "p"] == stats.mannwhitneyu(x, y).pvalue
    assert found.loc[(cohort.AGE, "Welch"), "p"] == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)
    apart = (y.mean() - x.mean()) / math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    assert found.loc[(cohort.AGE, "Welch"), "smd"] == pytest.approx(apart)
    # by hand: 10 of 40 against 15 of 30; Yates: n (|ad - bc| - n / 2)^2 / product of the margins
    yates = 70 * (abs(10 * 15 - 30 * 15) - 35) ** 2 / (40 * 30 * 25 * 45)
    assert found.loc[("two", "chi-square (Yates)"), "p"] == pytest.approx(stats.chi2.sf(yates, 1))
    assert found.loc[("two", "chi-square (Yates)"), "smd"] == pytest.approx(0.25 / math.sqrt((0.1875 + 0.25) / 2))
    # shares of b and c: 13/40, 13/40 against 1/3, 0: (d_b, d_c) S^-1 (d_b, d_c) with the mean covariance S
    s_bb, s_cc, s_bc = (13 * 27 / 1600 + 2 / 9) / 2, 13 * 27 / 1600 / 2, -169 / 1600 / 2
    d_b, d_c = 13 / 40 - 1 / 3, 13 / 40
    squared = (s_cc * d_b**2 - 2 * s_bc * d_b * d_c + s_bb * d_c**2) / (s_bb * s_cc - s_bc**2)
    assert found.loc[("three", "chi-square"), "smd"] == pytest.approx(math.sqrt(squared))
    assert math.isnan(found.loc[("none", "chi-square"), "p"])


@pytest.fixture(scope="module")
def with_duct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases: with a lesion and a duct 7 x 5 voxels wide, 1 mm in plane; and with neither, of another dataset."""
    folder = tmp_path_factory.mktemp("cohort") / "store"
    (folder / "cases").mkdir(parents=True)
    duct, pancreas, lesion = (PANTS.index(name) for name in ("pancreatic_duct", "pancreas", "pancreatic_lesion"))
    rows = []
    for number in (1, 2):
        codes = np.zeros((24, 40, 70), np.uint8)
        codes[2:22, 4:20, 4:60] = 1
        if number == 1:
            codes[10:13, 6:13, 10:50], codes[15:17, 15:18, 20:24] = 2, 3
        audit = {"lesions": 2, "median_hu": {"pancreas": 80.0, "pancreatic_lesion": 40.0}} if number == 1 else {}
        present = {"pancreas": codes > 0, "pancreatic_duct": codes == 2, "pancreatic_lesion": codes == 3}
        voxels = {name: int(mask.sum()) for name, mask in present.items() if mask.any()}
        record = {name: None for name in RECORD.names} | {
            "case": f"PanTS_0000000{number}", "official_split": "train", "center": "Alpha", "center_kind": "single",
            "dataset": "PanTS" if number == 1 else "ours", "tumor_flag": True if number == 1 else None,
            "metadata": json.dumps({"spacing": "(2.5, 1.0, 1.0)"} if number == 1 else {}),
            "sex": "M" if number == 1 else "", "age": 50.0 if number == 1 else None, "phase": "Venous" if number == 1 else "",
            "spacing_mm_zyx": [2.5, 1.0, 1.0], "structures": list(PANTS), "annotated": list(PANTS), "notes": [],
            "palette": [hex(mask) for mask in (0, 1 << pancreas, 1 << pancreas | 1 << duct, 1 << pancreas | 1 << lesion)],
            "voxels": json.dumps(voxels), "audit": json.dumps(audit), "sources": "[]",
        }  # fmt: skip
        drawn = {name: np.argwhere(mask)[::7] for name, mask in present.items() if mask.any()}
        path = folder / "cases" / f"{record['case']}.ozx"
        rows.append(write_case(path, record, np.zeros(codes.shape, np.int16), codes, drawn))
    write_manifest(folder, rows)
    return folder


def test_a_store_knows_tumors_volumes_and_ducts(with_duct: Path) -> None:
    """Tumors, cm3 and HU from the manifest, the duct's width from its voxels; a scan without them has NaN."""
    told: list[tuple[int, int]] = []
    scans = cohort.scans_of_store(open_store(with_duct), lambda done, total: told.append((done, total)))
    assert told == [(1, 1)]
    one, other = scans.to_dict("records")
    assert (one["tumors"], one["tumor_hu"], one["pancreas_hu"]) == (2, 40, 80)
    assert one["tumor_cm3"] == pytest.approx(2 * 3 * 4 * 2.5 / 1000)
    assert one["pancreas_cm3"] == other["pancreas_cm3"] == pytest.approx(20 * 16 * 56 * 2.5 / 1000)
    assert one["duct_mm"] == 7  # 7 voxels of 1 mm, less than 3 slices of 2.5 mm
    assert (one["spacing_mm_ijk"], other["spacing_mm_ijk"]) == ((2.5, 1, 1), (1, 1, 2.5))
    assert all(math.isnan(other[name]) for name in ("tumors", "tumor_cm3", "tumor_hu", "duct_mm", "tumor"))
    found = column(population.population(scans), "corrected")
    assert found["pancreatic duct", "dilated"] == "1 (50.0)" and found["pancreatic duct", "unknown"] == "1 (50.0)"
    assert found["tumors a positive scan", "unknown"] == "1 (50.0)"


def test_the_verb_speaks_and_writes(
    few: Path, with_duct: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terminal, JSON, CSV and Markdown, of a file and of a store."""
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main(["cohort", str(few), "--out", str(few.parent / "table.md")]) == 0
    printed = capsys.readouterr().out
    assert "45.0 (34.2)" in printed and "test against train" in printed
    assert "| age, years |  | 45.0 (34.2) | 60.0 (20.0) |" in (few.parent / "table.md").read_text()
    assert cli.main(["cohort", str(few), "--by", "sex", "--json", "--out", str(few.parent / "table.csv")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == "sex" and found["groups_compared"] == ["female", "male"]
    assert {row["group"] for row in found["table"]} == {"all", "female", "male", "unknown"}
    assert "sex" not in {row["variable"] for row in found["tests"]}
    assert pd.read_csv(few.parent / "table.csv").loc[0, "corrected"] == "5"
    assert cli.main(["cohort", str(with_duct)]) == 0
    assert "dilated" in capsys.readouterr().out


@pytest.mark.parametrize("width", [70, 80, 100])
def test_a_terminal_cuts_no_word(few: Path, width: int) -> None:
    """Of groups as many as there is room for, at least one; their names and all cells stand in whole words."""
    found = population.population(cohort.scans_of_metadata(few), "center")
    text = io.StringIO()
    population.print_population(found, Console(file=text, width=width))
    lines = text.getvalue().split("mean (SD)")[0].splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    wide = population.side_by_side(found)
    shown = [name for name in ("Alpha", "Beta", "unknown") if any(name in line.split() for line in lines[:5])]
    assert len(shown) == {70: 1, 80: 2, 100: 3}[width]
    cells = [*wide["variable"], *wide["level"], *wide["published"], *wide[shown[0]]]
    assert {word for cell in cells for word in cell.split()} <= set(text.getvalue().split())


def test_bad_input_is_one_line(few: Path, tmp_path: Path) -> None:
    """A table that lacks a column, a file of another ending and a place without a store are refused with what to do."""
    short = tmp_path / "short.csv"
    pd.read_csv(few, dtype=str).drop(columns="ct phase").to_csv(short, index=False)
    for words, message in (
        ([str(short)], 'no column "ct phase"; give the released'),
        ([str(few), "--out", "table.html"], "ends in .csv or .md"),
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(tmp_path / "gone.xlsx")], "metadata .*gone.xlsx: no such file; give the released metadata.xlsx"),
        ([str(few), "--by", "shoe size"], "invalid choice"),
    ):
        with pytest.raises(UserError, match=message):
            cli.run(["cohort", *words])
