"""Who was scanned and how: the variables of the population table, by the rules of the published one and put right.

`published` follows what PanTS's own table rests on: 'M ' is no known sex, a missing phase is non-contrast, array axis 0 is
in-plane and axis 2 the slice axis, an age of 0 is an age. `corrected`: blanks stripped, a missing phase and an age of 0
unknown, the through-plane axis found from the spacing, scans flagged that were resampled before they were released. A
store's cells are tidied already, so there 'M ' is male under both rules.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import ndimage

from pants_dist.cases import EMPTY_CELLS, UNKNOWN, center_of, official_split, read_metadata, tidy
from pants_dist.errors import UserError
from pants_dist.stats import NAN
from pants_dist.structures import LESION, PANCREAS

if TYPE_CHECKING:
    from pants_dist.store import Store

NEEDED = ("spacing", "ct phase", "sex", "age", "manufacturer", "site", "site detail", "site nationality", "tumor?")
SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}
PHASES = {"Non-contrast": "non-contrast", "Venous": "portal venous", "Arterial": "arterial", "Delay": "delayed"}
MAKERS = {"siemens": "Siemens", "ge": "GE", "philips": "Philips", "toshiba": "Toshiba"}  # by the first word
AGE, SEX, IN_PLANE, SLICE = "age, years", "sex", "in-plane spacing, mm", "slice thickness, mm"
PHASE, TUMOR, SLICE_AXIS, RESAMPLED = "phase", "tumor", "slice axis", "resampled at source"
DUCT = "pancreatic duct"
TUMORS = "tumors a positive scan"
MEASURES = {  # what a store knows besides: variable -> its column of scans
    TUMORS: "tumors", "tumor volume, cm3": "tumor_cm3", "tumor density, HU": "tumor_hu",
    "pancreas volume, cm3": "pancreas_cm3", "pancreas density, HU": "pancreas_hu",
}  # fmt: skip
SAME_SPACING = 1e-3  # relative difference of two axes below which they are one plane's
RESAMPLED_MM = (1.5, 1.0)  # isotropic grids that no scanner makes
DILATED_MM = 5.0  # a main duct as wide is a worrisome feature: Tanaka et al., Pancreatology 2017;17:738
AROUND_DUCT = 16  # voxels around the drawn ones of a duct in which its width is measured
DUCT_STRUCTURE = "pancreatic_duct"


def scans_of_metadata(path: Path) -> pd.DataFrame:
    """Scans of PanTS's metadata.xlsx (or the same as CSV), one row a case: cells as released, spacing along array axes.

    Columns: split, center, phase, sex, age, manufacturer, nationality, tumor (1, 0 or NaN), spacing_mm_ijk. Raises
    UserError where the file cannot be read or lacks a column.
    """
    table = read_metadata(path, as_released=True)
    if missing := [name for name in NEEDED if name not in table]:
        raise UserError(f'metadata {path}: no column "{missing[0]}"; give the released metadata.xlsx')
    sites = zip(table["site"], table["site detail"], strict=True)
    return pd.DataFrame(
        {
            "split": [official_split(case) for case in table.index],
            "center": [center_of(site, detail)[0] for site, detail in sites],
            "phase": table["ct phase"],
            "sex": table["sex"],
            "age": pd.to_numeric(table["age"], errors="coerce"),
            "manufacturer": table["manufacturer"],
            "nationality": table["site nationality"],
            "tumor": table["tumor?"].map(tidy).map({"1": 1.0, "0": 0.0}),
            "spacing_mm_ijk": [_three(cell) for cell in table["spacing"]],
        },
        index=table.index,
    )


def scans_of_store(store: "Store", tell: Callable[[int, int], None]) -> pd.DataFrame:
    """The same of a store's cases, and what masks and voxels say: tumors, volumes in cm3, HU, width of the duct in mm.

    Volumes and HU are the manifest's own, from the conversion; the duct's width takes a look at the voxels of each case
    that has a duct, told as `tell(done, total)`. A tumor's volume is that of all in the scan; NaN where there is none.
    """
    columns = ("official_split", "center", "phase", "sex", "age", "manufacturer", "nationality", "tumor_flag")
    scans = store.frame(*columns).rename(columns={"official_split": "split", "tumor_flag": "tumor"})
    scans = scans.assign(tumor=scans["tumor"].astype("Float64").to_numpy(float, na_value=NAN))
    rows = store.frame("metadata", "spacing_mm_zyx", "voxels", "audit")
    scans["spacing_mm_ijk"] = [_spacing_ijk(*row) for row in zip(rows["metadata"], rows["spacing_mm_zyx"], strict=True)]
    measured = [_measured(row) for row in rows.drop(columns="metadata").to_dict("records")]
    scans = scans.assign(**pd.DataFrame(measured, rows.index))
    with_duct = scans.index[store.holding(DUCT_STRUCTURE)[DUCT_STRUCTURE]]
    widths = dict.fromkeys(scans.index, NAN)
    for done, case in enumerate(with_duct, 1):
        widths[case] = duct_mm(store, case)
        tell(done, len(with_duct))
    return scans.assign(duct_mm=pd.Series(widths))


def _three(cell: str) -> tuple[float, float, float]:
    """The three numbers of a cell "(0.625, 0.625, 0.8)"; NaN where there are not three."""
    numbers = [float(text) for text in re.findall(r"\d+\.?\d*(?:[eE][-+]?\d+)?", cell)]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else (NAN, NAN, NAN)


def _spacing_ijk(metadata: str, spacing_mm_zyx: Sequence[float]) -> tuple[float, float, float]:
    """As released; of other datasets the store's own, x, y, z."""
    released = _three(str(json.loads(metadata).get("spacing", "")))
    z, y, x = spacing_mm_zyx
    return (x, y, z) if math.isnan(released[0]) else released


def _measured(row: Mapping[str, Any]) -> dict[str, float]:
    """Lesions of a scan that has any, volumes in cm3 and median HU, from a manifest row."""
    audit, voxels = json.loads(row["audit"] or "{}"), json.loads(row["voxels"] or "{}")
    voxel_cm3 = float(np.prod(row["spacing_mm_zyx"])) / 1000
    hu = audit.get("median_hu", {})
    found = {"tumors": float(audit.get("lesions") or NAN)}
    for name, structure in (("tumor", LESION), ("pancreas", PANCREAS)):
        found |= {f"{name}_cm3": (voxels.get(structure) or NAN) * voxel_cm3, f"{name}_hu": hu.get(structure, NAN)}
    return found


def duct_mm(store: "Store", case: str) -> float:
    """Greatest width of the case's pancreatic duct in mm; NaN where it has none.

    Twice the greatest distance (mm) of a voxel to the nearest one outside, less one voxel's smallest edge, as both
    distances are from middle to middle. Exact to a voxel.
    """
    drawn = store.foreground(case).get(DUCT_STRUCTURE, np.zeros((0, 3), int)).astype(int)
    if not len(drawn):
        return NAN
    corner = np.maximum(drawn.min(0) - AROUND_DUCT, 0)
    size = np.minimum(drawn.max(0) + AROUND_DUCT + 1, store.shape_zyx(case)) - corner
    codes = np.empty(tuple(size.tolist()), store.layout(case).codes_dtype)
    z, y, x = corner.tolist()
    store.open_case(case).read_into("codes", (z, y, x), codes)
    mask = store.lookup(case, (DUCT_STRUCTURE,))[codes, 0] > 0
    spacing = store.spacing_mm_zyx(case)
    depth_mm = ndimage.distance_transform_edt(np.pad(mask, 1), spacing)
    return float(2 * depth_mm.max() - min(spacing))


def published(scans: pd.DataFrame) -> pd.DataFrame:
    """Variables (columns) of scans by the rules of the published figures; unknown: None or NaN."""
    spacing = np.stack(scans["spacing_mm_ijk"].to_list())
    return pd.DataFrame(
        {
            AGE: scans["age"],
            SEX: [SEXES.get((cell or "").casefold()) for cell in scans["sex"]],
            IN_PLANE: spacing[:, 0],
            SLICE: spacing[:, 2],
            PHASE: [_phase(cell) or PHASES["Non-contrast"] for cell in scans["phase"]],
            TUMOR: scans["tumor"].map({1.0: "yes", 0.0: "no"}),
        },
        index=scans.index,
    )


def corrected(scans: pd.DataFrame) -> pd.DataFrame:
    """The same variables put right, scans whose slices lie elsewhere or that were resampled, and what a store knows."""
    spacing = np.stack(scans["spacing_mm_ijk"].to_list())
    through = through_plane_axis(spacing)
    every = np.arange(len(spacing))
    variables = published(scans).assign(
        **{
            AGE: scans["age"].where(scans["age"] > 0),
            SEX: [SEXES.get(tidy(cell or "").casefold()) for cell in scans["sex"]],
            IN_PLANE: spacing[every, np.where(through == 0, 1, 0)],
            SLICE: spacing[every, through],
            PHASE: [_phase(cell) for cell in scans["phase"]],
            SLICE_AXIS: np.where(through == 2, "last", "elsewhere"),
            RESAMPLED: _resampled(spacing),
        }
    )
    for name, column in MEASURES.items():
        if column in scans:
            variables[name] = scans[column]
    if "duct_mm" in scans:
        wide = [None if math.isnan(mm) else "dilated" if mm >= DILATED_MM else "not dilated" for mm in scans["duct_mm"]]
        variables[DUCT] = pd.Series(wide, scans.index, object)
    return variables


def _phase(cell: str | None) -> str | None:
    text = tidy(cell or "")
    return None if text in EMPTY_CELLS else PHASES.get(text, text.casefold())


def through_plane_axis(spacing_mm: np.ndarray) -> np.ndarray:
    """Array axis across the slices of each scan, from spacing (n, 3) in mm: the one unlike two equal others.

    Axis 2 where axes 0 and 1 are equal; else 0 or 1, whichever is less like axis 2.
    """
    first, second, last = spacing_mm.T
    in_plane = np.abs(first - second) <= SAME_SPACING * np.maximum(first, second)
    unlike = np.where(np.abs(first - last) > np.abs(second - last), 0, 1)
    return np.where(in_plane | np.isnan(first), 2, unlike)


def _resampled(spacing_mm: np.ndarray) -> list[str]:
    """Whether each scan lies on exactly one of the grids RESAMPLED_MM."""
    names = np.full(len(spacing_mm), "no", object)
    for mm in RESAMPLED_MM:
        names[(spacing_mm == mm).all(axis=1)] = f"{mm:.1f} mm isotropic"
    return names.tolist()


def groups_of(scans: pd.DataFrame, by: str) -> pd.Series:
    """The group of each scan by split, sex, phase, center, manufacturer or nationality, put right; "unknown" else."""
    if by in ("sex", "phase"):
        labels = corrected(scans)[by]
    elif by == "manufacturer":
        labels = scans[by].map(_maker)
    else:
        labels = scans[by].map(lambda cell: tidy(cell or ""))
    return labels.where(labels.notna() & ~labels.isin(EMPTY_CELLS), UNKNOWN)


def _maker(cell: str | None) -> str:
    text = tidy(cell or "")
    return MAKERS.get(text.partition(" ")[0].casefold(), text)
