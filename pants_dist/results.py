"""Rows that were scored earlier, read back: from a run's folder, or from a table of the same columns."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pants_dist.errors import UserError
from pants_dist.report import write_report

NEEDED = ("case", "center", "seen")
ABSENT = {"center_kind": "", "split": ""}  # columns that a table may leave out
SHOWN_PICTURES = 6


def structures_of(rows: pd.DataFrame) -> list[str]:
    """The structures that rows have a Dice of, in the order of their columns."""
    return [name.removeprefix("dsc/") for name in rows if name.startswith("dsc/")]


def report_results(results: Sequence[Path], out: Path) -> pd.DataFrame:
    """Write OUT/report.html from the rows in `results` and return them, one a case.

    Each of `results` is a run's folder, a folder with cases.parquet, or a table (parquet or CSV) with the columns case,
    center, seen and dsc/<structure>. Raises UserError where there are no rows, or a case comes twice.
    """
    tables = [path for result in results for path in tables_of(result)]
    rows = pd.concat([read_rows(path) for path in tables], ignore_index=True)
    if (twice := rows["case"].duplicated()).any():
        case = rows.loc[twice, "case"].iloc[0]
        raise UserError(f"results: case {case} stands in more than one of {_listed(tables)}; give one model's rows at a time")
    pictures = [picture for path in tables for picture in sorted((path.parent / "worst").glob("*.png"))]
    write_report(out, rows, structures_of(rows), {"Rows": _listed(tables)}, pictures[:SHOWN_PICTURES])
    return rows


def tables_of(result: Path) -> list[Path]:
    """The tables of rows in a file or folder; of a run's folder, one for each split that was scored."""
    if result.is_file():
        return [result]
    for pattern in ("evaluation/*/cases.parquet", "cases.parquet", "*/cases.parquet"):
        if found := sorted(result.glob(pattern)):
            return found
    raise UserError(
        f"results {result}: no cases.parquet there; give a run's folder after "
        f'"pants-dist evaluate {result}", or a table with the columns {", ".join(NEEDED)} and dsc/<structure>'
    )


def read_rows(path: Path) -> pd.DataFrame:
    """Rows of one table. Raises UserError where it cannot be read or lacks a column."""
    try:
        rows = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's and pandas's own are kinds of ValueError
        raise UserError(f"results {path}: cannot be read ({str(error).splitlines()[0]}); give parquet or CSV") from error
    missing = [name for name in NEEDED if name not in rows]
    if missing or not structures_of(rows):
        raise UserError(f"results {path}: no column {missing[0] if missing else 'dsc/<structure>'}; add it")
    return rows.assign(**{name: value for name, value in ABSENT.items() if name not in rows})


def _listed(tables: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in tables)
