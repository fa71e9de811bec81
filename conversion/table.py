"""A hospital's own data: a CSV file with a line a case, that says where image and masks are and whatever else is known.

Columns `case`, `image`, and either `masks` (a folder of one binary mask a structure) or `label_map` with `labels`: JSON
such as {"pancreas": [1, 2], "pancreatic_lesion": 2}, or the name of a file that holds it. Paths are relative to the CSV.
Of the other columns those in COLUMNS, age, center, split and tumor are understood; every further one is kept as metadata.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.mapping import parsed_labels, renamed
from conversion.source import ABOUT, Found, Source, as_json, images_in, label_map_source, number_in
from conversion.tables import read_rows
from pants_dist.cases import EMPTY_CELLS, UNKNOWN, hospital
from pants_dist.errors import UserError

NAMES = ("cases.csv", "table.csv")
COLUMNS = (
    "phase", "sex", "manufacturer", "manufacturer_model", "study_type", "nationality", "study_year",
)  # fmt: skip
SPLITS = ("", "train", "test")
TUMOR = {"": None, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def recognises(root: Path) -> bool:
    """Whether this is a CSV file, or a folder with a cases.csv or table.csv in it."""
    return (root.is_file() and root.suffix.lower() == ".csv") or any((root / name).is_file() for name in NAMES)


def read(root: Path, metadata: Path | None) -> Found:
    """Cases of a table: `root` itself, or `metadata`, or the one in the folder `root`. Raises UserError."""
    path = metadata or (root if root.is_file() else next((root / n for n in NAMES if (root / n).is_file()), None))
    if path is None:
        raise UserError(f"source {root}: no {' or '.join(NAMES)} in it; name the table with --metadata")
    path = path.absolute()
    rows = read_rows(path, "case")
    sources = [_source(path, row) for row in rows.values()]
    known = {name for row in rows.values() for name in row} - {"case", "image", "masks", "label_map", "labels"}
    return Found("table", path.parent, sources, [f"columns kept: {', '.join(sorted(known))}"] if known else [])


def _source(path: Path, row: Mapping[str, str]) -> Source:
    case, where = row["case"], f"table {path}, case {row['case']}"
    cell = {column: "" if text in EMPTY_CELLS else text for column, text in row.items()}
    if not cell.get("image"):
        raise UserError(f"{where}: the column image is empty; name the file")
    if bool(cell.get("masks")) == bool(cell.get("label_map")):
        raise UserError(f"{where}: give either masks (a folder) or label_map (a file)")
    root, dataset = path.parent, cell.get("dataset") or path.parent.name
    image, about = root / cell["image"], _about(cell, row, where)
    if cell.get("label_map"):
        values = parsed_labels(_labels_text(root, cell, where), where)
        source = label_map_source(case, dataset, root, (image, root / cell["label_map"]), values, about)
    else:
        masks = renamed(images_in(root / cell["masks"]), where)
        source = Source(case, dataset, root, image, masks, tuple(sorted(masks)), about)
    return source


def _labels_text(root: Path, cell: Mapping[str, str], where: str) -> str:
    text = cell.get("labels", "")
    if not text:
        raise UserError(f'{where}: a label map needs labels, such as {{"pancreas": 1}} or the name of a file with it')
    if text.startswith("{"):
        return text
    try:
        return (root / text).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: labels {text} cannot be read; give JSON or a file beside the table") from error


def _about(cell: Mapping[str, str], row: Mapping[str, str], where: str) -> dict[str, Any]:
    split, tumor = cell.get("split", "").lower(), cell.get("tumor", "").lower()
    if split not in SPLITS or tumor not in TUMOR:
        raise UserError(f"{where}: split {split!r} or tumor {tumor!r}; split is train, test or empty, tumor 1, 0 or empty")
    center = hospital(cell.get("center", "")) or UNKNOWN
    known: dict[str, Any] = {name: cell[name] for name in COLUMNS if cell.get(name)}
    known |= {"official_split": split, "age": number_in(cell.get("age")), "tumor_flag": TUMOR[tumor]}
    known |= {"center": center, "center_kind": UNKNOWN if center == UNKNOWN else "single", "metadata": as_json(row)}
    return {**ABOUT, **known}
