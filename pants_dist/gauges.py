"""What each rank measures of its input, its work and its node, and what a line of metrics.jsonl says of all of them.

A line says the same number of things of 2 ranks and of 256: medians, extremes, and who has them. RUN/ranks.json has what
each rank measured last. diagnosis.py reads the lines.
"""

import contextlib
import json
import math
import os
import socket
import threading
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np

from pants_dist import cluster
from pants_dist.devices import gpu
from pants_dist.heartbeat import seconds_in
from pants_dist.loader import Loader, Read
from pants_dist.tracking import write_atomically

LOOK_S = 5.0  # between looks at the node
UNKNOWN = math.nan


class Measured(NamedTuple):
    """Of one rank, since the line before; seconds are sums over that time unless said otherwise. NaN is not known."""

    loss: float
    skipped: float  # damaged cases passed over, since the start
    waited_s: float  # for patches
    own_s: float  # its patches through the network, on its own device: without what ranks do together
    micro_batches: float
    patches: float
    bytes: float  # of voxels
    read_s: float  # of its readers, of which:
    read_cpu_s: float  # on a CPU
    read_queued_s: float  # in the queue for one; the rest asleep, waiting for the disk
    read_median_s: float  # of one micro-batch
    read_p95_s: float
    late: float  # reads that were asked of another reader as well
    readers: float
    validation_s: float
    checkpoint_s: float
    store_bytes: float  # object store of its node: in use; said by the first rank of each node
    store_limit_bytes: float
    spilled_bytes: float  # of it on the disk, for want of room
    gpu_use: float
    gpu_bytes: float
    gpu_limit_bytes: float
    gpu_celsius: float
    gpu_mhz: float


class Gauges:
    """What this rank measures. `node` is its name for it; where Ray reads, its first rank looks at the object store."""

    def __init__(self, loader: Loader, kind: str) -> None:
        self.loader = loader
        self._before = dict.fromkeys(("waited_s", "late", "validation", "checkpoint"), 0.0)
        self._store = cluster.ObjectStore(UNKNOWN, UNKNOWN, UNKNOWN)
        self._ended = threading.Event()
        if kind == "ray" and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            threading.Thread(target=self._look, name="gauges", daemon=True).start()

    def measured(self, loss: float, own_s: float) -> Measured:
        """Since the last call; `loss` of this step, `own_s` as in Measured."""
        reads, self.loader.reads = self.loader.reads, []
        waited_s, late = self._since("waited_s", self.loader.waited_s), self._since("late", self.loader.source.asked_again)
        phases = [self._since(phase, seconds_in(phase)) for phase in ("validation", "checkpoint")]
        of_loader = [loss, self.loader.skipped, waited_s, own_s, *_of_reads(reads), late, len(self.loader.source.readers)]
        return Measured._make([*of_loader, *phases, *self._store, *gpu()])

    def stop(self) -> None:
        self._ended.set()

    def _since(self, what: str, now: float) -> float:
        before, self._before[what] = self._before[what], now
        return now - before

    def _look(self) -> None:
        """In a thread: a Ray that does not answer must not hold up a step."""
        while True:
            with contextlib.suppress(Exception):  # Ray's own, of many kinds: it is not up yet, or is going
                self._store = cluster.object_store()
            if self._ended.wait(LOOK_S):
                return


def _of_reads(reads: list[Read]) -> tuple[float, ...]:
    """micro_batches to read_p95_s of Measured."""
    if not reads:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, UNKNOWN, UNKNOWN
    seconds = np.array([read.spent for read in reads])
    latencies = np.percentile(seconds[:, 0], (50, 95))
    return len(reads), sum(read.patches for read in reads), sum(read.bytes for read in reads), *seconds.sum(0), *latencies


def node_name() -> str:
    """Of this node, as SLURM calls it, else as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def in_a_line(ranks: list[Measured], nodes: list[str], elapsed_s: float, steps: int) -> dict[str, Any]:
    """What a line says of all ranks: their numbers, the node of each, since when, and how many steps that is.

    Of reading the shares are those of the rank that waits most; the times are the median and the worst of all ranks.
    """
    wait = [min(rank.waited_s / elapsed_s, 1.0) for rank in ranks]
    own = [rank.own_s / steps for rank in ranks]
    last, slowest = _most(wait), _most(own)
    read = ranks[last]
    line: dict[str, Any] = {
        "loader/wait_fraction": wait[last], "loader/wait_fraction_median": median_low(wait),
        "loader/waits_most": last, "loader/waits_most_node": nodes[last],
        "loader/patches_per_s": sum(rank.patches for rank in ranks) / elapsed_s,
        "loader/bytes_per_s": sum(rank.bytes for rank in ranks) / elapsed_s,
        "loader/read_s_median": _median([rank.read_median_s for rank in ranks]),
        "loader/read_s_p95": _largest([rank.read_p95_s for rank in ranks]),
        "loader/read_cpu": read.read_cpu_s / read.read_s if read.read_s else UNKNOWN,
        "loader/read_queued": read.read_queued_s / read.read_s if read.read_s else UNKNOWN,
        "loader/readers_busy": read.read_s / elapsed_s / read.readers,
        "loader/late_reads": sum(rank.late for rank in ranks), "loader/skipped": sum(rank.skipped for rank in ranks),
        "ranks/own_s_median": median_low(own), "ranks/own_s_max": own[slowest], "ranks/slowest": slowest,
        "ranks/slowest_node": nodes[slowest],
        "time/line_s": elapsed_s, "time/validation_s": max(rank.validation_s for rank in ranks),
        "time/checkpoint_s": max(rank.checkpoint_s for rank in ranks),
    }  # fmt: skip
    line |= _of_nodes(wait, own, nodes) | _of_stores(ranks) | _of_gpus(ranks)
    return {name: value for name, value in line.items() if value == value}


def _of_nodes(wait: list[float], own: list[float], nodes: list[str]) -> dict[str, Any]:
    """A node is as slow as the fastest of its ranks; nothing where there is one node."""
    names = list(dict.fromkeys(nodes))
    if len(names) < 2:
        return {}
    of = {name: [rank for rank, node in enumerate(nodes) if node == name] for name in names}
    waits, owns = ([min(values[rank] for rank in of[name]) for name in names] for values in (wait, own))
    return {
        "nodes/wait_max": max(waits), "nodes/wait_median": median_low(waits), "nodes/waits_most": names[_most(waits)],
        "nodes/own_s_max": max(owns), "nodes/own_s_median": median_low(owns), "nodes/slowest": names[_most(owns)],
    }  # fmt: skip


def _of_stores(ranks: list[Measured]) -> dict[str, float]:
    known = [rank for rank in ranks if rank.store_limit_bytes > 0]
    return {
        "ray/store_bytes": sum(rank.store_bytes for rank in known),
        "ray/store_limit_bytes": sum(rank.store_limit_bytes for rank in known),
        "ray/store_fraction": max(rank.store_bytes / rank.store_limit_bytes for rank in known),
        "ray/spilled_bytes": sum(rank.spilled_bytes for rank in known),
    } if known else {}  # fmt: skip


def _of_gpus(ranks: list[Measured]) -> dict[str, float]:
    use = [rank.gpu_use for rank in ranks]
    return {
        "gpu/use_median": _median(use), "gpu/use_min": -_largest([-share for share in use]),
        "gpu/memory_bytes": _largest([rank.gpu_bytes for rank in ranks]),
        "gpu/memory_fraction": _largest([rank.gpu_bytes / rank.gpu_limit_bytes for rank in ranks]),
        "gpu/celsius_max": _largest([rank.gpu_celsius for rank in ranks]),
        "gpu/mhz_min": -_largest([-rank.gpu_mhz for rank in ranks]),
    }  # fmt: skip


def _most(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _largest(values: list[float]) -> float:
    return max((value for value in values if value == value), default=UNKNOWN)


def _median(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return median_low(known) if known else UNKNOWN


def keep_ranks(run: Path, step: int, ranks: list[Measured], nodes: list[str], elapsed_s: float, steps: int) -> None:
    """Replace RUN/ranks.json: the step, and of each rank its node and what matters most of what it measured last."""
    rows = [
        {
            "rank": number, "node": nodes[number], "wait_fraction": min(rank.waited_s / elapsed_s, 1.0),
            "own_s": rank.own_s / steps, "read_s_median": rank.read_median_s, "read_s_p95": rank.read_p95_s,
            "gpu_use": rank.gpu_use, "gpu_bytes": rank.gpu_bytes,
        }
        for number, rank in enumerate(ranks)
    ]  # fmt: skip
    known = [{name: value for name, value in row.items() if value == value} for row in rows]
    write_atomically(run / "ranks.json", json.dumps({"step": step, "ranks": known}))
