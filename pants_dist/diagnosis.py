"""Why a run is slower than it need be, in words with a cure: pure, from lines of metrics.jsonl as gauges.py fills them.

What is looked at are the last lines of the last attempt, without its first, in which readers start. Findings come with the
share of time that they cost, the costliest first; none means that the devices work all the time. The limits are below; on
recordings of faults that were really injected (benchmarks/slowness.py) they tell the kinds apart.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Line = dict[str, Any]

RECENT = 20  # lines that say how input and ranks are
LONG = 120  # lines over which validation and checkpoints, which are rare, are counted; and drift
WAITS = 0.15  # share of time spent waiting for patches from which on input is what holds the run up
ASLEEP, QUEUED = 0.5, 0.5  # shares of the readers' time from which on that is what they do
BUSY = 0.6  # share of time that readers read, from which on more of them would help
FULL, SPILLS = 0.9, 2  # share of the object store in use; lines in which some of it lies on the disk
APART = 1.4  # how many times as long as others a rank or a node takes, to be slow
MOSTLY = 0.6  # share of lines in which it must be the same one
VALIDATING, SAVING = 0.3, 0.15  # shares of the time from which on these are much
WORTH = 0.1  # share of the time that a finding must cost to be named
DRIFT = 1.3  # a step's own work at the end of a window against its beginning
ALWAYS = ("damaged cases", "small object store")  # whatever they cost now
FEWEST = 4  # lines that say anything


@dataclass(frozen=True)
class Finding:
    """One kind of slowness: how much of the time it costs, what was seen, and what to do."""

    kind: str
    cost: float
    words: str
    cure: str


def diagnose(rows: Sequence[Line]) -> list[Finding]:
    """What slows a run down, from rows of its metrics in order of steps; [] where nothing does, or nothing is known yet."""
    lines = _of_last_attempt(rows)
    if len(lines) < FEWEST:
        return []
    recent = lines[-RECENT:]
    found = [one for look in (_input, _slow_one, _damaged) if (one := look(recent))]
    found += [one for look in (_validation, _saving, _drift) if (one := look(lines))]
    worth = [one for one in found if one.cost >= WORTH or one.kind in ALWAYS]
    return sorted(worth, key=lambda one: -one.cost)


def _of_last_attempt(rows: Sequence[Line]) -> list[Line]:
    lines = [row for row in rows[-LONG:] if row["attempt"] == rows[-1]["attempt"] and "time/line_s" in row]
    begins = len(lines) < len(rows[-LONG:]) or len(rows) <= LONG
    return lines[1:] if begins else lines


def _middle(lines: Iterable[Line], name: str) -> float:
    """Median of a metric over lines; 0 where none has it."""
    return median([line[name] for line in lines if name in line] or [0.0])


def _share(lines: Sequence[Line], name: str) -> float:
    return sum(line.get(name, 0.0) for line in lines) / max(sum(line["time/line_s"] for line in lines), 1e-9)


def _in_time(lines: Sequence[Line], name: str) -> float:
    """Mean of a share of time, over the time: reads that hang show in few lines, but these are long."""
    whole = sum(line["time/line_s"] for line in lines)
    return sum(line.get(name, 0.0) * line["time/line_s"] for line in lines) / max(whole, 1e-9)


def _usual(lines: Sequence[Line], name: str) -> Any:
    """The value that stands in most lines, if it stands in MOSTLY of them, else None."""
    (value, times), *_ = Counter(line.get(name) for line in lines).most_common(1)
    return value if times >= MOSTLY * len(lines) else None


def _input(lines: Sequence[Line]) -> Finding | None:
    """Why patches come late: the first reason that fits."""
    wait = _in_time(lines, "loader/wait_fraction")
    late = sum(line.get("loader/late_reads", 0.0) for line in lines)
    asleep = 1 - _middle(lines, "loader/read_cpu") - _middle(lines, "loader/read_queued")
    spilled = sum(line.get("ray/spilled_bytes", 0.0) > 0 for line in lines)
    if wait < WAITS and spilled < SPILLS:
        return None
    who, read = _who_waits(lines, wait), f"a read takes {_middle(lines, 'loader/read_s_median'):.3g} s (median)"
    if spilled >= SPILLS or _middle(lines, "ray/store_fraction") >= FULL:
        gb = max(line.get("ray/spilled_bytes", 0.0) for line in lines) / 1e9
        return Finding("small object store", wait, f"small object store: {who}; it is full, and {gb:.3g} GB of it went to disk",
                       "lower loader.ahead, or give the job more shared memory (/dev/shm)")  # fmt: skip
    if late and _middle(lines, "loader/wait_fraction") < wait / 2:
        return Finding("hanging reads", wait, f"hanging reads: {who}; {late:.0f} came so late that others read them again",
                       "look for stopped readers and a disk that stalls on that node")  # fmt: skip
    if _middle(lines, "loader/read_queued") >= QUEUED:
        share = 100 * _middle(lines, "loader/read_queued")
        return Finding("starved readers", wait, f"starved readers: {who}; readers want CPUs for {share:.0f} % of their time",
                       "ask for more CPUs (--cpus-per-task), or lower loader.readers or train.ranks")  # fmt: skip
    if asleep >= ASLEEP:
        told = any("loader/read_queued" in line for line in lines)
        what = "the disk" if told else "the disk, or for a CPU, which this kernel does not tell apart"
        return Finding("slow disk", wait, f"slow disk: {who}; {read}, {100 * asleep:.0f} % of it waiting for {what}",
                       "copy cases to the node's own disk (data.stage), or raise loader.readers and loader.ahead")  # fmt: skip
    busy = _middle(lines, "loader/readers_busy")
    if busy >= BUSY:
        return Finding("too few readers", wait, f"too few readers: {who}; readers compute for {100 * busy:.0f} % of the time",
                       "raise loader.readers, or lower data.max_window_mb")  # fmt: skip
    return Finding("slow input", wait, f"slow input: {who}; {read}, and readers are busy for {100 * busy:.0f} % of the time",
                   "raise loader.ahead and loader.readers; try pants-dist bench loader")  # fmt: skip


def _who_waits(lines: Sequence[Line], wait: float) -> str:
    """Who waits for how much of the time: one node, one rank or all."""
    words = f"waits for patches for {100 * wait:.0f} % of the time"
    node, rank = _usual(lines, "nodes/waits_most"), _usual(lines, "loader/waits_most")
    if node and _in_time(lines, "nodes/wait_median") < _in_time(lines, "nodes/wait_max") / 2:
        return f"node {node} {words}, others do not"
    if rank is not None and _in_time(lines, "loader/wait_fraction_median") < wait / 2:
        return f"rank {rank} on {_usual(lines, 'loader/waits_most_node')} {words}, others do not"
    return words.replace("waits", "training waits")


def _slow_one(lines: Sequence[Line]) -> Finding | None:
    """One node, or else one rank, that all others wait for in each step."""
    for kind, group, whom in (("slow node", "nodes", "nodes/slowest"), ("slow rank", "ranks", "ranks/slowest")):
        slow = [line for line in lines if line.get(f"{group}/own_s_max", 0) > APART * line.get(f"{group}/own_s_median", 0)]
        if len(slow) < MOSTLY * len(lines) or (name := _usual(slow, whom)) is None:
            continue
        longest, usual = (_middle(slow, f"{group}/own_s_{which}") for which in ("max", "median"))
        where = f"node {name}" if kind == "slow node" else f"rank {name} on {_usual(slow, 'ranks/slowest_node')}"
        cost = min((longest - usual) * _steps_a_line(lines) / max(_middle(slow, "time/line_s"), 1e-9), 1.0)
        words = f"{kind}: {where} needs {longest:.3g} s a step for its patches, others {usual:.3g} s"
        cure = "see what else runs there and how hot its devices are; leave the node out if need be (--sbatch.exclude=NODE)"
        return Finding(kind, cost, words, cure)
    return None


def _steps_a_line(lines: Sequence[Line]) -> float:
    return max((lines[-1]["step"] - lines[0]["step"]) / max(len(lines) - 1, 1), 1)


def _damaged(lines: Sequence[Line]) -> Finding | None:
    count = lines[-1].get("loader/skipped", 0.0) - lines[0].get("loader/skipped", 0.0)
    if count <= 0:
        return None
    return Finding("damaged cases", 0.0, f"damaged cases: met {count:.0f} times in {len(lines)} lines, and passed over",
                   "pants-dist verify STORE names them; convert them again")  # fmt: skip


def _validation(lines: Sequence[Line]) -> Finding | None:
    share = _share(lines, "time/validation_s")
    if share < VALIDATING:
        return None
    return Finding("much validation", share, f"much validation: it takes {100 * share:.0f} % of the time",
                   "raise validation.every, or lower validation.cases or validation.overlap")  # fmt: skip


def _saving(lines: Sequence[Line]) -> Finding | None:
    share = _share(lines, "time/checkpoint_s")
    if share < SAVING:
        return None
    return Finding("slow checkpoints", share, f"slow checkpoints: they take {100 * share:.0f} % of the time",
                   "raise train.checkpoint_minutes, or keep runs on a faster disk")  # fmt: skip


def _drift(lines: Sequence[Line]) -> Finding | None:
    """All ranks' own work takes longer and longer."""
    quarter = len(lines) // 4
    if quarter < FEWEST:
        return None
    first, last = ([line.get("ranks/own_s_median", 0.0) for line in part] for part in (lines[:quarter], lines[-quarter:]))
    before, now = median(first), median(last)
    if not before or now < DRIFT * before or sorted(first)[-len(first) // 4] > sorted(last)[len(last) // 4]:
        return None
    hot = _middle(lines[-quarter:], "gpu/celsius_max")
    cost = (now - before) * _steps_a_line(lines) / max(_middle(lines[-quarter:], "time/line_s"), 1e-9)
    seen = f"slower and slower: a step's own work takes {now:.3g} s, {now / before:.1f} times what it took"
    return Finding("slower and slower", min(cost, 1.0), seen + (f"; the hottest GPU has {hot:.0f} degrees" if hot else ""),
                   "look for heat and power limits (nvidia-smi -q -d PERFORMANCE) and for others on these nodes")  # fmt: skip
