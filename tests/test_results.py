from pathlib import Path

import pandas as pd
import pytest

from pants_dist import cli
from pants_dist.errors import UserError
from pants_dist.results import read_rows, report_results, structures_of, tables_of

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
    assert "0.80" in said and "0.50" in said and said.splitlines()[-1] == f"Next: open {tmp_path / 'again' / 'report.html'}"
    page = (tmp_path / "again" / "report.html").read_text()
    assert "held_out" in page and "X" in page


def test_rows_of_other_people_need_few_columns(tmp_path: Path) -> None:
    """A CSV with case, center, seen and Dice is enough, and gives the same rows as parquet."""
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    rows = report_results([tmp_path / "rows.csv"], tmp_path / "out")
    assert rows[list(ROWS)].equals(ROWS) and structures_of(rows) == ["liver"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_results_that_cannot_be_used_are_refused(run: Path, tmp_path: Path) -> None:
    """Nothing there, no table, a column missing, a case twice: each by name."""
    table = run / "evaluation" / "held_out" / "cases.parquet"
    assert tables_of(run / "evaluation") == tables_of(run)
    with pytest.raises(UserError, match='no cases.parquet there.*"pants-dist evaluate'):
        tables_of(tmp_path / "nowhere")
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read"):
        read_rows(tmp_path / "x.parquet")
    ROWS.drop(columns="seen").to_csv(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"x\.csv: no column seen"):
        read_rows(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"case c stands in more than one of"):
        report_results([run, table], tmp_path / "out")
