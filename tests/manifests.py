"""Manifest rows for tests of splits: as many as wanted, without a voxel."""

import json
from typing import Any

import pandas as pd

from pants_dist.cases import center_of, official_split
from pants_dist.structures import LESION


def row_of(case: str, number: int, metadata: dict[str, str], lesion: bool | None) -> dict[str, Any]:
    """What splits.COLUMNS have of a case; `number` makes its voxels its own; `lesion` None: not annotated."""
    center, kind = center_of(metadata["site"], metadata["site detail"])
    return {
        "case": case, "center": center, "center_kind": kind, "official_split": official_split(case), "dataset": "PanTS",
        "sex": metadata["sex"], "age": None, "metadata": json.dumps(metadata),
        "voxels": json.dumps({LESION: 9} if lesion else {}), "annotated": [] if lesion is None else [LESION],
        "source_shape_ijk": [4, 5, 6], "spacing_mm_zyx": [1.0, 1.0, 1.0], "shape_zyx": [6, 5, 4],
        "image_bytes": 120, "image_crc32": number,
    }  # fmt: skip


def cases_of(site: str, detail: str, count: int, first: int, lesions: int = 0, patient: str = "") -> list[dict[str, Any]]:
    """`count` rows of one site from id `first` on, `lesions` of them with a lesion; equal `patient`: one patient's scans."""
    rows = []
    for number in range(first, first + count):
        age = patient or str(number)
        metadata = {"shape": "(4, 5, 6)", "spacing": "1", "site": site, "site detail": detail, "sex": "F", "age": age}
        rows.append(row_of(f"PanTS_{number:08d}", number, metadata, number - first < lesions))
    return rows


def frame_of(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as `store.frame(*COLUMNS)` gives them."""
    return pd.DataFrame([row for part in parts for row in part]).set_index("case")
