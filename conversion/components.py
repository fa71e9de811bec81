"""The separate pieces of a mask: where one voxel of each lies, how large they are, how dense."""

from dataclasses import dataclass, field

import numpy as np


def _none(dtype: type) -> np.ndarray:
    return field(default_factory=lambda: np.zeros(0, dtype))


@dataclass(frozen=True)
class Components:
    """26-connected components: a flat position (index order) inside each, its voxels, its mean HU."""

    positions: np.ndarray = _none(np.int64)
    voxels: np.ndarray = _none(np.int64)
    mean_hu: np.ndarray = _none(np.float64)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.voxels)

    def largest(self, most: int) -> list[tuple[int, float]]:
        """(voxels, mean HU) of up to `most` of them, the largest first."""
        order = np.argsort(-self.voxels, kind="stable")[:most]
        return list(zip(self.voxels[order].tolist(), self.mean_hu[order].tolist(), strict=True))


def components(slab_ijk: np.ndarray, first_k: int, image_ijk: np.ndarray) -> Components:
    """The components of a mask that has a voxel. `slab_ijk` (i, j, planes) is the mask from plane `first_k` on.

    `image_ijk` (i, j, k) is Fortran-ordered, as positions are counted.
    """
    import cc3d

    corner, box = _bounding_box(slab_ijk)
    box = np.pad(box, (0, 1))  # cc3d fails on some boxes that are one voxel thin
    labels = cc3d.connected_components(np.asfortranarray(box), connectivity=26).reshape(-1, order="F")
    where = np.flatnonzero(labels)
    numbers = labels[where]
    where = where[np.argsort(numbers, kind="stable")]
    counts = np.bincount(numbers)[1:].astype(np.int64)
    ends = np.cumsum(counts)
    origin = corner[0], corner[1], corner[2] + first_k
    indices = [axis + start for axis, start in zip(np.unravel_index(where, box.shape, "F"), origin, strict=True)]
    begins = ends - counts
    mean_hu = np.add.reduceat(image_ijk[tuple(indices)].astype(np.float64), begins) / counts
    middles = (begins + ends) // 2
    flat = np.ravel_multi_index(tuple(axis[middles] for axis in indices), image_ijk.shape, order="F")
    return Components(flat, counts, mean_hu)


def _bounding_box(mask_ijk: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """(first index along each axis, the part of a non-empty mask inside its bounding box)."""
    corner: list[int] = []
    box = mask_ijk
    for axis in (2, 1, 0):  # the slowest axis first: each step leaves less for the next
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(box.any(axis=others))
        corner.insert(0, int(inside[0]))
        box = box[tuple(slice(inside[0], inside[-1] + 1) if a == axis else slice(None) for a in range(3))]
    return (corner[0], corner[1], corner[2]), box
