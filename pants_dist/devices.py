"""What a rank's device does: how long it works, how busy, full and hot a GPU is. Without a GPU a clock does."""

import contextlib
import math
import time
from typing import Any, NamedTuple

import torch


class Stopwatch:
    """`with stopwatch:` adds up the time of what is done inside on this process's device, and holds nothing up."""

    def __init__(self) -> None:
        self._seconds, self._begun = 0.0, 0.0
        self._events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._begun = time.perf_counter()
        if torch.cuda.is_initialized():
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_initialized():
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._begun

    def taken_s(self) -> float:
        """Seconds since it was last asked. On a GPU this waits for what was begun."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        taken, self._seconds = self._seconds, 0.0
        self._events.clear()
        return taken


class Gpu(NamedTuple):
    """Of this process's GPU: share of the time that it computes, memory in use by all processes and in all, degrees C, MHz.

    NaN is not known, as without a GPU, or where its driver does not say.
    """

    use: float = math.nan
    memory_bytes: float = math.nan
    memory_limit_bytes: float = math.nan
    temperature_c: float = math.nan
    clock_mhz: float = math.nan


def gpu() -> Gpu:
    """How this process's GPU is at this moment."""
    if not torch.cuda.is_initialized():
        return Gpu()
    free, limit = torch.cuda.mem_get_info()
    found = Gpu(memory_bytes=float(limit - free), memory_limit_bytes=float(limit))
    with contextlib.suppress(Exception):  # of any kind: a driver that does not say is no reason to stop
        use, degrees, clock = torch.cuda.utilization(), torch.cuda.temperature(), torch.cuda.clock_rate()
        found = found._replace(use=use / 100, temperature_c=float(degrees), clock_mhz=float(clock))
    return found
