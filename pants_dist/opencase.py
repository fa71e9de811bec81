"""An open case: patches of its arrays, and voxels of its structures, straight from the file."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pants_dist import shard
from pants_dist.casefile import AIR_HU
from pants_dist.decode import decode
from pants_dist.errors import DamagedError
from pants_dist.fetch import opened

FILLS = {"image": AIR_HU, "codes": 0}


class Place(NamedTuple):
    """Where bytes lie in a case's file."""

    offset: int
    size: int


class Layout(NamedTuple):
    """What a manifest row says of a case's file."""

    shape_zyx: tuple[int, int, int]
    file_bytes: int
    image_dtype: str
    codes_dtype: str
    image: Place
    codes: Place
    foreground: Place
    foreground_ranges: str  # JSON: structure -> [start, stop) of its coordinates

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Layout":
        """From a manifest row, or the part of it that this needs."""
        z, y, x = row["shape_zyx"]
        places = (Place(row[f"{array}_offset"], row[f"{array}_bytes"]) for array in ("image", "codes", "foreground"))
        image, codes, foreground = places
        dtypes = row["image_dtype"], row["codes_dtype"]
        return cls((z, y, x), row["file_bytes"], *dtypes, image, codes, foreground, row["foreground_ranges"])


class OpenCase:
    """A case's file, the layout of its arrays, their chunk indexes once needed. Threads may share it.

    `how` is "mmap" or "pread" (fetch.py). Raises DamagedError where the file is not what its manifest row says.
    """

    def __init__(self, path: Path, case: str, layout: Layout, how: str) -> None:
        self.path, self.case, self.layout = path, case, layout
        self._indexes: dict[str, np.ndarray] = {}
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(descriptor).st_size
            self._fetch = opened(how, descriptor, max(size, 1))
        except (OSError, ValueError) as error:  # mmap says ValueError of a file that is too short
            why = getattr(error, "strerror", None) or error
            raise DamagedError(f'case {case}: {path} cannot be opened ({why}); run "pants-dist verify"') from error
        if size != layout.file_bytes:
            raise DamagedError(
                f"case {case}: {path} has {size} bytes, its manifest row says {layout.file_bytes}; convert it again"
            )

    def read_into(self, array: str, corner_zyx: tuple[int, int, int], out_zyx: np.ndarray) -> None:
        """Fill `out_zyx` (z, y, x; C-contiguous, the array's dtype) with the box that begins at `corner_zyx`.

        `array` is "image" or "codes". What overhangs the case is air or code 0. Raises DamagedError.
        """
        shape, fill = self.layout.shape_zyx, FILLS[array]
        place: Place = getattr(self.layout, array)
        inside = all(
            0 <= c and c + n <= length for c, n, length in zip(corner_zyx, out_zyx.shape, shape, strict=True)
        )
        if not inside or place.size == 0:
            out_zyx.fill(fill)
        if place.size == 0:  # nothing but fill
            return
        chunks, offsets, sizes = shard.touched(self._index(array, place), shape, corner_zyx, out_zyx.shape)
        starts, stops, ranges = shard.merged(offsets, sizes)
        data, begins = self._fetched(array, self._fetch.get, place.offset + starts, place.offset + stops)
        moved = offsets + (begins - starts)[ranges] if len(starts) else offsets
        wrong = decode(data, moved, sizes, chunks, corner_zyx, out_zyx, shape, fill)
        if wrong >= 0:
            raise self._damaged(array, f"chunk {tuple(chunks[wrong].tolist())}")

    def voxel_zyx(self, structure: str, draw: int) -> tuple[int, int, int] | None:
        """One of the kept voxels of a structure, number `draw` modulo how many there are; None where there is none."""
        start, stop = json.loads(self.layout.foreground_ranges).get(structure, (0, 0))
        if start == stop:
            return None
        z, y, x = self._coordinates(start + draw % (stop - start), 1)[0].tolist()
        return z, y, x

    def foreground(self) -> dict[str, np.ndarray]:
        """Voxel coordinates (n, 3) z, y, x, int64, by structure."""
        ranges = json.loads(self.layout.foreground_ranges)
        every = self._coordinates(0, self.layout.foreground.size // 6).astype(np.int64)
        return {name: every[start:stop] for name, (start, stop) in ranges.items()}

    def _coordinates(self, first: int, count: int) -> np.ndarray:
        start = self.layout.foreground.offset + 6 * first
        found = self._fetched("foreground", self._fetch.piece, start, start + 6 * count)
        return np.frombuffer(found, "<u2").reshape(-1, 3)

    def _index(self, array: str, place: Place) -> np.ndarray:
        if array not in self._indexes:
            size, stop = shard.index_bytes(self.layout.shape_zyx), place.offset + place.size
            tail = self._fetched(array, self._fetch.piece, stop - size, stop)
            try:
                self._indexes[array] = shard.read_index(tail, self.layout.shape_zyx)
            except shard.BadChecksum as error:
                raise self._damaged(array, str(error)) from error
        return self._indexes[array]

    def _fetched(self, array: str, way: Callable[[Any, Any], Any], start: Any, stop: Any) -> Any:
        """Bytes by one of the two ways to ask for them; what goes wrong is said with the names of case and array."""
        try:
            return way(start, stop)
        except EOFError as error:
            raise DamagedError(
                f"case {self.case}, array {array}: {self.path} is truncated; convert it again"
            ) from error
        except OSError as error:
            raise DamagedError(
                f"case {self.case}, array {array}: {self.path} cannot be read ({error.strerror})"
            ) from error

    def _damaged(self, array: str, what: str) -> DamagedError:
        return DamagedError(
            f"case {self.case}, array {array}, {what}: checksum is wrong in {self.path}; convert it again"
        )
