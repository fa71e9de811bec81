"""Scans that may be one: equal voxels, and clusters that look like one patient by what metadata and histograms say.

No patient id is released with PanTS. Scans of equal shape, spacing, site, site detail, sex and age are suspected to be
of one patient; where the voxels are at hand, their coarse histograms must agree as well.
"""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pants_dist.cases import EMPTY_CELLS, tidy

FINGERPRINT = ("shape", "spacing", "site", "site detail", "sex", "age")  # columns of PanTS's metadata
HISTOGRAM_DISTANCE = 0.1  # of two scans of one patient: half the sum of differences over the bands
TOLD = ("train", "test")


@dataclass(frozen=True)
class Clusters:
    """Groups of two or more case ids, each sorted, and how many of the groups cross official train and test."""

    groups: tuple[tuple[str, ...], ...]
    crossing: int

    @property
    def cases(self) -> int:
        """Cases in any group."""
        return sum(len(group) for group in self.groups)


def clusters(keys: Mapping[str, Hashable | None], splits: Mapping[str, str]) -> Clusters:
    """Cases with equal keys; None belongs to no group. `splits` is a case's "train", "test" or "" (neither)."""
    members: dict[Hashable, list[str]] = {}
    for case, key in sorted(keys.items()):
        if key is not None:
            members.setdefault(key, []).append(case)
    return _counted(members.values(), splits)


def _counted(groups: Iterable[Sequence[str]], splits: Mapping[str, str]) -> Clusters:
    several = tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))
    return Clusters(several, sum(set(TOLD) <= {splits[case] for case in group} for group in several))


def fingerprint(fields: Mapping[str, Any], known: bool = False) -> str | None:
    """The six FINGERPRINT fields of a metadata row as one text; with `known`, None where sex or age is not given.

    Raises KeyError where a field is missing.
    """
    cells = [tidy(fields[name]) for name in FINGERPRINT]
    return None if known and set(cells[-2:]) & set(EMPTY_CELLS) else "|".join(cells)


def fingerprint_of(row: Mapping[str, Any], known: bool = False) -> str | None:
    """The same of a manifest row: by its metadata, or by its own shape, spacing, center, sex and age without PanTS's."""
    return fingerprint(_fields(row, json.loads(row["metadata"]))[0], known)


def _fields(row: Mapping[str, Any], metadata: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The fields that make a manifest row's fingerprint, and whether they are PanTS's own."""
    if set(FINGERPRINT) <= set(metadata):
        return metadata, True
    spacing = [round(mm, 3) for mm in row["spacing_mm_zyx"]]
    cells = row["source_shape_ijk"], spacing, row["dataset"], row["center"], row["sex"], row["age"]
    return dict(zip(FINGERPRINT, map(str, cells), strict=True)), False


def _voxels_of(row: Mapping[str, Any]) -> tuple[int, ...]:
    """What scans of equal voxels have in common."""
    return (*row["shape_zyx"], row["image_bytes"], row["image_crc32"])


def patients(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Case -> the first case of its suspected patient, by id; itself for most. Of manifest rows.

    One patient: scans of equal voxels, or of equal fingerprint, and whatever these chain together. Shape and spacing
    alone are no sign of it: without PanTS's metadata sex and age must be known.
    """
    first = {row["case"]: row["case"] for row in rows}

    def root(case: str) -> str:
        while first[case] != case:
            case = first[case]
        return case

    neither = dict.fromkeys(first, "")
    prints = {}
    for at in range(0, len(rows), 1000):  # one by one takes thrice as long, and all at once busies the garbage collector
        block = rows[at : at + 1000]
        for row, metadata in zip(block, json.loads(f"[{','.join(row['metadata'] for row in block)}]"), strict=True):
            fields, released = _fields(row, metadata)
            prints[row["case"]] = fingerprint(fields, known=not released)
    voxels = {row["case"]: _voxels_of(row) for row in rows}
    for group in (*clusters(prints, neither).groups, *clusters(voxels, neither).groups):
        roots = sorted({root(case) for case in group})
        first |= dict.fromkeys(roots, roots[0])
    return {case: root(case) for case in first}


def alike(found: Clusters, histograms: Mapping[str, Sequence[float]], splits: Mapping[str, str]) -> Clusters:
    """`found` with each group cut into what its histograms (shares by band) chain together."""
    parts = []
    for group in found.groups:
        left = list(group)
        while left:
            part, waiting = [], [left.pop(0)]
            while waiting:
                part.append(case := waiting.pop())
                near = [other for other in left if _distance(histograms[case], histograms[other]) <= HISTOGRAM_DISTANCE]
                waiting += near
                left = [other for other in left if other not in near]
            parts.append(part)
    return _counted(parts, splits)


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def suspects(rows: Sequence[Mapping[str, Any]]) -> dict[str, Clusters]:
    """Every kind of cluster among manifest rows, by its name in words."""
    splits = {row["case"]: row["official_split"] for row in rows}
    voxels = {row["case"]: _voxels_of(row) for row in rows}
    histograms = {row["case"]: json.loads(row["audit"] or "{}").get("histogram", ()) for row in rows}
    six = clusters({row["case"]: fingerprint_of(row) for row in rows}, splits)
    return {
        "equal voxels": clusters(voxels, splits),
        "equal shape, spacing, site, sex and age": six,
        "the same, sex and age both known": clusters({row["case"]: fingerprint_of(row, True) for row in rows}, splits),
        "the same, and histograms alike": alike(six, histograms, splits),
    }
