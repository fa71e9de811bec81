"""Slope and intercept, both ways, losing nothing: voxels on disk to values (HU), and values to the voxels on disk."""

from collections.abc import Iterator

import numpy as np

EXACT_IN_FLOAT64 = 2.0**53
Facts = tuple[float, float, bool, bool]


class Unrepresentable(ValueError):
    """Values that no dtype holds exactly."""


def planes(array_ijk: np.ndarray) -> Iterator[np.ndarray]:
    """(i, j) slices: contiguous, and small enough that what is computed from them stays in the cache."""
    return (array_ijk[:, :, k] for k in range(array_ijk.shape[2]))


def values(array_ijk: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """array * slope + inter in float64 arithmetic, in the smallest dtype that is exact; the array where that is itself.

    int16, int32 or int64 where every value is whole, else float32 or float64. Raises Unrepresentable.
    """
    same = (slope, inter) == (1.0, 0.0)
    if same and array_ijk.dtype == np.int16:
        return array_ijk
    dtype = _smallest([_facts(plane) for plane in _scaled(array_ijk, slope, inter)])
    if same and array_ijk.dtype == dtype:
        return array_ijk
    out = np.empty(array_ijk.shape, dtype, order="F")
    for target, plane in zip(planes(out), _scaled(array_ijk, slope, inter), strict=True):
        target[...] = plane
    return out


def _scaled(array_ijk: np.ndarray, slope: float, inter: float) -> Iterator[np.ndarray]:
    if (slope, inter) == (1.0, 0.0):
        return planes(array_ijk)
    return (_scaled_plane(plane, slope, inter) for plane in planes(array_ijk))


def _scaled_plane(plane: np.ndarray, slope: float, inter: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # _facts finds what does not fit
        return plane.astype(np.float64) * slope + inter


def _facts(plane: np.ndarray) -> Facts:
    """(lowest, highest, all whole, all exact in float32)."""
    low, high = plane.min().item(), plane.max().item()
    if plane.dtype.kind in "iu":
        return low, high, True, True
    if not np.isfinite([low, high]).all():
        raise Unrepresentable("slope and intercept lead beyond what float64 can hold")
    whole = bool((plane == np.rint(plane)).all()) and max(-low, high) <= EXACT_IN_FLOAT64
    with np.errstate(over="ignore"):
        return low, high, whole, bool((plane == plane.astype(np.float32)).all())


def _smallest(facts: list[Facts]) -> np.dtype:
    lows, highs, whole, single = zip(*facts, strict=True)
    if not all(whole):
        return np.dtype(np.float32 if all(single) else np.float64)
    for dtype in (np.int16, np.int32, np.int64):
        if np.iinfo(dtype).min <= min(lows) and max(highs) <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise Unrepresentable(f"values up to {max(highs)}, beyond int64")


def as_on_disk(
    values: np.ndarray, dtype: np.dtype, slope: float, inter: float
) -> tuple[np.ndarray, float | None, float | None]:
    """Voxels of `dtype` which slope and intercept turn into exactly `values`, with that slope and intercept.

    Where there are none, or a NIfTI-1 header cannot hold the slope: the values as they are, and None.
    """
    if (slope, inter) == (1.0, 0.0):
        raw = values.astype(dtype)
        return (raw, None, None) if (raw == values).all() else (values, None, None)
    exact = (values.astype(np.float64) - inter) / slope
    raw = (np.rint(exact) if dtype.kind in "iu" else exact).astype(dtype)
    fits_header = float(np.float32(slope)) == slope and float(np.float32(inter)) == inter
    if fits_header and (raw.astype(np.float64) * slope + inter == values).all():
        return raw, slope, inter
    return values, None, None
