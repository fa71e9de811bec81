"""Where a thread's time goes: on a CPU, in the queue for one, or asleep, which in a reader means that the disk is waited for.

The kernel keeps the books (/proc/thread-self/schedstat, https://docs.kernel.org/scheduler/sched-stats.html). A kernel that
keeps none gives NaN for the queue.
"""

import math
import time
from typing import NamedTuple


class Spent(NamedTuple):
    """Seconds of a thread: all, those on a CPU, those in the queue for one."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    queued_s: float = 0.0

    def since(self, before: "Spent") -> "Spent":
        """The kernel books time in the queue at its end, so a wait that began earlier may come on top: it is cut off."""
        seconds, cpu_s, queued_s = (now - then for now, then in zip(self, before, strict=True))
        return Spent(seconds, cpu_s, min(queued_s, max(seconds - cpu_s, 0.0)) if queued_s == queued_s else queued_s)


def spent() -> Spent:
    """Of this thread, up to now; the differences count."""
    return Spent(time.perf_counter(), time.thread_time(), _queued_s())


def _queued_s() -> float:
    try:
        with open("/proc/thread-self/schedstat", "rb", 0) as file:
            return int(file.read(100).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return math.nan
