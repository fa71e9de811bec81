"""What is where in a dataset's folder: one small reader a layout, each yielding light `Source` records.

A reader only lists folders and reads tables; no image is opened. What a dataset calls its columns and its structures
ends here: a `Source` speaks of centers, phases and PanTS's 28 names.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pants_dist.cases import EMPTY_CELLS, UNKNOWN, center_of, official_split, read_metadata
from pants_dist.errors import UserError

CASE_ID = re.compile(r"(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,120}")  # a case id names a file in the store
ABOUT: Mapping[str, Any] = {  # what a record says of patient, scanner and place, as far as nothing is known
    "official_split": "", "center": UNKNOWN, "center_kind": UNKNOWN, "phase": "", "sex": "", "age": None,
    "manufacturer": "", "manufacturer_model": "", "study_type": "", "nationality": "", "study_year": "",
    "tumor_flag": None, "metadata": "{}",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One case as it lies in a dataset: files, not contents.

    `root` is the dataset's folder, `masks` maps a structure to its binary mask, `annotated` are the structures that
    somebody looked for, whether or not they found any voxel; `about` has the fields of ABOUT.
    """

    case: str
    dataset: str
    root: Path
    image: Path
    masks: Mapping[str, Path]
    annotated: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=lambda: dict(ABOUT))

    @property
    def files(self) -> list[Path]:
        """Every file that the case is made from, the image first."""
        return [self.image, *(self.masks[name] for name in sorted(self.masks))]

    @property
    def names(self) -> list[str]:
        """The names of `files` inside the dataset."""
        return [path.relative_to(self.root).as_posix() for path in self.files]


@dataclass
class Found:
    """What a reader recognised: the cases, and in words what did not match up."""

    layout: str
    root: Path
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A way in which a dataset is laid out. `recognises` looks at names only; `read` gets a table or None."""

    title: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Path | None], Found]


def recognise(root: Path, layout: str = "auto", metadata: Path | None = None) -> Found:
    """The cases of one dataset folder. Raises UserError where it is missing, empty or like no layout known."""
    if layout != "auto" and layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: no such layout; use auto or one of {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise UserError(f"source {root}: no such folder; give the folder that holds the dataset")
    if not any(root.iterdir()):
        raise UserError(f"source {root}: the folder is empty; give the folder that holds the dataset")
    name = layout if layout != "auto" else next((name for name in LAYOUTS if LAYOUTS[name].recognises(root)), None)
    if name is None:
        known = "; ".join(f"{name} ({layout.title})" for name, layout in LAYOUTS.items())
        raise UserError(f"source {root}: like no layout known: {known}; give the dataset's top folder, or --layout")
    found = LAYOUTS[name].read(root, metadata)
    if not found.sources:
        raise UserError(f"source {root}: no case found as {LAYOUTS[name].title}; give the dataset's top folder")
    return found


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> dict[str, Path]:
    """NIfTI files of a folder by their name without ending; nothing where there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        files = sorted(Path(entry) for entry in entries if not entry.name.startswith("."))
    return {stem: file for file in files if (stem := nifti_stem(file.name))}


def nifti_stem(name: str) -> str | None:
    """A NIfTI file's name without its ending, None for other files."""
    found = re.fullmatch(r"(.+?)\.nii(\.gz)?", name)
    return found[1] if found else None


# --- PanTS: {ImageTr,ImageTe,...}/<case>/ct.nii.gz and {LabelTr,LabelAll,...}/<case>/segmentations/<structure>.nii.gz

PANTS_IMAGES, PANTS_LABELS = re.compile(r"Images?(Tr|Te|Ts|All)"), re.compile(r"Labels?(Tr|Te|Ts|All)")
PANTS_TABLES = ("metadata.xlsx", "metadata.csv")


def _pants_recognises(root: Path) -> bool:
    return any(PANTS_IMAGES.fullmatch(folder.name) for folder in subfolders(root))


def _pants_read(root: Path, metadata: Path | None) -> Found:
    found = Found("pants", root)
    rows = dict(_pants_rows(root, metadata))
    labels = _by_case(root, PANTS_LABELS)
    for case, folder in _by_case(root, PANTS_IMAGES).items():
        masks = images_in(labels[case] / "segmentations") if case in labels else {}
        about = pants_about(case, rows.get(case))
        found.sources.append(Source(case, "PanTS", root, folder / "ct.nii.gz", masks, tuple(sorted(masks)), about))
    found.notes = _pants_notes(found.sources, labels, rows)
    return found


def _by_case(root: Path, parent: re.Pattern) -> dict[str, Path]:
    """Case id -> its folder, over all folders of `root` whose name matches; a test case may lie in any of them."""
    parents = [folder for folder in subfolders(root) if parent.fullmatch(folder.name)]
    folders: dict[str, Path] = {}
    for case in (case for folder in parents for case in subfolders(folder)):
        if (other := folders.setdefault(case.name, case)) != case:
            raise UserError(f"case {case.name} is both in {other.parent} and in {case.parent}; keep one of them")
    return dict(sorted(folders.items()))


def _pants_rows(root: Path, metadata: Path | None) -> Iterator[tuple[str, dict[str, str]]]:
    path = metadata or next((root / name for name in PANTS_TABLES if (root / name).is_file()), None)
    if path is not None:
        table = read_metadata(path)
        columns = list(table.columns)
        for row in table.itertuples(name=None):
            yield row[0], dict(zip(columns, row[1:], strict=True))


def pants_about(case: str, row: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields of ABOUT from a case's row of PanTS's metadata (tidied cells), or from its id alone."""
    if row is None:
        return {**ABOUT, "official_split": official_split(case)}
    cell = {column: "" if text in EMPTY_CELLS else text for column, text in row.items()}.get
    center, kind = center_of(row.get("site"), row.get("site detail"))
    return {
        "official_split": official_split(case), "center": center, "center_kind": kind,
        "phase": cell("ct phase") or "", "sex": cell("sex") or "", "age": _number(cell("age")),
        "manufacturer": cell("manufacturer") or "", "manufacturer_model": cell("manufacturer model") or "",
        "study_type": cell("study type") or "", "nationality": cell("site nationality") or "",
        "study_year": cell("study year") or "",
        "tumor_flag": {"1": True, "0": False}.get(cell("tumor?") or ""),
        "metadata": json.dumps(dict(row), sort_keys=True, ensure_ascii=False),
    }  # fmt: skip


def _number(text: str | None) -> float | None:
    found = re.match(r"\d+(\.\d+)?", text or "")
    return float(found[0]) if found else None


def _pants_notes(sources: list[Source], labels: Mapping[str, Path], rows: Mapping[str, Any]) -> list[str]:
    cases = {source.case for source in sources}
    counts = {
        "image(s) have no masks here: refused one by one": sum(not source.masks for source in sources),
        "label set(s) have no image here: normal for a part download": len(set(labels) - cases),
        "metadata row(s) have no image here: normal for a part download": len(set(rows) - cases),
        "case(s) have no metadata row: their center is unknown": len(cases - set(rows)),
    }
    return [f"{number:,} {what}" for what, number in counts.items() if number]


LAYOUTS: dict[str, Layout] = {
    "pants": Layout("PanTS as folders: ImageTr/<case>/ct.nii.gz", _pants_recognises, _pants_read),
}
