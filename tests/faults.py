"""Small runs that are really slowed down, each by one fault. `python tests/faults.py [KIND ...]` records them anew.

A recording is what such a run wrote into metrics.jsonl, rounded, in tests/slowness/KIND.jsonl. It wants a machine that
does nothing else: what else runs is a fault of its own.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from small import make_store

from pants_dist import cluster, config
from pants_dist.tracking import read_metrics

RECORDINGS = Path(__file__).parent / "slowness"
KEPT = ("step", "attempt", "loader/", "ranks/", "nodes/", "ray/", "time/")
RANK = """
import sys
from pathlib import Path
from pants_dist import config, train
run = Path(sys.argv[1])
train.train(config.load(run / "config.yaml", []), run)
"""
SLOW_READS = "import os, time\nread = os.preadv\nos.preadv = lambda *given: (time.sleep({s}), read(*given))[1]\n"
SLOW_SYNC = "import os, time\nsync = os.fsync\nos.fsync = lambda file: (time.sleep({s}), sync(file))[1]\n"
QUICK = [
    "--model.channels=[4, 8, 16]", "--loader.kind=local", "--train.log_every=1", "--train.steps=20",
]  # fmt: skip
HEAVY = [
    "--data.patch_zyx=[16, 16, 16]", "--data.spacing_mm_zyx=[32.0, 16.0, 16.0]", "--train.batch=4",
    "--model.channels=[1, 1, 1]",
]  # fmt: skip
WORK = ["--model.channels=[8, 16, 32]"]
LARGE = ["--data.patch_zyx=[32, 48, 48]", "--data.spacing_mm_zyx=[3.9, 1.9, 1.9]", "--train.micro_batch=1", "--train.batch=4"]

Meddle = Callable[[list[subprocess.Popen]], None]  # called again and again while the ranks run


def slowed(
    folder: Path, *more: str, ranks: int = 1, a_node: int = 0, environment: dict[str, str] | None = None,
    startup: str = "", meddle: Meddle | None = None, damage: bool = False, cases: int = 6, edge: int = 36,
) -> list[dict[str, Any]]:
    """Rows of a run in `folder` with settings `more`, on so many ranks, `a_node` of them on each node that they are told of.

    `startup` is what every Python process of it does first.
    """
    store = make_store(folder / "store", cases, edge=edge)
    if damage:
        spoil(store)
    given = [f"--data.store={store}", f"--train.ranks={ranks}", f"--train.batch={ranks}", "--loader.readers=1", *QUICK, *more]
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.dump(config.load("debug", given)))
    (folder / "sitecustomize.py").write_text(startup)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    a_node = a_node or ranks
    processes = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank % a_node, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": a_node, "MASTER_PORT": port}
        own |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "here", "PYTHONPATH": folder, "OMP_NUM_THREADS": 1}
        own |= {"SLURMD_NODENAME": f"node{rank // a_node}", "GROUP_RANK": rank // a_node}
        said = os.environ | (environment or {}) | {name: str(value) for name, value in own.items()}
        with open(folder / "log", "a") as log:
            processes.append(subprocess.Popen([sys.executable, "-c", RANK, str(run)], env=said, stdout=log, stderr=log))
    try:
        while any(process.poll() is None for process in processes):
            if meddle and (run / "metrics.jsonl").exists():
                meddle(processes)
            else:
                time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), (folder / "log").read_text()
    return read_metrics(run)


def spoil(store: Path) -> None:
    """Overwrite the middle of two cases' voxels."""
    for case in sorted((store / "cases").iterdir())[:2]:
        with open(case, "r+b") as file:
            file.seek(case.stat().st_size // 3)
            file.write(b"spoilt" * 2000)


def held(pids: Callable[[list[subprocess.Popen]], list[int]], stopped_s: float, going_s: float) -> Meddle:
    """These processes are stopped and let go in turn."""

    def meddle(processes: list[subprocess.Popen]) -> None:
        for number, seconds in ((signal.SIGSTOP, stopped_s), (signal.SIGCONT, going_s)):
            for pid in pids(processes):
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            time.sleep(seconds)

    return meddle


def ranks_of(*numbers: int) -> Callable[[list[subprocess.Popen]], list[int]]:
    return lambda processes: [processes[number].pid for number in numbers]


def readers_of(processes: list[subprocess.Popen]) -> list[int]:
    """Reading processes of rank 0, which are not Ray's."""
    return [child.pid for child in psutil.Process(processes[0].pid).children(recursive=True)]


def ray_reader(_: list[subprocess.Popen]) -> list[int]:
    """One of Ray's reading processes below us."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended just now
            found += [process.pid] if process.cmdline()[0].startswith("ray::Reader") else []
    return sorted(found)[:1]


@contextlib.contextmanager
def burning(core: int, count: int) -> Iterator[None]:
    """So many processes that compute on one core, and stop with the block."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for burner in burners:
            os.sched_setaffinity(burner.pid, {core})
        yield
    finally:
        for burner in burners:
            burner.kill()


def slow_disk(folder: Path) -> list[dict[str, Any]]:
    """A file system whose every read takes 0.3 s."""
    return slowed(folder, startup=SLOW_READS.format(s=0.3))


def starved_readers(folder: Path) -> list[dict[str, Any]]:
    """Readers that share a core with four processes that compute."""
    last = max(os.sched_getaffinity(0))

    def meddle(processes: list[subprocess.Popen]) -> None:
        for pid in readers_of(processes):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(pid, {last})
        time.sleep(0.05)

    with burning(last, 4):
        return slowed(folder, *HEAVY, meddle=meddle, cases=4, edge=220)


def too_few_readers(folder: Path) -> list[dict[str, Any]]:
    """One reader of large patches for a network of hardly any work."""
    return slowed(folder, *HEAVY, cases=4, edge=220)


def small_object_store(folder: Path) -> list[dict[str, Any]]:
    """Ray with room for 80 MiB, where 200 are under way: the rank stands still until they are there, as in a long validation.

    At the end, which is left out, they are fewer.
    """
    with cluster.started(1, 80 << 20) as environment:
        spilled = Path(environment[cluster.FOLDER_VARIABLE])
        waits = [True]

        def meddle(processes: list[subprocess.Popen]) -> None:
            if waits[0]:
                held(ranks_of(0), 1.0, 0.0)(processes)
                waits[0] = not any(spilled.glob("session_2*/ray_spilled_objects_*/*"))
            time.sleep(0.01)

        more = "--loader.kind=ray", "--loader.ahead=120", "--train.steps=30", "--train.batch=8"
        return slowed(folder, *LARGE, *more, environment=environment, meddle=meddle, edge=100)[:-15]


def hanging_reads(folder: Path) -> list[dict[str, Any]]:
    """Of two readers one stands still for most of the time."""
    with cluster.started(2, 200 << 20) as environment:
        return slowed(folder, "--loader.kind=ray", "--loader.readers=2", "--loader.ahead=2", environment=environment,
                      meddle=held(ray_reader, 4.0, 0.3))  # fmt: skip


def slow_rank(folder: Path) -> list[dict[str, Any]]:
    """Rank 1 of three gets its core for a quarter of the time."""
    return slowed(folder, *WORK, ranks=3, meddle=held(ranks_of(1), 0.03, 0.01))


def slow_node(folder: Path) -> list[dict[str, Any]]:
    """Two of four ranks, on a node of their own, get their cores for a quarter of the time."""
    return slowed(folder, *WORK, ranks=4, a_node=2, meddle=held(ranks_of(2, 3), 0.03, 0.01))


def much_validation(folder: Path) -> list[dict[str, Any]]:
    """Cases are scored after every fourth step."""
    return slowed(folder, "--validation.every=4", "--validation.cases=2")


def slow_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """A file system on which whatever is to last takes 0.3 s, and a checkpoint at every step."""
    return slowed(folder, "--train.checkpoint_minutes=1e-5", startup=SLOW_SYNC.format(s=0.3))


def slower_and_slower(folder: Path) -> list[dict[str, Any]]:
    """The rank gets its core for less and less of the time, as a processor that grows hot."""
    share = [0.0]

    def meddle(processes: list[subprocess.Popen]) -> None:
        share[0] = min(share[0] + 0.004, 0.85)
        held(ranks_of(0), 0.03 * share[0], 0.03 * (1 - share[0]))(processes)

    return slowed(folder, *WORK, "--train.steps=36", meddle=meddle)


def damaged_cases(folder: Path) -> list[dict[str, Any]]:
    """Two of six cases have wrong bytes, and are passed over."""
    return slowed(folder, "--data.on_damage=skip", "--train.batch=4", damage=True)


def healthy(folder: Path) -> list[dict[str, Any]]:
    """Nothing is wrong."""
    return slowed(folder)


FAULTS = {
    function.__name__.replace("_", " "): function
    for function in (
        healthy, slow_disk, starved_readers, too_few_readers, small_object_store, hanging_reads, slow_rank, slow_node,
        much_validation, slow_checkpoints, slower_and_slower, damaged_cases,
    )
}  # fmt: skip


def rounded(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def record(kind: str) -> None:
    """Write tests/slowness/KIND.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        rows = FAULTS[kind](Path(folder))
    kept = [{name: rounded(value) for name, value in row.items() if name.startswith(KEPT)} for row in rows]
    RECORDINGS.mkdir(exist_ok=True)
    path = RECORDINGS / f"{kind.replace(' ', '_')}.jsonl"
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept))


if __name__ == "__main__":
    from pants_dist.diagnosis import diagnose

    for kind in sys.argv[1:] or FAULTS:
        record(kind)
        path = RECORDINGS / f"{kind.replace(' ', '_')}.jsonl"
        found = diagnose([json.loads(line) for line in path.read_text().splitlines()])
        print(f"{kind}:", *(f"{one.cost:.2f} {one.words}; {one.cure}" for one in found), sep="\n  ", flush=True)
