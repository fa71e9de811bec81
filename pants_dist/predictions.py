"""Masks that another system wrote, case by case: found, checked against the scan's grid, and turned into its order."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from conversion import nifti
from conversion.nifti import BadImage
from conversion.reading import binary
from pants_dist.errors import UserError
from pants_dist.store import Store
from pants_dist.targets import Masks, region

LABEL_FILES = ("label_map.json", "dataset.json")
LARGEST_SHIFT = 0.1  # of a voxel's edge, at any corner: writers round affines


Numbers = Mapping[str, tuple[int, ...]]  # in a label map: structure -> the numbers of its voxels


@dataclass(frozen=True)
class Predictions:
    """A folder with DIR/<case>/segmentations/<structure>.nii.gz, or without the folder between, and what it is scored on.

    Or with one label map a case, DIR/<case>.nii.gz, and what its `numbers` mean (`numbers_of`).
    """

    folder: Path
    structures: tuple[str, ...]
    numbers: Numbers = field(default_factory=dict)

    def files(self, case: str) -> dict[str, Path]:
        """The case's files by structure, those of the pancreas's parts among them; one that is not there is left out."""
        folders = self.folder / case, self.folder / case / "segmentations"
        names = dict.fromkeys(part for name in self.structures for part in region(name))
        paths = {name: [folder / f"{name}.nii.gz" for folder in folders] for name in names}
        found = {name: path for name, both in paths.items() for path in both if path.is_file()}
        if not found and (one := self.folder / f"{case}.nii.gz").is_file():
            return {name: one for name in self.structures if name in self.numbers}
        return found

    def state(self, case: str) -> str:
        """Digest of the names, sizes and times of the case's files, and of what numbers mean: others are scored anew."""
        files = self.files(case).items()
        facts: list[tuple[Any, ...]] = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
        facts += sorted(self.numbers.items())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def masks(self, store: Store, case: str) -> Masks:
        """The case's masks in the store's grid (z, y, x), each read when it is asked for; the pancreas is all that lies in it.

        Raises BadImage, which says why, where a file is missing; a mask does when it cannot be read, or is of another grid.
        """
        files = self.files(case)
        if not files:
            raise BadImage("no prediction")
        if missing := [name for name in self.structures if name not in files]:
            raise BadImage(f"no {missing[0]}.nii.gz, which other cases have")
        if files[self.structures[0]].parent != self.folder:
            parts = {name: [files[part] for part in region(name) if part in files] for name in self.structures}
            return Masks(self.structures, lambda name: _united(parts[name], store, case))
        labels = cache(lambda: read_labels(files[self.structures[0]], store, case))
        return Masks(self.structures, lambda name: np.isin(labels(), self.numbers[name]))


def open_predictions(folder: Path, wanted: Sequence[str], cases: Sequence[str]) -> Predictions:
    """Predictions of those of the `wanted` structures that any of these cases has. Raises UserError where there are none."""
    everything = Predictions(folder, tuple(wanted), numbers_of(folder))
    found = {name for case in cases for name in everything.files(case)}.intersection(wanted)
    if not found:
        raise UserError(
            f"--predictions {folder}: no masks of {', '.join(wanted[:3])}, ... of any of the {len(cases):,} cases; they are to "
            f"lie like {Path(cases[0]) / 'segmentations' / f'{wanted[0]}.nii.gz'}"
        )
    return Predictions(folder, tuple(name for name in wanted if name in found), everything.numbers)


def numbers_of(folder: Path) -> Numbers:
    """What numbers in the folder's label maps mean, by its label_map.json ({structure: number}), or by the dataset.json that
    nnU-Net leaves beside its predictions (labels: {structure: number, or several}); empty where there is neither.

    As in our own label maps the pancreas is all that lies in it. Raises UserError for a file that says something else.
    """
    for path in (path for name in LABEL_FILES if (path := folder / name).is_file()):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            given = {name: np.atleast_1d(np.array(some, int)).tolist() for name, some in said.get("labels", said).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f'{path}: does not say what numbers mean ({error}); give {{"pancreas": 1, ...}}') from error
        return {name: tuple(sorted({n for part in region(name) for n in given.get(part, ())})) for name in given}
    return {}


def read_labels(path: Path, store: Store, case: str) -> np.ndarray:
    """A label map (z, y, x) on the case's grid, whichever way its axes run. Raises BadImage, naming the file."""
    try:
        volume = nifti.read(path)
        labels = nifti.canonical(volume.array_ijk, volume.affine)
        _check_grid(labels.shape, nifti.canonical_affine(volume.array_ijk.shape, volume.affine), store, case)
    except BadImage as error:
        raise BadImage(error.reason, path.name) from error
    return np.ascontiguousarray(labels)


def _united(paths: Sequence[Path], store: Store, case: str) -> np.ndarray:
    """What lies in any of these masks (z, y, x)."""
    whole = read_mask(paths[0], store, case)
    for path in paths[1:]:
        whole |= read_mask(path, store, case)
    return whole


def read_mask(path: Path, store: Store, case: str) -> np.ndarray:
    """A mask (z, y, x), bool, on the case's grid, whichever way its axes run. Raises BadImage, naming the file."""
    try:
        volume = nifti.read(path, scaled=False)
        flat, inside = binary(volume, volume.array_ijk.shape)
        mask = nifti.canonical(inside[flat].reshape(volume.array_ijk.shape, order="F"), volume.affine)
        _check_grid(mask.shape, nifti.canonical_affine(volume.array_ijk.shape, volume.affine), store, case)
    except BadImage as error:
        raise BadImage(error.reason, path.name) from error
    return np.ascontiguousarray(mask)


def _check_grid(shape_zyx: tuple[int, ...], affine_zyx: np.ndarray, store: Store, case: str) -> None:
    """Raises BadImage where a mask has not the scan's voxels, or they lie elsewhere in the patient."""
    shape = store.shape_zyx(case)
    if shape_zyx != shape:
        raise BadImage(f"{' x '.join(map(str, shape_zyx))} voxels (z, y, x), the scan has {' x '.join(map(str, shape))}")
    source = np.array(store.value(case, "source_affine")).reshape(4, 4)
    difference = affine_zyx - nifti.canonical_affine(tuple(store.value(case, "source_shape_ijk")), source)
    corners = np.stack(np.meshgrid(*((0, length - 1) for length in shape), indexing="ij")).reshape(3, -1)
    apart = np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max()
    if apart > LARGEST_SHIFT * min(store.spacing_mm_zyx(case)):
        raise BadImage(f"lies up to {apart:.1f} mm away from the scan: write masks with the scan's affine")
