"""What a reader of a layout yields: one light `Source` a case, and the names that the readers share.

A reader only lists folders and reads tables; no image is opened. What a dataset calls its columns and its structures
ends there: a `Source` speaks of centers, phases and PanTS's 28 names.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pants_dist.cases import UNKNOWN
from pants_dist.errors import UserError

CASE_ID = re.compile(r"(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,120}")  # a case id names a file in the store
ABOUT: Mapping[str, Any] = {  # what a record says of patient, scanner and place, as far as nothing is known
    "official_split": "", "center": UNKNOWN, "center_kind": UNKNOWN, "phase": "", "sex": "", "age": None,
    "manufacturer": "", "manufacturer_model": "", "study_type": "", "nationality": "", "study_year": "",
    "tumor_flag": None, "metadata": "{}",
}  # fmt: skip


@dataclass(frozen=True)
class Archived:
    """That a case lies in archives: where its masks are, its share of either in bytes, and what these archives were."""

    labels: Path
    image_bytes: int
    label_bytes: int
    stamp: str


@dataclass(frozen=True)
class Source:
    """One case as it lies in a dataset: files, not contents.

    `root` is the dataset's folder. `masks` maps a structure to the file that has it: its own binary mask or, for the
    structures in `values`, a label map in which those numbers mean it; several structures may share numbers and a map.
    `annotated` are the structures that somebody looked for, whether or not they found any voxel; `about` has the
    fields of ABOUT. `spacing_mm_ijk` is for files that do not say their own (npz). An `archived` case has no files until
    conversion.archives puts them in place; its `image` is the archive.
    """

    case: str
    dataset: str
    root: Path
    image: Path
    masks: Mapping[str, Path]
    annotated: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=lambda: dict(ABOUT))
    values: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spacing_mm_ijk: tuple[float, float, float] | None = None
    archived: Archived | None = None

    @property
    def files(self) -> list[Path]:
        """Every file that the case is made from, once, the image first."""
        return [self.image, *dict.fromkeys(self.masks[name] for name in sorted(self.masks))]

    @property
    def names(self) -> list[str]:
        """The names of `files` inside the dataset; the whole path of one that a table names elsewhere."""
        return [(path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix() for path in self.files]


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


def label_map_source(
    case: str,
    dataset: str,
    root: Path,
    files: tuple[Path, Path],
    values: Mapping[str, tuple[int, ...]],
    about: Mapping[str, Any],
    unsure: tuple[str, ...] = (),
) -> Source:
    """A case of `files` (image, label map). What each number means goes into its metadata: other numbers, other case.

    Structures in `unsure` count as annotated only where they have a voxel.
    """
    meaning = json.loads(about["metadata"]) | {"label_values": {name: list(values[name]) for name in values}}
    about = {**about, "metadata": as_json(meaning)}
    annotated = tuple(sorted(set(values) - set(unsure)))
    return Source(case, dataset, root, files[0], dict.fromkeys(values, files[1]), annotated, about, dict(values))


def as_json(row: Mapping[str, Any]) -> str:
    """A row of a dataset's table as the record keeps it."""
    return json.dumps(dict(row), sort_keys=True, ensure_ascii=False)


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted by name, without hidden ones; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path, ending: str = r"\.nii(\.gz)?") -> dict[str, Path]:
    """Images of a folder by their name without ending, sorted; nothing where there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        files = sorted(Path(entry) for entry in entries if not entry.name.startswith("."))
    return {found[1]: file for file in files if (found := re.fullmatch(rf"(.+?){ending}", file.name))}


def by_case(folders: Iterable[Path]) -> dict[str, Path]:
    """Case id -> its folder, over all that lie in `folders`. Raises UserError where one is in two of them."""
    found: dict[str, Path] = {}
    for case in (case for folder in folders for case in subfolders(folder)):
        if (other := found.setdefault(case.name, case)) != case:
            raise UserError(f"case {case.name} is both in {other.parent} and in {case.parent}; keep one of them")
    return dict(sorted(found.items()))


def counted(counts: Mapping[str, int]) -> list[str]:
    """Notes such as "2 image(s) have no masks here", of what there is any."""
    return [f"{number:,} {what}" for what, number in counts.items() if number]


def number_in(text: str | None) -> float | None:
    """The number that a cell begins with, such as an age."""
    found = re.match(r"\s*(\d+(\.\d+)?)", text or "")
    return float(found[1]) if found else None
