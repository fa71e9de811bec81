"""A case of a store back as NIfTI, voxel-equal to what it was made from, in the source's own orientation and affine."""

from pathlib import Path
from typing import Any

import numpy as np

from conversion import nifti
from conversion.scaling import as_on_disk
from pants_dist.opencase import Layout, OpenCase
from pants_dist.store import SCHEMA, open_store


def export(store: Path, case: str, out: Path) -> list[Path]:
    """Write OUT/ct.nii.gz and OUT/segmentations/<structure>.nii.gz; returns the files.

    The CT has the source's dtype, slope and intercept, so its values are the source's; a mask (uint8, 0 and 1) is
    written for every structure that was annotated or has a voxel, empty ones too. Raises UserError for a case that the
    store does not have, DamagedError where its file is damaged.
    """
    opened = open_store(store)
    row = {name: opened.value(case, name) for name in SCHEMA.names}
    image, codes = case_volumes(opened.case_path(case), row)
    affine = np.array(row["source_affine"]).reshape(4, 4)
    array, slope, inter = as_on_disk(image, np.dtype(row["source_dtype"]), row["source_slope"], row["source_inter"])
    files = [Path(out) / "ct.nii.gz"]
    nifti.write(files[0], array, affine, slope, inter)
    for name, inside in inside_of(row).items():
        files.append(Path(out) / "segmentations" / f"{name}.nii.gz")
        nifti.write(files[-1], inside[codes], affine)
    return files


def case_volumes(path: Path, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """HU and palette codes of a case's file, both (i, j, k) in the source's index order (views)."""
    layout, affine = Layout.of(row), np.array(row["source_affine"]).reshape(4, 4)
    file = OpenCase(path, row["case"], layout, "pread")
    image, codes = np.empty(layout.shape_zyx, layout.image_dtype), np.empty(layout.shape_zyx, layout.codes_dtype)
    file.read_into("image", (0, 0, 0), image)
    file.read_into("codes", (0, 0, 0), codes)
    return nifti.original(image, affine), nifti.original(codes, affine)


def inside_of(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Structure -> uint8 by code, 1 where the code's combination has it: of all that were annotated or have a voxel."""
    palette = [int(mask, 16) for mask in row["palette"]]
    tables = {name: np.array([mask >> bit & 1 for mask in palette], np.uint8) for bit, name in enumerate(row["structures"])}
    return {name: table for name, table in tables.items() if name in row["annotated"] or table.any()}
