"""Tables that come with datasets: CSV with commas, semicolons or tabs, a byte order mark or none, and Excel."""

import csv
from pathlib import Path

from pants_dist.cases import tidy
from pants_dist.errors import UserError


def read_rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    """Rows of tidied cells by what stands in the column `key`. Raises UserError."""
    try:
        header, *lines = _excel(path) if path.suffix.lower() in (".xlsx", ".xlsm") else _csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"table {path}: cannot be read ({str(error) or 'it is empty'}); give a CSV file") from error
    header = [tidy(name) for name in header]
    if key not in header:
        raise UserError(f'table {path}: no column "{key}" among {", ".join(header)[:200]}; add it')
    rows: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, 2):
        if len(line) > len(header):
            raise UserError(f"table {path}, line {number}: {len(line)} cells, the header has {len(header)}; quote the cells")
        row = dict(zip(header, [tidy(cell) for cell in line] + [""] * len(header), strict=False))
        if row[key] in rows:
            raise UserError(f"table {path}, line {number}: {key} {row[key]} stands in it twice; keep one row")
        rows[row[key]] = row
    return rows


def _csv(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    return [line for line in csv.reader(text.splitlines(keepends=True), delimiter=delimiter) if any(line)]


def _excel(path: Path) -> list[list[str]]:
    import pandas as pd

    try:
        table = pd.read_excel(path, dtype=str, keep_default_na=False)
    except Exception as error:  # openpyxl and zipfile each raise their own
        raise ValueError(str(error).splitlines()[0]) from error
    return [list(table.columns), *table.to_numpy().tolist()]
