"""Tables that other people wrote, made ours: scores with a case column and a column a structure, and metadata a case.

Separators, byte-order marks, stray blanks, decimal commas and file endings after a case's id are all taken as people
mean them. What cannot be read is refused by name.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pants_dist.cases import EMPTY_CELLS, UNKNOWN, center_named, center_of, listing, tidy
from pants_dist.cohort import through_plane_axis
from pants_dist.duplicates import FINGERPRINT, fingerprint
from pants_dist.errors import UserError
from pants_dist.structures import PANTS

CASE_NAMES = ("case", "case id", "pants id", "caseid", "case name", "id", "name", "bdmap id", "patient id", "image", "file")
BLANK = (*EMPTY_CELLS, "n/a", "N/A", "NaN", "-", "None")
UNIT = "center/unit"  # the center of a case where the groups are something else; None where nobody names it
CENTERS = ("center", "centre", "hospital", "clinic", "institution", "institute", "site")  # columns of centers
OUR_COLUMNS = ("seen", "lesion_present", "lesion_predicted", "tumor_flag")  # yes and no, but no scores
YES, NO = ("1", "1.0", "true", "yes", "seen"), ("0", "0.0", "false", "no", "held-out", "held out")
AMOUNTS = ("predicted_", "reference_", "hd95_mm/", "tolerance_mm/", "lesion_max_logit", "n_voxels", "trained_cases")
COUNTS = ("lesion_components", "lesion_components_hit", "lesion_components_false")
LISTS = ("lesion_component_logits", "lesion_component_matched")  # a list a case, which CSV does not hold


def read_cells(path: Path, what: str) -> pd.DataFrame:
    """Cells of a CSV (any separator) or xlsx file as tidied text, or of a parquet file as they are.

    Raises UserError where it cannot be read, or has no rows; `what` names the table in the message.
    """
    try:
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        elif path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
        else:
            _once_each(path, what)
            table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=separator(path), encoding="utf-8-sig")
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{what} {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: is not in UTF-8; save it as CSV in UTF-8") from error
    except (OSError, ValueError, KeyError) as error:  # pandas' and pyarrow's own are kinds of ValueError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{what} {path}: cannot be read ({reason}); give CSV, xlsx or parquet") from error
    except Exception as error:  # a broken xlsx: zipfile and openpyxl each raise their own
        raise UserError(f"{what} {path}: cannot be read ({type(error).__name__}); give CSV, xlsx or parquet") from error
    if table.empty:
        raise UserError(f"{what} {path}: no rows in it; give a table with a row a case")
    return table if path.suffix.lower() in (".parquet", ".pq") else table.rename(columns=tidy).map(tidy)


def separator(path: Path) -> str:
    """What stands most often in the first line: comma, semicolon or tab."""
    with open(path, encoding="utf-8-sig") as file:
        head = file.readline()
    return max(",;\t", key=head.count)


def _once_each(path: Path, what: str) -> None:
    """Raises UserError where a heading of a CSV file stands twice, which pandas would call name.1."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = [tidy(name) for name in next(csv.reader(file, delimiter=separator(path)), [])]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{what} {path}: two columns are called {twice[0]}; keep one of them")


def by_case(table: pd.DataFrame, path: Path, what: str) -> pd.DataFrame:
    """The table with a column `case` of ids without file endings. Raises UserError for none, or an id twice."""
    names = {_plain(name): name for name in reversed(list(table.columns))}
    found = next((names[name] for name in CASE_NAMES if name in names), None)
    if found is None:
        raise UserError(f"{what} {path}: no case column among {listing(map(str, table.columns))}; name it case")
    cases = table[found].map(lambda cell: re.sub(r"\.(nii(\.gz)?|npz)$", "", tidy(cell)))
    nameless = cases.isin(BLANK)
    if what == "results":
        filled = table.drop(columns=found).map(lambda cell: not (np.ndim(cell) == 0 and (pd.isna(cell) or cell in BLANK)))
        if (lost := np.flatnonzero(nameless & filled.any(axis=1))).size:
            raise UserError(f"{what} {path}: row {lost[0] + 1} has no {found}; name its case, or take the row out")
    table = table.drop(columns=found).assign(case=cases)[~nameless]
    if (twice := table["case"].duplicated()).any():
        raise UserError(f"{what} {path}: case {table.loc[twice, 'case'].iloc[0]} stands in it twice; keep one row")
    return table.reset_index(drop=True)


def read_scores(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """`table` of path with `case` and dsc/<structure>, from columns named after structures; the others as they are.

    A column is a structure's if it has one of PanTS's names, or nothing but numbers from 0 to 1. Raises UserError where
    there is none, a structure has text, or scores are not from 0 to 1.
    """
    table = by_case(table, path, "results")
    scores: dict[str, pd.Series] = {}
    for column in table.columns.drop("case"):
        name = _plain(column).removeprefix("dsc/").replace(" ", "_")
        values, named = numbers(table[column]), name in PANTS
        between = values.dropna().between(0, 1).all() and values.notna().any()
        if named or (between and _all_numbers(table[column], values) and not _is_ours(column)):
            if any(f"dsc/{name}" == other.name for other in scores.values()):
                raise UserError(f"results {path}: two columns have scores of {name}, {column} among them; keep one of them")
            scores[column] = _values(table, column, path, "scores", (0, 1)).rename(f"dsc/{name}")
    if not scores:
        raise UserError(f"results {path}: no column with a structure's scores (numbers from 0 to 1); add one")
    if not any(values.notna().any() for values in scores.values()):
        raise UserError(f"results {path}: {listing(scores)}: blank in every case; there is nothing to report")
    return checked(pd.concat([table.drop(columns=list(scores)), *scores.values()], axis=1), path)


def checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Rows by case with every column that we know as numbers, or as True, False and None.

    Raises UserError, naming column, cell and case, for what cannot be meant, such as a Dice of 87 or a flag of "maybe".
    Lists that a CSV file holds as text are left out.
    """
    found: dict[str, Any] = {}
    for column in table.columns.drop("case"):
        if column.startswith(("dsc/", "nsd/")):
            found[column] = _values(table, column, path, "scores", (0, 1))
        elif column in OUR_COLUMNS:
            found[column] = _flags(table, column, path)
        elif column in COUNTS or column.startswith(AMOUNTS):
            found[column] = _values(table, column, path, "amounts", (-np.inf, np.inf))
    texts = [name for name in LISTS if name in table and table[name].map(lambda cell: isinstance(cell, str)).any()]
    return table.drop(columns=texts).assign(**found)


def _is_ours(column: str) -> bool:
    return column in (*OUR_COLUMNS, *COUNTS) or column.startswith((*AMOUNTS, "nsd/"))


def _values(table: pd.DataFrame, column: str, path: Path, what: str, limits: tuple[float, float]) -> pd.Series:
    """A column as floats, NaN where it is blank. Raises UserError for the first cell that is no number within `limits`."""
    cells, values = table[column], numbers(table[column])
    wrong = np.flatnonzero(~(cells.isna() | cells.isin(BLANK) | values.between(*limits)))
    if wrong.size:
        says = " from 0 to 1" if limits == (0, 1) else ""
        raise UserError(
            f"results {path}: {column} is {str(cells.iloc[wrong[0]])!r} in case {table['case'].iloc[wrong[0]]}; "
            f"{what} are numbers{says}, blank where there is none"
        )
    return values


def _flags(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """A column as True, False and None. Raises UserError for the first cell that says neither yes nor no."""
    cells = table[column].map(lambda cell: "" if pd.isna(cell) else tidy(cell))
    wrong = np.flatnonzero(~(cells.isin(BLANK) | cells.str.lower().isin((*YES, *NO))))
    if wrong.size:
        raise UserError(
            f"results {path}: {column} is {cells.iloc[wrong[0]]!r} in case {table['case'].iloc[wrong[0]]}; "
            "give 1 or 0, blank where it is not known"
        )
    flags = cells.map(_truth).astype(object)
    return flags.astype(bool) if flags.notna().all() else flags


def numbers(cells: pd.Series) -> pd.Series:
    """Cells as floats, decimal commas too; NaN where they are blank or no number."""
    if pd.api.types.is_numeric_dtype(cells):
        return cells.astype(float)
    text = cells.fillna("").astype(str)
    commas = text.str.fullmatch(r"[+-]?\d+,\d+")
    return pd.to_numeric(text.where(~commas, text.str.replace(",", ".")), errors="coerce")


def _truth(cell: object) -> bool | None:
    text = str(cell).lower()
    return None if text in ("", "na", "n/a", "nan", "none", "-") else text in YES


def _all_numbers(cells: pd.Series, values: pd.Series) -> bool:
    return bool((values.notna() | cells.isna() | cells.isin(BLANK)).all())


def read_metadata(path: Path) -> pd.DataFrame:
    """Metadata by case: every cell as text, and where they are PanTS's own also `center`, `center_kind` and `patient`.

    `patient` names the scans of one suspected patient alike (`duplicates.fingerprint`); of most it is the case. A column
    that says whether there is a tumor becomes `tumor_flag`; of PanTS's also `phase`, `nationality` and `spacing_z_mm` are told.
    """
    table = by_case(read_cells(path, "metadata"), path, "metadata")
    if {"site", "site detail"} <= set(table):
        pairs = [center_of(site, detail) for site, detail in zip(table["site"], table["site detail"], strict=True)]
        table["center"], table["center_kind"] = (list(part) for part in zip(*pairs, strict=True))
    flag = next((name for name in table if _plain(name).rstrip("?") in ("tumor", "tumor flag")), None)
    if flag and "tumor_flag" not in table:
        table["tumor_flag"] = pd.Series([_truth(cell) for cell in table[flag]], table.index, dtype=object)
    for name, released in (("phase", "ct phase"), ("nationality", "site nationality")):
        if released in table and name not in table:
            table[name] = table[released]
    if "spacing" in table and "spacing_z_mm" not in table:
        table["spacing_z_mm"] = [_slice_spacing_mm(cell) for cell in table["spacing"]]
    if set(FINGERPRINT) <= set(table):
        prints = [fingerprint(row, known=False) for row in table[list(FINGERPRINT)].to_dict("records")]
        first: dict[object, str] = {}
        table["patient"] = [
            case if key is None else first.setdefault(key, case) for key, case in zip(prints, table["case"], strict=True)
        ]
    return table


def _slice_spacing_mm(cell: object) -> float:
    """Between slices, of a cell like "(0.7, 0.7, 2.5)"; NaN of any other."""
    found = [float(text) for text in re.findall(r"\d+\.?\d*(?:e-?\d+)?", str(cell))]
    return found[int(through_plane_axis(np.array([found]))[0])] if len(found) == 3 else float("nan")


def joined(rows: pd.DataFrame, metadata: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows with the metadata's columns that they lack, and the cases left out because the metadata do not know them.

    Raises UserError where no case is known, which means ids of another kind.
    """
    known = rows["case"].isin(metadata["case"])
    if not known.any():
        raise UserError(
            f"metadata {path}: none of the cases {listing(rows['case'], 2)} is in it; it has {listing(metadata['case'], 2)}"
        )
    new = ["case", *(name for name in metadata if name not in rows)]
    return rows[known].merge(metadata[new], on="case", how="left"), rows.loc[~known, "case"].tolist()


def prevalence_elsewhere(metadata: pd.DataFrame, rows: pd.DataFrame) -> pd.Series | None:
    """For each of `rows` the share of tumors (by `tumor_flag`) in its center among the scans of `metadata` that are not rows.

    A center that has no other scan gets the share of all of them. None where the metadata do not tell centers or tumors.
    """
    if not {"center", "tumor_flag"} <= set(metadata):
        return None
    others = metadata[~metadata["case"].isin(rows["case"]) & metadata["tumor_flag"].notna()]
    if others.empty:
        return None
    flags = others["tumor_flag"].astype(float)
    centers = rows["case"].map(metadata.set_index("case")["center"].map(center_named))
    return centers.map(flags.groupby(others["center"].map(center_named)).mean()).fillna(flags.mean())


def grouped(rows: pd.DataFrame, column: str, where: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows with the groups of `column` as `center`, and which names of centers were folded into which (cases.center_named).

    Of PanTS's `site` and `site detail`, neither of which is a center, the groups are the centers that both say together.
    Where groups are no centers, UNIT has the center of each case. Raises UserError where there is no such column.
    """
    if {"site", "site detail", "center"} <= set(rows) and _plain(column) in ("site", "site detail"):
        column = "center"
    if _plain(column) in CENTERS:
        names = labels_of(rows, column, where)
        return _of_centers(rows, [center_named(name) for name in names]), _folded(names)
    groups = labels_of(rows, column, where)
    own = next((name for wanted in CENTERS for name in rows if _plain(name) == wanted), None)
    names = labels_of(rows, own, where) if own else []
    return rows.assign(**{UNIT: [center_named(name) for name in names] if own else None}, center=groups), _folded(names)


def _of_centers(rows: pd.DataFrame, centers: list[str]) -> pd.DataFrame:
    """Rows of these centers; one that nobody knows is of that kind, if nobody says of which."""
    unknown = rows["center_kind"].eq("") & np.array([center == UNKNOWN for center in centers])
    return rows.assign(center=centers, center_kind=rows["center_kind"].mask(unknown, UNKNOWN))


def _folded(names: Sequence[str]) -> dict[str, str]:
    """Each spelling that is not the center's own name -> the center."""
    return {name: center_named(name) for name in sorted(set(names)) if center_named(name) != name}


def labels_of(rows: pd.DataFrame, column: str, where: str) -> list[str]:
    """The group of each row as text, "unknown" where it is blank. Raises UserError where there is no such column."""
    names = {_plain(name): name for name in reversed(list(rows.columns))}
    found = column if column in rows else names.get(_plain(column))
    if found is None:
        raise UserError(f"--group {column}: no such column in {where}; there are {listing(_groupable(rows), 20)}")
    cells = rows[found].map(lambda cell: "" if cell is None or cell != cell else tidy(cell))
    return [UNKNOWN if cell in BLANK else cell for cell in cells]


def _groupable(rows: pd.DataFrame) -> Sequence[str]:
    return [name for name in rows if "/" not in name and name != "case"]


def _plain(name: str) -> str:
    return " ".join(str(name).replace("_", " ").replace("-", " ").lower().split())
