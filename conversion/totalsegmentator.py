"""TotalSegmentator: <case>/ct.nii.gz and <case>/segmentations/<structure>.nii.gz, with meta.csv or without."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.mapping import renamed
from conversion.source import ABOUT, Found, Source, as_json, counted, images_in, number_in, subfolders
from conversion.tables import read_rows
from pants_dist.cases import EMPTY_CELLS, hospital

CASE = re.compile(r"s\d+")
SPLITS = {"train": "train", "val": "train", "test": "test"}  # validation is drawn from train here, center by center


def recognises(root: Path) -> bool:
    """Whether there are folders s0001 and so on with an image in them."""
    return any(CASE.fullmatch(folder.name) and (folder / "segmentations").is_dir() for folder in subfolders(root))


def read(root: Path, metadata: Path | None) -> Found:
    """Cases of TotalSegmentator with the 117 structures that it annotates; institute is the center."""
    table = metadata or root / "meta.csv"
    rows = read_rows(table, "image_id") if metadata or table.is_file() else {}
    folders = [folder for folder in subfolders(root) if (folder / "ct.nii.gz").exists()]
    sources = []
    for folder in folders:
        masks = renamed(images_in(folder / "segmentations"), folder)
        about = _about(rows.get(folder.name))
        sources.append(
            Source(folder.name, "TotalSegmentator", root, folder / "ct.nii.gz", masks, tuple(sorted(masks)), about)
        )
    cases = {source.case for source in sources}
    notes = counted(
        {
            "image(s) have no masks here: refused one by one": sum(not source.masks for source in sources),
            "metadata row(s) have no image here: normal for a part download": len(set(rows) - cases),
            "case(s) have no metadata row: their center is unknown": len(cases - set(rows)),
        }
    )
    return Found("totalsegmentator", root, sources, notes)


def _about(row: Mapping[str, str] | None) -> dict[str, Any]:
    if row is None:
        return dict(ABOUT)
    cell = {column: "" if text in EMPTY_CELLS else text for column, text in row.items()}
    known = {"metadata": as_json(row), "age": number_in(cell.get("age")), "sex": cell.get("gender", "")[:1].upper()}
    known |= {name: cell.get(name, "") for name in ("manufacturer", "study_type")}
    known |= {"manufacturer_model": cell.get("scanner_model", ""), "official_split": SPLITS.get(cell.get("split", ""), "")}
    return {**ABOUT, **known, **_center(cell.get("institute", ""))}


def _center(institute: str) -> dict[str, str]:
    """A letter is an institute that the dataset does not name: no other dataset's letter is the same."""
    if not institute:
        return {}
    name = f"TotalSegmentator institute {institute}" if re.fullmatch("[A-Za-z]", institute) else hospital(institute)
    return {"center": name, "center_kind": "single"}
