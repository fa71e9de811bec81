"""Two ways to get ranges of bytes of a file.

Plain reads are safe anywhere, and several go at once when the bytes do not come from the page cache. A memory map saves
their copy, which shows where the same few cases are read from the page cache again and again; with a new case for every
patch, setting up and tearing down maps takes as long. On a network file system it faults page by page, and turns an I/O
error or a truncated file into SIGBUS.
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

PAGE = mmap.ALLOCATIONGRANULARITY
THREADS = 16  # reads under way at once for one patch
CACHED_S = 0.3e-3  # a read that took less came from memory: threads would only slow down the next
_own = threading.local()


class Fetch(Protocol):
    """Gets bytes of one open file. They are good until this thread asks for others."""

    def get(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bytes as uint8, where in them each range [start, stop) of the file begins). Raises OSError, EOFError."""

    def piece(self, start: int, stop: int) -> bytes:
        """One short range. Raises OSError, EOFError."""


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

    def piece(self, start: int, stop: int) -> bytes:
        if self._map.size() < len(self._data):
            raise EOFError
        return self._map[start:stop]


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

    def piece(self, start: int, stop: int) -> bytes:
        found = os.pread(self.descriptor, stop - start, start)
        while start + len(found) < stop:
            more = os.pread(self.descriptor, stop - start - len(found), start + len(found))
            if not more:
                raise EOFError
            found += more
        return found

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


def forget(path: Path) -> None:
    """Put a file out of the page cache, as far as the kernel lets a user do that."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
