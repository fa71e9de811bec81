"""Two ways to get ranges of bytes of a file, chosen by where it lies.

A memory map is best on a local disk. On a network file system it faults page by page, and turns an I/O error or a
truncated file into SIGBUS: there the ranges are read, several at once when they do not come from the page cache.
"""

import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

# file systems of one machine, by their names in /proc/self/mountinfo; all others may be a network's
LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "squashfs", "erofs"))
PAGE = mmap.ALLOCATIONGRANULARITY
THREADS = 16  # reads under way at once for one patch
CACHED_S = 0.3e-3  # a read that took less came from memory: threads would only slow down the next
_own = threading.local()


class Fetch(Protocol):
    """Gets bytes of one open file. They are good until this thread asks for others."""

    def get(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bytes as uint8, where in them each range [start, stop) of the file begins). Raises OSError, EOFError."""


class Mapped:
    """A memory map, with the ranges announced before they are touched. It owns the descriptor."""

    def __init__(self, descriptor: int, size: int) -> None:
        try:
            self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptor)  # the map has one of its own
        self._map.madvise(mmap.MADV_RANDOM)
        self._data = np.frombuffer(self._map, np.uint8)

    def get(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._map.size() < len(self._data):  # touching what is gone would be SIGBUS
            raise EOFError
        for start, stop in zip((starts // PAGE * PAGE).tolist(), stops.tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)
        return self._data, starts


class Read:
    """Plain reads at offsets; threads once one shows that the bytes are not in memory. It owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    def get(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            os.posix_fadvise(self.descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
        begins = np.concatenate([[0], np.cumsum(stops - starts)])
        data = _buffer(int(begins[-1]))
        view = data.data
        jobs = [(start, view[a:b]) for start, a, b in zip(starts.tolist(), begins[:-1], begins[1:], strict=True)]
        for number, job in enumerate(jobs):
            begun = time.perf_counter()
            self._fill(job)
            if time.perf_counter() - begun > CACHED_S and number + 1 < len(jobs):
                list(_pool(os.getpid()).map(self._fill, jobs[number + 1 :]))
                break
        return data, begins[:-1]

    def _fill(self, job: tuple[int, memoryview]) -> None:
        start, target = job
        while len(target):
            count = os.preadv(self.descriptor, [target], start)
            if count == 0:
                raise EOFError
            start, target = start + count, target[count:]


def _buffer(size: int) -> np.ndarray:
    """Memory of this thread for `size` bytes, the same each time: fresh memory costs as much as filling it."""
    if len(getattr(_own, "buffer", b"")) < size:
        _own.buffer = np.empty(size, np.uint8)
    return _own.buffer[:size]


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One a process: threads do not survive a fork."""
    return ThreadPoolExecutor(THREADS, "fetch")


def opened(how: str, descriptor: int, size: int) -> Fetch:
    """`how` is "mmap" or "pread"."""
    return Mapped(descriptor, size) if how == "mmap" else Read(descriptor)


@cache
def way_for(folder: Path) -> str:
    """ "mmap" where the folder's file system is this machine's own, else "pread"."""
    return "mmap" if file_system(folder) in LOCAL else "pread"


def forget(path: Path) -> None:
    """Put a file out of the page cache, as far as the kernel lets a user do that."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Kind of the file system that a folder lies on, as Linux names it; "" where that cannot be told."""
    place, longest, kind = str(folder.resolve()), -1, ""
    for line in mounts.read_text().splitlines() if mounts.is_file() else ():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].encode().decode("unicode_escape")  # a blank is written as \040
        if len(point) >= longest and (place == point or place.startswith(point.rstrip("/") + "/")):
            longest, kind = len(point), rest.split()[0]
    return kind
