"""The one door to Ray: start it for this machine, join it from a rank, size it, stop it.

Ray only reads. It gets as many reader slots as there are readers, an object store of an explicit size, a token of its
own and a temporary folder of its own; nothing of it outlives the process that started it.
"""

import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pants_dist.errors import UserError

READER_SLOT = "pants_reader"  # readers ask for this, not for CPUs: training processes would starve them otherwise
READER_BYTES, RAY_BYTES = 300 << 20, 300 << 20  # of a reading process, and of Ray's own together
FOLDER_VARIABLE = "PANTS_DIST_RAY_FOLDER"
SHARED_MEMORY = Path("/dev/shm")
PATIENCE_SECONDS = 10.0  # for an answer from another node
DYING_S = 5.0  # for what is left of a run whose launcher was killed
LONGEST_TEMPORARY = 40  # Ray's and multiprocessing's sockets lie below it, and a socket's path may have 107 bytes


@dataclass(frozen=True)
class Died:
    """In the place of a job's result: the worker that had it is gone."""

    reason: str


def usable_cores() -> int:
    """CPU cores that this process may use, which under a cpuset is fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes of memory that this process's control group, or one above it, allows; None where nothing is said."""
    limits = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base, name = (cgroups, "memory.max") if not controllers else (cgroups / "memory", "memory.limit_in_bytes")
            inside = base / path.lstrip("/")
            for folder in (inside, *inside.parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no number; inside a container the path is not ours
                    limits.append(int((folder / name).read_text()))
                if folder == base:
                    break
    return min(limits, default=None)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that a killed run leaves nothing behind (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def started(readers: int, object_store_bytes: int) -> Iterator[dict[str, str]]:
    """A Ray on this machine with slots for `readers`; yields the environment by which ranks join it.

    While it is there that is also our own environment. Raises UserError where /dev/shm is too small for the object store,
    or the memory limit for it and the readers.
    """
    check_memory(readers, object_store_bytes)
    with private_folder() as folder:
        environment = environment_of(folder, token())
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        import ray

        context: Any = ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=usable_cores(),
            num_gpus=0,
            resources={READER_SLOT: readers},
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
        try:
            yield environment | {"RAY_ADDRESS": context.address_info["gcs_address"]}
        finally:
            ray.shutdown()
            for name, value in before.items():  # what we start later is to look for no token in a folder that is gone
                os.environ.pop(name, None)
                os.environ.update({name: value} if value is not None else {})


def check_memory(readers: int, object_store_bytes: int) -> None:
    """Raises UserError where /dev/shm is too small for the object store, or the memory limit for it and the readers."""
    need, limit = object_store_bytes + readers * READER_BYTES + RAY_BYTES, memory_limit()
    if limit is not None and limit < need:
        raise UserError(
            f"memory: the control group allows {limit >> 20} MiB, Ray and {readers} readers need {need >> 20}; "
            "ask for more (--mem under SLURM), lower loader.ahead or loader.readers, or use --loader.kind local"
        )
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free < object_store_bytes:
        raise UserError(
            f"/dev/shm: {free >> 20} MiB free, the loader needs {object_store_bytes >> 20}; "
            "free some, lower loader.ahead, or use --loader.kind local"
        )


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder on this machine's own disk for one run. Whatever has a file in it open at the end is killed.

    Such folders of ours whose process is gone, after a kill that no janitor outlived, are swept first.
    """
    parent, prefix = Path(_short_folder()), f"pants-run-{os.getuid()}-"
    for leftover in parent.glob(f"{prefix}*"):
        if orphaned := claim(str(leftover)):
            with orphaned:
                sweep(leftover)
    folder = parent / f"{prefix}{secrets.token_hex(4)}"
    owned = claim(str(folder))
    assert owned
    with owned:
        folder.mkdir(mode=0o700)
        with _janitor(folder):
            yield folder


def claim(name: str) -> socket.socket | None:
    """Hold a name on this machine, until closed or until we die (Linux: an abstract socket); None: another holds it."""
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0pants-dist-{name}")
    except OSError:
        held.close()
        return None
    return held


@contextlib.contextmanager
def _janitor(folder: Path) -> Iterator[None]:
    """A process that outlives us, however we end, and then takes away what is left of our Ray and its folder."""
    command = [sys.executable, "-m", "pants_dist.cluster", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def sweep(folder: Path) -> None:
    """Kill every process that has a file of this private folder open, but the one we work for; remove the folder."""
    _let_die(folder)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getppid():
            with contextlib.suppress(OSError):  # it ended, or is not ours
                if any(os.readlink(file).startswith(f"{folder}/") for file in (entry / "fd").iterdir()):
                    os.kill(int(entry.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _let_die(folder: Path) -> None:
    """Wait for those whose temporary folder it is: once a launcher is killed, agent and ranks die, one after the other.

    To a rank that outlives its readers, or their folder, that would be an error of its own, after which no run goes on.
    """
    import psutil

    deadline = time.monotonic() + DYING_S
    while any((each.info["environ"] or {}).get("TMPDIR") == str(folder) for each in psutil.process_iter(["environ"])):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _short_folder() -> str:
    wanted = tempfile.gettempdir()
    return wanted if len(wanted) <= LONGEST_TEMPORARY else "/tmp"


@cache
def token() -> str:
    """The secret of this process's Rays: one, since Ray reads it once in a process and keeps it."""
    return secrets.token_hex(32)


def environment_of(folder: Path, token: str) -> dict[str, str]:
    """By which processes join the Ray that has this private folder and this token."""
    file = folder / "token"
    file.touch(mode=0o600)
    file.write_text(token)
    return {
        FOLDER_VARIABLE: str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def joined() -> None:
    """Connect this process to the Ray named by RAY_ADDRESS, once; readers that it makes end with it."""
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            raise UserError('RAY_ADDRESS is not set; start with "pants-dist train", or use --loader.kind local')
        # by its folder our node is told from others of the same Ray on this machine
        folder = os.environ.get(FOLDER_VARIABLE)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder)


class ObjectStore(NamedTuple):
    """Of this node's Ray: bytes in use, bytes it may hold, and bytes that lie on the disk for want of room."""

    bytes: float
    limit_bytes: float
    spilled_bytes: float


def object_store() -> ObjectStore:
    """How this node's object store is at this moment; Ray tells it every second or so. Raises what Ray raises."""
    import ray
    from ray._private.state import available_resources_per_node  # by node there is no public way without Ray's dashboard

    own, what = ray.get_runtime_context().get_node_id(), "object_store_memory"
    limit = next(node["Resources"][what] for node in ray.nodes() if node["NodeID"] == own)
    free = available_resources_per_node().get(own, {}).get(what, 0.0)
    spilled = 0
    for file in Path(os.environ.get(FOLDER_VARIABLE, "/nowhere")).glob(f"session_2*/ray_spilled_objects_{own}/*"):
        with contextlib.suppress(OSError):  # read back and removed
            spilled += file.stat().st_size
    return ObjectStore(limit - free, limit, float(spilled))


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself would try for ever. Other addresses are Ray's words."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), PATIENCE_SECONDS).close()


def _call(function: Callable[[Any], Any], job: Any) -> Any:
    return function(job)


def run_on_nodes(
    function: Callable[[Any], Any], jobs: Iterable[Any], address: str, most: int | None = None
) -> Generator[tuple[Any, Any], None, None]:
    """Yield (job, function(job)) as they are done on any node of the Ray at `address`, in any order.

    One job a CPU of the cluster at a time, `most` altogether; (job, Died) where its worker or its node died. `function`
    must be importable on every node and should not raise. Raises UserError where there is no Ray to join.
    """
    try:
        _knock(address)
        import ray

        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--ray {address}: no Ray cluster to join ({reason}); start one with "ray start --head"') from error
    try:
        task: Any = ray.remote(num_cpus=1, max_retries=0)(_call)  # a retry could meet the same lack of memory for ever
        waiting, running = iter(jobs), dict[Any, Any]()
        while True:
            room = min(most or sys.maxsize, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < room and (job := next(waiting, None)) is not None:
                running[task.remote(function, job)] = job
            if not running:
                return
            done, _ = ray.wait(list(running))
            for reference in done:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    result = Died(f"its worker on the Ray cluster died ({str(error).splitlines()[0]}); run the command again")
                yield running.pop(reference), result
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.stdin.read()  # ends when the process that started us does
    sweep(Path(sys.argv[1]))
