from pathlib import Path

import pandas as pd
import pytest

from pants_dist.errors import UserError
from pants_dist.results import read_rows
from pants_dist.scores import joined, labels_of, numbers, read_cells, read_metadata, read_scores


def scores(folder: Path, text: str) -> pd.DataFrame:
    path = folder / "scores.csv"
    path.write_bytes(text.encode())
    return read_scores(path, read_cells(path, "results"))


def test_scores_are_read_as_people_mean_them(tmp_path: Path) -> None:
    """Semicolons, decimal commas, a byte-order mark, blanks; structures by name or by numbers from 0 to 1; flags are flags."""
    rows = scores(tmp_path, "\ufeffName ; Pancreatic lesion;my organ;age;lesion_present;lesion_max_logit\n"
                  " a.nii.gz;0,5;1;60;1;-2.5\n b ; ;0.25;61;0;\n;;;;;\n")  # fmt: skip
    assert rows["case"].tolist() == ["a", "b"] and rows["lesion_present"].tolist() == [True, False]
    assert [name for name in rows if name.startswith("dsc/")] == ["dsc/pancreatic_lesion", "dsc/my_organ"]
    pd.testing.assert_series_equal(rows["dsc/pancreatic_lesion"], pd.Series([0.5, None]), check_names=False)
    assert rows["dsc/my_organ"].tolist() == [1, 0.25] and rows["lesion_max_logit"].iloc[0] == -2.5
    assert rows["age"].tolist() == ["60", "61"]


def test_numbers() -> None:
    """Decimal points and commas; what is no number is NaN."""
    assert numbers(pd.Series(["0.5", "0,25", "-1,5", "1e-3"])).tolist() == [0.5, 0.25, -1.5, 0.001]
    assert numbers(pd.Series(["", "x", None])).isna().all()


BAD = [
    ("organ,liver\na,0.5\n", "no case column among liver, organ"),
    ("case,liver\na,0.5\na.nii.gz,0.6\n", "case a stands in it twice"),
    ("case,liver\na,87.5\n", "liver is '87.5' in case a; scores are numbers from 0 to 1"),
    ("case,liver\na,good\n", "liver is 'good' in case a"),
    ("case,age\na,60\n", "no column with a structure's scores"),
    ("case,liver\n", "no rows in it"),
    ("case,liver,liver\na,0.5,0.6\n", "two columns are called liver"),
    ("case,liver,Liver\na,0.5,0.6\n", "two columns have scores of liver"),
    ("case,liver\na,\nb,NaN\n", "liver: blank in every case"),
    ("case,liver\na,0.5\n,0.6\n", "row 2 has no case"),
    ("case,liver,lesion_present\na,0.5,maybe\n", "lesion_present is 'maybe' in case a; give 1 or 0"),
    ("case,liver,seen\na,0.5,yes\nb,0.5,perhaps\n", "seen is 'perhaps' in case b"),
    ("case,liver,lesion_max_logit\na,0.5,high\n", "lesion_max_logit is 'high' in case a; amounts are numbers"),
    ("case,liver,nsd/liver\na,0.5,7\n", "nsd/liver is '7' in case a; scores are numbers from 0 to 1"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_scores_that_cannot_be_meant_are_refused(text: str, says: str, tmp_path: Path) -> None:
    """Which file, which column, which case, what to do."""
    with pytest.raises(UserError, match=says):
        scores(tmp_path, text)


def test_rows_of_ours_are_checked_as_those_of_others(tmp_path: Path) -> None:
    """A Dice of 87, text for a score, a file that is not there or not UTF-8: one line each; lists that CSV has as text go."""
    path = tmp_path / "ours.csv"
    for cell, says in (("87", "dsc/liver is '87.0' in case a"), ("bad", "dsc/liver is 'bad' in case a")):
        path.write_text(f"case,center,dsc/liver\na,X,{cell}\nb,X,0.5\n")
        with pytest.raises(UserError, match=says):
            read_rows(path)
    path.write_text('case,center,seen,dsc/liver,lesion_component_logits\na,X,True,0.5,"[0.5, 1.0]"\n')
    rows = read_rows(path)
    assert rows["seen"].tolist() == [True] and "lesion_component_logits" not in rows
    path.write_bytes("case,center,dsc/liver\na,Köln,0.5\n".encode("cp1252"))
    with pytest.raises(UserError, match="not in UTF-8; save it as CSV in UTF-8"):
        read_rows(path)
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        read_rows(tmp_path / "gone.csv")


def test_metadata_of_pants_name_center_and_patient(tmp_path: Path) -> None:
    """From the released columns: the hospital of a single site, pools apart; scans of equal fingerprint are one patient."""
    table = pd.DataFrame({
        "PanTS ID": ["a", "b", "c"], "shape": "(1, 2, 3)", "spacing": "(1, 1, 1)", "site": ["1 Site", "1 Site", "15 Sites"],
        "site detail": ["MD Anderson ", "MD Anderson", "A; B"], "sex": "F", "age": ["60", "60", "61"],
    })  # fmt: skip
    table.to_excel(tmp_path / "metadata.xlsx", index=False)
    found = read_metadata(tmp_path / "metadata.xlsx")
    assert found["center_kind"].tolist() == ["single", "single", "pool"] and found["center"][0] == found["center"][1]
    assert found["patient"].tolist() == ["a", "a", "c"]


def test_metadata_that_do_not_fit(tmp_path: Path) -> None:
    """Ids of another kind are refused, single unknown cases told; a column that is not there is named with those that are."""
    metadata = pd.DataFrame({"case": ["a", "b"], "Slice Thickness": ["1", ""]})
    rows, lost = joined(pd.DataFrame({"case": ["b", "mean"], "dsc/liver": [0.5, 0.6]}), metadata, tmp_path)
    assert lost == ["mean"] and labels_of(rows, "slice_thickness", "it") == ["unknown"]
    with pytest.raises(UserError, match="none of the cases 1, 2 is in it; it has a, b"):
        joined(pd.DataFrame({"case": ["1", "2"]}), metadata, tmp_path)
    with pytest.raises(UserError, match="--group site: no such column in it; there are Slice Thickness"):
        labels_of(rows, "site", "it")
    (tmp_path / "broken.xlsx").write_text("no zip")
    with pytest.raises(UserError, match="cannot be read"):
        read_metadata(tmp_path / "broken.xlsx")
