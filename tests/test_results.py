import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pants_dist import cli
from pants_dist.errors import UserError
from pants_dist.protocol import Analysis
from pants_dist.results import model_names, read_results, read_rows, report_results, structures_of, tables_of
from pants_dist.stats import outermost, t_interval
from tests.scored import scored_rows

ROWS = pd.DataFrame(
    {"case": ["a", "b", "c"], "center": ["X", "X", "Y"], "seen": [True, True, False], "dsc/liver": [0.9, 0.7, 0.5]}
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder in which two splits were scored."""
    for split, part in (("val_seen", ROWS[:2]), ("held_out", ROWS[2:])):
        (tmp_path / "run" / "evaluation" / split).mkdir(parents=True)
        part.to_parquet(tmp_path / "run" / "evaluation" / split / "cases.parquet")
    return tmp_path / "run"


def test_a_report_is_made_again_from_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All splits of the run in one table and one page; nothing of the run is read but its rows."""
    assert cli.main(["report", str(run), "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "No AUC of centers: the rows have no truth or no score of lesions." in said
    assert "0.80" in said and "0.50" in said and said.splitlines()[-1] == f"Next: open {tmp_path / 'again' / 'report.html'}"
    page = (tmp_path / "again" / "report.html").read_text()
    assert "held_out" in page and "X" in page


def test_rows_of_other_people_need_few_columns(tmp_path: Path) -> None:
    """A CSV with case, center, seen and Dice is enough, and gives the same rows as parquet."""
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    rows = report_results([tmp_path / "rows.csv"], tmp_path / "out").rows
    assert rows[list(ROWS)].equals(ROWS) and structures_of(rows) == ["liver"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_results_that_cannot_be_used_are_refused(run: Path, tmp_path: Path) -> None:
    """Nothing there, no table, a column missing, a case twice: each by name."""
    assert tables_of(run / "evaluation") == tables_of(run)
    with pytest.raises(UserError, match='no cases.parquet there.*"pants-dist evaluate'):
        tables_of(tmp_path / "nowhere")
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read"):
        read_rows(tmp_path / "x.parquet")
    ROWS.drop(columns="center").to_csv(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"x\.csv: no column center; give --metadata FILE --group COLUMN"):
        report_results([tmp_path / "x.csv"], tmp_path / "out")
    ROWS.to_parquet(run / "evaluation" / "val_seen" / "cases.parquet")
    with pytest.raises(UserError, match=r"case c stands in more than one of"):
        report_results([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Two models' scores and metadata as people have them: semicolons, a byte-order mark, blanks, file endings."""
    rng, cases = np.random.default_rng(0), [f"PanTS_{number:08d}" for number in range(9001, 9025)]
    for model in ("first", "second"):
        scores = pd.DataFrame({"Case ID": [f"{case}.nii.gz" for case in cases], "pancreas": rng.uniform(0.5, 0.9, 24)})
        scores["liver"] = np.where(np.arange(24) % 4 == 0, np.nan, rng.uniform(0.8, 0.95, 24))
        scores.to_csv(tmp_path / f"{model}.csv", index=False)
    lines = [f"{case} ; {('Mayo', 'Ulm ', '')[number % 3]};{20 + number}" for number, case in enumerate(cases)]
    (tmp_path / "meta.csv").write_bytes("\n".join(["\ufeffPanTS ID;Site ;age", *lines]).encode())
    return tmp_path


def test_rows_of_other_people_by_any_column(others: Path) -> None:
    """groups.csv has each group and structure with SciPy's interval; every table and figure is there in each format."""
    words = ["report", str(others / "first.csv"), "--metadata", str(others / "meta.csv"), "--group", "site"]
    assert cli.main([*words, "--out", str(others / "out")]) == 0
    groups = pd.read_csv(others / "out" / "groups.csv")
    assert list(groups) == ["group", "structure", "n", "mean", "median", "low", "high"]
    assert groups["group"].unique().tolist() == ["Mayo", "Ulm", "unknown"] and set(groups["structure"]) == {"pancreas", "liver"}
    scores = pd.read_csv(others / "first.csv")
    for row in groups.to_dict("records"):
        values = scores[row["structure"]][["Mayo", "Ulm", "unknown"].index(row["group"]) :: 3].dropna()
        limits = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        expected = (len(values), values.mean(), values.median(), *limits)
        assert tuple(row[name] for name in ("n", "mean", "median", "low", "high")) == pytest.approx(expected)
    names = {path.name for path in (others / "out").iterdir()}
    tables = ("groups", "centers", "pairs", "spread", "worst_center", "worst_cases")
    assert {f"{name}.{ending}" for name in tables for ending in ("csv", "md", "tex")} <= names
    assert {f"{name}.{ending}" for name in ("centers", "funnel", "boxes") for ending in ("png", "svg")} <= names
    page = (others / "out" / "report.html").read_text()
    assert "Center is confounded with source dataset" in page and "CLAIM" in page and "Metrics Reloaded" in page
    assert not re.search(r"[^n]cancer", page.lower())


def test_models_are_compared_and_the_same_words_give_the_same_bytes(others: Path) -> None:
    """Several files are several models; rerun into another folder, every file is equal to the byte."""
    words = ["report", *(str(others / f"{name}.csv") for name in ("first", "second")), "--group", "site"]
    for out in ("one", "two"):
        assert cli.main([*words, "--metadata", str(others / "meta.csv"), "--out", str(others / out)]) == 0
    files = sorted(path.relative_to(others / "one") for path in (others / "one").rglob("*") if path.is_file())
    assert all((others / "one" / file).read_bytes() == (others / "two" / file).read_bytes() for file in files)
    assert {"comparisons.csv", "touchstone.csv", "significance.png"} <= {file.name for file in files}
    assert Path("second/groups.csv") in files


def test_everything_that_our_rows_know_is_reported(tmp_path: Path) -> None:
    """Rows of an evaluation have detection, calibration, shortcuts, presets, a gap, and models' sensitivities compared."""
    analysis = tmp_path / "analysis.yaml"
    analysis.write_text("primary: dsc/pancreas\ndraws: 100\n")
    scored_rows(4, 30).to_parquet(tmp_path / "ours.parquet")
    scored_rows(4, 30).assign(lesion_max_logit=0.0).to_parquet(tmp_path / "blind.parquet")
    report_results([tmp_path / "ours.parquet", tmp_path / "blind.parquet"], tmp_path / "out", analysis=analysis)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tables = ("gap", "shortcuts", "detection", "calibration_table", "auc_weights", "presets", "detection_comparisons")
    assert {f"{name}.csv" for name in tables} | {"roc.svg", "froc.svg", "calibration.svg", "gap.svg"} <= names
    page = (tmp_path / "out" / "report.html").read_text()
    assert "centers have the 10 cases with and 10 without a lesion" in page and "<td>pants_nnunet_volume</td>" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links) and "url(http" not in page
    analysis.write_text("primary: dsc/liver\ndraws: 100\n")
    report_results([tmp_path / "ours.parquet"], tmp_path / "out", analysis=analysis)
    assert "(primary)" in (tmp_path / "out" / "report.html").read_text()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"roc_models.png", "analysis.csv", "subgroup_calibration.csv"} <= names


def test_groups_that_are_no_centers_leave_the_centers_as_they_are(tmp_path: Path) -> None:
    """By sex the comparison of models, the shortcuts and the AUC within centers still are by center, to the digit."""
    (tmp_path / "analysis.yaml").write_text("draws: 100\n")
    for name, skill in (("ours", 1.5), ("theirs", 0.5)):
        rows = scored_rows(6, 20, skill=skill).assign(sex=["F", "M"] * 60)
        rows.to_parquet(tmp_path / f"{name}.parquet")
    files = [tmp_path / "ours.parquet", tmp_path / "theirs.parquet"]
    for group in ("center", "sex"):
        report_results(files, tmp_path / group, group=group, analysis=tmp_path / "analysis.yaml")
    for name in ("comparisons", "shortcuts", "auc_weights", "detection_comparisons"):
        texts = [(tmp_path / group / f"{name}.csv").read_text() for group in ("center", "sex")]
        assert texts[0] == texts[1], name
    assert pd.read_csv(tmp_path / "sex" / "comparisons.csv")["centers"][0] > 2  # there are two sexes
    women = pd.read_csv(tmp_path / "sex" / "groups.csv").set_index(["group", "structure"]).loc[("F", "pancreas")]
    part = scored_rows(6, 20)[::2]
    expected = t_interval(part["dsc/pancreas"], outermost(part["center"].tolist(), None))
    assert (women["low"], women["high"]) == pytest.approx((expected.low, expected.high))


def test_cases_whose_centers_nobody_names(others: Path) -> None:
    """By age models are compared case by case, and the page says that nothing more is known."""
    meta = (others / "meta.csv").read_text(encoding="utf-8-sig").splitlines()
    (others / "ages.csv").write_text("\n".join(";".join(line.split(";")[::2]) for line in meta))
    report_results([others / "first.csv", others / "second.csv"], others / "out", others / "ages.csv", "age")
    (line,) = pd.read_csv(others / "out" / "comparisons.csv").to_dict("records")
    first, second = (pd.read_csv(others / f"{name}.csv")["pancreas"] for name in ("first", "second"))
    expected = stats.ttest_rel(first, second)
    assert (line["difference"], line["p"]) == pytest.approx(((first - second).mean(), expected.pvalue))
    assert line["centers"] == 0 and "nobody names their centers" in (others / "out" / "report.html").read_text()


SPELT = {  # in other people's tables -> the center
    "M.D. Anderson": "University of Texas MD Anderson Cancer Center",
    "MD Anderson  Cancer Center ": "University of Texas MD Anderson Cancer Center",
    "memorial sloan-kettering": "Memorial Sloan Kettering Cancer Center",
    "University Hospital Basel (C)": "University Hospital Basel",
    "University Hospital Basel, institute D": "University Hospital Basel",
    "The Cancer Imaging Archive": "unknown", "NA": "unknown", "A": "A", "Ulm": "Ulm",
}  # fmt: skip


@pytest.mark.parametrize("group", ["Clinic", "sex"])
def test_spellings_of_a_center_are_one(tmp_path: Path, group: str, capsys: pytest.CaptureFixture) -> None:
    """Other people's column of centers is folded as PanTS's is, whether groups are centers or models are compared by them; how
    many were is said. A letter alone is nobody's institute."""
    rng, names = np.random.default_rng(0), list(SPELT) * 6
    for model in ("one", "two"):
        lines = [f"c{n};{name};{'FM'[n % 2]};{rng.uniform(0.5, 0.9):.3f}" for n, name in enumerate(names)]
        (tmp_path / f"{model}.csv").write_text("\n".join(["case;Clinic;sex;pancreas", *lines]))
    words = ["report", str(tmp_path / "one.csv"), str(tmp_path / "two.csv"), "--group", group, "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "Centers: 6 spellings folded into 4 centers: M.D. Anderson is University of Texas" in capsys.readouterr().out
    assert "6 spellings folded into 4 centers" in (tmp_path / "out" / "report.html").read_text()
    groups = pd.read_csv(tmp_path / "out" / "groups.csv").set_index("group")["n"].to_dict()
    sizes = {center: 6 * list(SPELT.values()).count(center) for center in SPELT.values()}
    assert groups == (sizes if group == "Clinic" else {"F": 27, "M": 27})
    assert pd.read_csv(tmp_path / "out" / "comparisons.csv")["centers"].tolist() == [6]
    spread = tmp_path / "out" / "spread.csv"
    assert not spread.exists() if group == "sex" else pd.read_csv(spread)["centers"].tolist() == [5]  # not unknown ones


def test_pants_own_site_columns_are_its_centers(tmp_path: Path) -> None:
    """Grouped by site, or site detail, which each say half of it, the groups are the centers; pools stay pools."""
    table = pd.DataFrame({
        "PanTS ID": list("abcdefgh"), "site": ["1 Site", "1 Site", "B", "C", "15 Sites", "NA", "1 Site", "1 Site"],
        "site detail": ["M.D. Anderson", "MD Anderson Cancer Center", "x", "x", "Ulm; Mayo", "NA", "Ulm", "Ulm"],
    })  # fmt: skip
    table.to_csv(tmp_path / "meta.csv", index=False)
    pd.DataFrame({"case": list("abcdefgh"), "liver": 0.9}).to_csv(tmp_path / "rows.csv", index=False)
    for group in ("center", "site", "site detail"):
        rows = report_results([tmp_path / "rows.csv"], tmp_path / group, tmp_path / "meta.csv", group).rows
        assert rows["center"].tolist() == [
            *["University of Texas MD Anderson Cancer Center"] * 2, *["University Hospital Basel"] * 2, "15 Sites (Ulm ...)",
            "unknown", "Ulm", "Ulm",
        ]  # fmt: skip
        assert rows["center_kind"].tolist() == ["single"] * 4 + ["pool", "unknown"] + ["single"] * 2


def test_rows_of_several_versions_of_scoring_are_told(tmp_path: Path) -> None:
    """A model scored by another version, or elsewhere, is named beside the other; of one version nothing is said."""
    for name, scoring in (("new", 2), ("old", 1), ("twice", [1, 2, 2])):
        ROWS.assign(scoring=scoring).to_parquet(tmp_path / f"{name}.parquet")
    ROWS.to_csv(tmp_path / "theirs.csv", index=False)
    for names, said in (
        (("new.parquet",), None), (("theirs.csv",), None),
        (("new.parquet", "old.parquet"), "new by version 2; old by version 1: "),
        (("twice.parquet",), "twice by version 1 and version 2: "),
        (("new.parquet", "theirs.csv"), "theirs by somebody else, or an older version: "),
    ):  # fmt: skip
        facts = read_results([tmp_path / name for name in names], None, None, Analysis()).facts
        assert said in facts["Scored by"] if said else "Scored by" not in facts


def test_models_are_named_apart(others: Path) -> None:
    """By file, or by the folder above where two are alike; models without a common case are no models of one task."""
    (others / "a").mkdir()
    (others / "first.csv").rename(others / "a" / "second.csv")
    assert model_names([others / "a" / "second.csv", others / "second.csv"]) == ["a-second", f"{others.name}-second"]
    (others / "third.csv").write_text("case,center,pancreas\nx,A,0.5\n")
    (others / "fourth.csv").write_text("case,center,pancreas\ny,A,0.5\n")
    with pytest.raises(UserError, match="results third: no case in common with fourth"):
        report_results([others / "third.csv", others / "fourth.csv"], others / "out")
    (others / "plan.yaml").write_text("comparisons: [[third, fifth]]")
    with pytest.raises(UserError, match="comparisons name fifth; the models are third"):
        report_results([others / "third.csv"], others / "out", analysis=others / "plan.yaml")
