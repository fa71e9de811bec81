from pathlib import Path

import pandas as pd
import pytest

from pants_dist.tables import number, shown, write_table

TABLE = pd.DataFrame({
    "center": ["A & B_1", "C|D"], "n": [1200, 3], "dsc": [0.81234, None], "dsc/low": [0.7, None], "dsc/high": [0.9, None],
    "dsc/n": [10, 0], "p": [0.00002, 0.04],
})  # fmt: skip


def test_one_table_in_three_languages(tmp_path: Path) -> None:
    """CSV keeps every digit and column; Markdown and LaTeX join a number and its interval, and escape what they must."""
    write_table(tmp_path, "t", TABLE)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), TABLE)
    assert (tmp_path / "t.md").read_text().splitlines() == [
        "| center | n | dsc | p |", "|---|---|---|---|", "| A & B_1 | 1,200 | 0.812 (0.700 to 0.900) | < 0.001 |",
        "| C\\|D | 3 |  | 0.040 |",
    ]  # fmt: skip
    assert (tmp_path / "t.tex").read_text().splitlines() == [
        "\\begin{tabular}{lrrr}", "\\toprule", "center & n & dsc & p \\\\", "\\midrule",
        "A \\& B\\_1 & 1,200 & 0.812 (0.700 to 0.900) & \\textless{} 0.001 \\\\", "C\\textbar{}D & 3 &  & 0.040 \\\\",
        "\\bottomrule", "\\end{tabular}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (3, "3"), (12345, "12,345"), (0.5, "0.500"), (1.0, "1.0"), (800.0, "800"),
     (0.00012, "1.2e-04"), (True, "True"), ("x", "x"), (-0.25, "-0.250"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_as_people_read_them(value: object, text: str) -> None:
    assert number(value) == text


def test_latex_has_no_sign_that_it_sets_as_another(tmp_path: Path) -> None:
    """Bands and p values have < and >, which the usual font sets as inverted marks, and ○ stops it."""
    write_table(tmp_path, "t", pd.DataFrame({"band": ["< 40", ">= 80"], "hollow": ["○", ""]}))
    text = (tmp_path / "t.tex").read_text()
    assert "\\textless{} 40 & $\\circ$" in text and "\\textgreater{}= 80" in text


def test_a_table_without_rows() -> None:
    """It has headings and no line."""
    assert shown(TABLE[:0]) == (["center", "n", "dsc", "p"], [])
