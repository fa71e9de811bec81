"""PanTS in every form that it was released in, and AbdomenAtlas, its elder sister, laid out alike.

{ImageTr,ImageTe,...}/<case>/ct.nii.gz and {LabelTr,LabelAll,...}/<case>/segmentations/<structure>.nii.gz; the mirror's
image_only/ and mask_only/; the first release's ct.npz and <structure>.npz; AbdomenAtlas's <case>/ with image and masks.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.mapping import renamed
from conversion.source import ABOUT, Found, Source, as_json, by_case, counted, images_in, number_in, subfolders
from pants_dist.cases import EMPTY_CELLS, center_of, official_split, read_metadata

IMAGES, LABELS = re.compile(r"Images?(Tr|Te|Ts|All)|image_only"), re.compile(r"Labels?(Tr|Te|Ts|All)|mask_only")
TABLES = ("metadata.xlsx", "metadata.csv")
ATLAS_CASE = re.compile(r"BDMAP_[A-Za-z0-9]+")
NO_LABELS = "label set(s) have no image here: normal for a part download"

Rows = Mapping[str, Mapping[str, str]]


def recognises(root: Path) -> bool:
    """Whether there is a folder for images, with a folder for each case."""
    return any(IMAGES.fullmatch(folder.name) for folder in subfolders(root))


def read(root: Path, metadata: Path | None) -> Found:
    """Cases of PanTS's folders; labels may lie in another folder than the images' part of the name says."""
    found = Found("pants", root)
    rows = pants_rows(root, metadata)
    labels = by_case(folder for folder in subfolders(root) if LABELS.fullmatch(folder.name))
    images = by_case(folder for folder in subfolders(root) if IMAGES.fullmatch(folder.name))
    found.sources = [_source(root, case, images[case], labels.get(case), rows.get(case)) for case in images]
    found.notes = _notes(found.sources, labels, rows)
    return found


def atlas_recognises(root: Path) -> bool:
    """Whether there are folders BDMAP_*."""
    return any(ATLAS_CASE.fullmatch(folder.name) for folder in subfolders(root))


def atlas_read(root: Path, metadata: Path | None) -> Found:
    """Cases of AbdomenAtlas: image and masks in one folder."""
    rows = pants_rows(root, metadata)
    folders = {folder.name: folder for folder in subfolders(root) if ATLAS_CASE.fullmatch(folder.name)}
    sources = [_source(root, case, folders[case], folders[case], rows.get(case)) for case in folders if _image(folders[case])]
    notes = counted(
        {
            "case folder(s) have no ct.nii.gz: left out": len(folders) - len(sources),
            "image(s) have no masks here: refused one by one": sum(not source.masks for source in sources),
        }
    )
    return Found("abdomenatlas", root, sources, notes)


def _source(root: Path, case: str, images: Path, labels: Path | None, row: Mapping[str, str] | None) -> Source:
    image = _image(images) or images / "ct.nii.gz"  # one that is missing is refused by name
    masks = renamed(_masks(labels), labels) if labels else {}
    dataset = "AbdomenAtlas" if ATLAS_CASE.fullmatch(case) else "PanTS"
    spacing = _spacing(row) if image.suffix == ".npz" else None
    return Source(
        case, dataset, root, image, masks, tuple(sorted(masks)), pants_about(case, row), spacing_mm_ijk=spacing
    )  # fmt: skip


def _image(folder: Path) -> Path | None:
    return next((folder / name for name in ("ct.nii.gz", "ct.nii", "ct.npz") if (folder / name).exists()), None)


def _masks(folder: Path) -> dict[str, Path]:
    """Never combined_labels beside segmentations/: two meanings of its numbers are in circulation."""
    inside = folder / "segmentations"
    masks = images_in(inside) or images_in(inside, r"\.npz") or images_in(folder, r"\.npz")
    return {name: path for name, path in masks.items() if name not in ("ct", "combined_labels")}


def _spacing(row: Mapping[str, str] | None) -> tuple[float, float, float] | None:
    """Voxel size along i, j, k from the cell "(0.625, 0.625, 0.8)"; None where there is no such cell."""
    numbers = [float(text) for text in re.findall(r"\d+\.?\d*(?:[eE][-+]?\d+)?", (row or {}).get("spacing", ""))]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def pants_rows(root: Path, metadata: Path | None) -> dict[str, dict[str, str]]:
    """Case -> row of the metadata, from a file or from beside the folders; empty where there is none."""
    path = metadata or next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        return {}
    table = read_metadata(path)
    columns = list(table.columns)
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in table.itertuples(name=None)}


def pants_about(case: str, row: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields of ABOUT from a case's row of PanTS's metadata (tidied cells), or from its id alone."""
    if row is None:
        return {**ABOUT, "official_split": official_split(case)}
    cell = {column: "" if text in EMPTY_CELLS else text for column, text in row.items()}.get
    center, kind = center_of(row.get("site"), row.get("site detail"))
    return {
        "official_split": official_split(case), "center": center, "center_kind": kind,
        "phase": cell("ct phase") or "", "sex": cell("sex") or "", "age": number_in(cell("age")),
        "manufacturer": cell("manufacturer") or "", "manufacturer_model": cell("manufacturer model") or "",
        "study_type": cell("study type") or "", "nationality": cell("site nationality") or "",
        "study_year": cell("study year") or "",
        "tumor_flag": {"1": True, "0": False}.get(cell("tumor?") or ""),
        "metadata": as_json(row),
    }  # fmt: skip


def _notes(sources: list[Source], labels: Mapping[str, Path], rows: Rows) -> list[str]:
    cases = {source.case for source in sources}
    return counted(
        {
            "image(s) have no masks here: refused one by one": sum(not source.masks for source in sources),
            NO_LABELS: len(set(labels) - cases),
            "metadata row(s) have no image here: normal for a part download": len(set(rows) - cases),
            "case(s) have no metadata row: their center is unknown": len(cases - set(rows)),
        }
    )
