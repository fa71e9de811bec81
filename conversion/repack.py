"""One case: read it, check it, merge its masks into palette codes, draw its coordinates, publish it as one file.

Everything is computed in the index order of the source's files, where memory is contiguous; the store's order (z, y, x)
is a view on it. At most one mask is held at a time.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversion import audit, nifti
from conversion.components import Components, components
from conversion.merge import BLOCK, Combinations, TooManyValues, locate
from conversion.nifti import BadImage, Volume
from conversion.reading import Digests, Memory, read_image, read_masks, some_values
from conversion.source import CASE_ID, Source
from pants_dist.casefile import write_case
from pants_dist.structures import LESION, PANTS, bit_order

CONVERTER = "pants-dist conversion 2"  # a case made by another is made again; count up when files would differ
COORDINATES = 2000  # a structure's voxels that can be drawn as patch centers
HU_SAMPLE = 256  # a case's share in the intensity statistics of training


@dataclass(frozen=True)
class Labels:
    """A case's masks, merged. Volumes and positions are flat, in the index order of the files.

    `palette` has the bitmask of each code, `voxels` how many carry it, `blocks` the non-empty voxels in each block of
    `codes`, `positions` the voxels of a structure that were drawn, `affines` (4, 4) what the masks' files say.
    """

    structures: tuple[str, ...]
    codes: np.ndarray
    palette: list[int]
    voxels: list[int]
    blocks: np.ndarray
    positions: Mapping[str, np.ndarray]
    affines: Mapping[str, np.ndarray]
    lesions: Components

    def count(self, name: str) -> int:
        """Voxels of one structure."""
        bit = self.structures.index(name)
        return sum(number for mask, number in zip(self.palette, self.voxels, strict=True) if mask >> bit & 1)


def convert_case(source: Source, cases: Path, memory: Memory | None = None) -> dict[str, Any]:
    """Repack one case into `cases`/<case>.ozx; returns its manifest row. `memory` is what earlier cases have used.

    Raises BadImage, with the file's name, where the case is refused; OSError where the store's disk refuses.
    """
    if not CASE_ID.fullmatch(source.case):
        raise BadImage("the folder's name cannot be a case id (letters, digits, '_', '-' and '.'); rename it")
    if not source.masks:
        raise BadImage("no masks belong to this image")
    mtimes = [_mtime_ns(path) for path in source.files]
    digests, memory = Digests(), memory or Memory()
    volume = read_image(source, digests, memory)
    labels = merge_masks(source, volume, digests, memory)
    record = {**_record(source, volume, labels), **_sources(source, digests)}
    codes = labels.codes.reshape(volume.array_ijk.shape, order="F")
    row = write_case(
        cases / f"{source.case}.ozx",
        record,
        nifti.canonical(volume.array_ijk, volume.affine),
        nifti.canonical(codes, volume.affine),
        _coordinates_zyx(volume, labels.positions),
    )
    return row | {"source_mtimes_ns": json.dumps(mtimes)}


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or error})", path.name) from error


def merge_masks(source: Source, image: Volume, digests: Digests, memory: Memory) -> Labels:
    """Read the masks one after the other and merge them on the image's grid, index by index."""
    shape = image.array_ijk.shape
    structures = bit_order(set(source.masks))
    combinations = Combinations(image.array_ijk.size, memory.codes.room(image.array_ijk.size))
    positions, affines, lesions = {}, {}, Components()
    for name, mask, on, filled, affine in read_masks(source, structures, shape, digests, memory):
        if affine is not None:
            affines[name] = affine
        try:
            blocks = combinations.add(mask, structures.index(name), on, filled)
        except TooManyValues as error:
            reason = f"a mask with more than two values, {some_values(mask)}"
            raise BadImage(reason, source.masks[name].name) from error
        if not blocks.any():
            continue
        if name == LESION:
            lesions = _components(mask, on, blocks, image)
        positions[name] = _draw(f"{source.case}/{name}", mask, blocks, lesions if name == LESION else Components())
    return Labels(structures, *combinations.palette(), positions, affines, lesions)


def _components(mask: np.ndarray, on: np.ndarray, blocks: np.ndarray, image: Volume) -> Components:
    """Of a flat mask that has a voxel; only the planes from its first to its last are looked at."""
    shape = image.array_ijk.shape
    plane, holding = shape[0] * shape[1], np.flatnonzero(blocks)
    first, stop = int(holding[0]) * BLOCK // plane, -(-(int(holding[-1]) + 1) * BLOCK // plane)
    slab = mask.reshape(shape, order="F")[:, :, first:stop]
    return components(on[slab], first, image.array_ijk)


def _draw(key: str, mask: np.ndarray, blocks: np.ndarray, pieces: Components) -> np.ndarray:
    """Positions of up to COORDINATES set voxels of a mask, one in each of its `pieces` among them."""
    total = int(blocks.sum())
    chosen = pieces.positions if total > COORDINATES else pieces.positions[:0]
    drawn = locate(mask, blocks, _strata(key, total, max(COORDINATES - len(chosen), 0)))
    return np.union1d(drawn, chosen) if len(chosen) else drawn


def _strata(key: str, total: int, wanted: int) -> np.ndarray:
    """Ascending numbers below `total`: all where there are at most `wanted`, else one of each of `wanted` equal strata.

    Where in its stratum is decided by a hash of `key`: the same on every machine and with every version of numpy.
    """
    if total <= wanted:
        return np.arange(total)
    bits = np.frombuffer(hashlib.shake_256(key.encode()).digest(4 * wanted), "<u4").astype(np.int64)
    edges = np.arange(wanted + 1) * total // wanted
    return edges[:-1] + bits * np.diff(edges) // (1 << 32)


def _coordinates_zyx(image: Volume, positions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Flat positions as (n, 3) coordinates z, y, x in the store's order."""
    together = np.concatenate([np.zeros(0, np.int64), *positions.values()])
    indices_ijk = np.stack(np.unravel_index(together, image.array_ijk.shape, "F"), axis=1)
    zyx = nifti.canonical_indices(indices_ijk, image.array_ijk.shape, image.affine)
    ends = np.cumsum([len(where) for where in positions.values()], dtype=np.int64)
    return {name: zyx[end - len(positions[name]) : end] for name, end in zip(positions, ends, strict=True)}


def _record(source: Source, image: Volume, labels: Labels) -> dict[str, Any]:
    """What the case's file says of itself, all but its sources. Pure. Raises BadImage (conversion.audit)."""
    voxels = {name: labels.count(name) for name in source.masks}
    measured, notes = _audit(source, image, labels, voxels)
    annotated = [name for name in labels.structures if name in source.annotated or voxels.get(name)]
    if source.about["tumor_flag"] and voxels.get(LESION) == 0:
        annotated = [name for name in annotated if name != LESION]
    return {
        **source.about,
        "case": source.case,
        "dataset": source.dataset,
        "spacing_mm_zyx": [round(mm, 6) for mm in image.spacing_mm_zyx],
        "palette": [hex(mask) for mask in labels.palette],
        "structures": list(labels.structures),
        "annotated": annotated,
        "voxels": json.dumps(voxels, sort_keys=True),
        "foreground_hu": _sample_hu(source.case, image, labels),
        "source_shape_ijk": list(image.array_ijk.shape),
        "source_orientation": image.orientation,
        "source_affine": image.affine.ravel().tolist(),
        "source_dtype": image.dtype.name,
        "source_slope": image.slope,
        "source_inter": image.inter,
        "audit": json.dumps(measured, sort_keys=True),
        "notes": notes,
        "converter": CONVERTER,
    }


def _audit(
    source: Source, image: Volume, labels: Labels, voxels: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """(what was measured, notes). Raises BadImage where masks and CT do not belong to one another."""
    flat = image.array_ijk.reshape(-1, order="F")
    hu = {name: flat[where] for name, where in labels.positions.items()}
    pancreas, pancreas_notes = audit.pancreas_notes(labels.palette, labels.voxels, labels.structures)
    measured = audit.measure(image, voxels, hu, labels.lesions) | pancreas
    about = source.about
    notes = [
        *_notes(source, image, voxels),
        *audit.geometry_notes(image),
        *audit.affine_notes(image, labels.affines, labels.positions),
        *pancreas_notes,
        *audit.content_notes(about["phase"], about["tumor_flag"], voxels, measured),
    ]
    return measured, notes


def _sample_hu(case: str, image: Volume, labels: Labels) -> list[float]:
    """HU of up to HU_SAMPLE annotated voxels, spread evenly over them in index order."""
    ranks = _strata(f"{case}/hu", int(labels.blocks.sum()), HU_SAMPLE)
    where = locate(labels.codes, labels.blocks, ranks)
    return image.array_ijk.reshape(-1, order="F")[where].astype(np.float32).tolist()


def _notes(source: Source, image: Volume, voxels: Mapping[str, int]) -> Iterator[str]:
    if image.array_ijk.dtype != np.int16:
        low, high = image.array_ijk.min(), image.array_ijk.max()
        why = "not whole numbers" if image.array_ijk.dtype.kind == "f" else "beyond int16"
        yield f"HU kept as {image.array_ijk.dtype.name}: {why}, from {low:g} to {high:g}"
    expected = {*source.annotated, *(PANTS if source.dataset == "PanTS" else ())}
    if missing := sorted(expected - set(voxels)):
        yield f"masks missing: {', '.join(missing)}"


def _sources(source: Source, digests: Digests) -> dict[str, Any]:
    """Fields `sources` and `source_bytes`: what the case was made from, by content."""
    listed = [[name, *digests[path]] for name, path in zip(source.names, source.files, strict=True)]
    return {"sources": json.dumps(listed), "source_bytes": sum(size for size, _ in digests.values())}
