"""What this machine has and lacks, each lack with its cure. `look` asks the machine, `judge` is pure."""

import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pants_dist.cluster import memory_limit
from pants_dist.errors import UserError
from pants_dist.preflight import quota_lines, refusal
from pants_dist.site import OWN_FILE, Site, load_site

PACKAGES = ("torch", "lightning", "monai", "ray", "zarr", "numcodecs", "wandb")
SLURM = ("sbatch", "squeue", "scontrol", "sacct", "scancel")
CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
ROCM = Path("/dev/kfd")  # there where AMD's driver is
OLDEST_PYTHON = (3, 11)
FEWEST_OPEN_FILES = 4096
GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """Facts. Sizes are bytes; None: not known, or not there."""

    python: tuple[int, int, int]
    cores: int  # that this process may use
    cpu_quota: float | None  # cores' worth of time that the control group allows
    memory: int
    memory_limit: int | None  # of the control group
    shared_memory_free: int | None
    folder: Path
    disk_free: int
    files_free: int | None  # None where the file system does not count them
    packages: dict[str, str | None] = field(default_factory=dict)  # name -> version
    gpus: tuple[str, ...] = ()  # as the driver names them
    torch_gpus: int = 0  # that torch can use
    commands: tuple[str, ...] = ()  # of SLURM's, those that are here
    open_files: int = -1  # the hard limit; -1: none
    quota: tuple[str, ...] = ("unknown",)  # in the words of the site's command
    site: str | None = None  # this user's file of what the cluster is like
    site_fault: str = ""  # what is wrong with it
    refusal: str = ""  # why SLURM would not take a job with its defaults


@dataclass(frozen=True)
class Finding:
    """One line: `level` is "ok", "note" (works, with less) or "missing" (nothing works without); a lack has a cure."""

    level: Literal["ok", "note", "missing"]
    what: str
    found: str
    cure: str = ""


def findings(folder: Path | None = None) -> list[Finding]:
    """What there is to say of this machine, looking at the disk that holds `folder` (None: the current one)."""
    return judge(look(folder or Path.cwd()))


def look(folder: Path) -> Machine:
    """Ask the machine. Nothing is changed; a question that it does not answer is None."""
    import psutil

    disk, gpus = os.statvfs(folder), _driver_gpus()
    return Machine(
        python=sys.version_info[:3],
        cores=len(os.sched_getaffinity(0)),
        cpu_quota=_cpu_quota(),
        memory=psutil.virtual_memory().total,
        memory_limit=memory_limit(),
        shared_memory_free=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        folder=folder,
        disk_free=disk.f_bavail * disk.f_frsize,
        files_free=disk.f_favail if disk.f_files else None,
        packages={name: _version(name) for name in PACKAGES},
        gpus=gpus,
        torch_gpus=_torch_gpus() if gpus or ROCM.exists() else 0,
        commands=tuple(name for name in SLURM if shutil.which(name)),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        **_of_the_site(folder),
    )


def _of_the_site(folder: Path) -> dict[str, Any]:
    """The cluster's file, what is wrong with it or SLURM has against it, and what is known of the quota."""
    try:
        site, fault = load_site(None), ""
    except UserError as error:
        site, fault = Site(), str(error)
    own = Path.home() / OWN_FILE
    found = {"site": str(own) if own.is_file() else None, "site_fault": fault, "quota": tuple(quota_lines(site, folder))}
    return found | {"refusal": refusal(site, folder) if shutil.which("sbatch") else ""}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_quota() -> float | None:
    quota, _, period = _first_line(CGROUP / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _first_line(path: Path) -> str:
    try:
        return path.read_text().split("\n")[0].strip()
    except OSError:
        return ""


def _driver_gpus() -> tuple[str, ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def _torch_gpus() -> int:
    if _version("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def judge(machine: Machine) -> list[Finding]:
    """Findings in the order in which they matter. Pure."""
    return [
        _python(machine), *_packages(machine), _cores(machine), _memory(machine), _shared_memory(machine),
        _open_files(machine), _disk(machine), _quota(machine), _gpus(machine), _slurm(machine), _cluster(machine),
    ]  # fmt: skip


def _python(machine: Machine) -> Finding:
    version, oldest = ".".join(map(str, machine.python)), ".".join(map(str, OLDEST_PYTHON))
    if machine.python[:2] < OLDEST_PYTHON:
        cure = f"install Python {oldest} or newer, then: make demo PYTHON=python{oldest}"
        return Finding("missing", "Python", version, cure)
    return Finding("ok", "Python", version)


def _packages(machine: Machine) -> list[Finding]:
    return [
        Finding("ok", name, version)
        if version
        else Finding("missing", name, "not installed", "pip install . in the folder of pants-dist")
        for name, version in machine.packages.items()
    ]


def _cores(machine: Machine) -> Finding:
    usable = min(machine.cores, machine.cpu_quota or machine.cores)
    limited = f" (of {machine.cores}, by the control group)" if usable < machine.cores else ""
    if usable < 2:
        cure = "ask for 2 cores or more; readers and training share this one"
        return Finding("note", "CPU cores", f"{usable:g}{limited}", cure)
    return Finding("ok", "CPU cores", f"{usable:g}{limited}")


def _memory(machine: Machine) -> Finding:
    usable = min(machine.memory, machine.memory_limit or machine.memory)
    limited = f" (of {_gib(machine.memory)}, by the control group)" if usable < machine.memory else ""
    if usable < 4 * GIB:
        cure = "ask for 4 GiB or more; whole cases are held in memory"
        return Finding("note", "memory", f"{_gib(usable)}{limited}", cure)
    return Finding("ok", "memory", f"{_gib(usable)}{limited}")


def _shared_memory(machine: Machine) -> Finding:
    cure = "use --loader.kind local, or give the container more (--shm-size 2g, or /dev/shm bound into it)"
    if machine.shared_memory_free is None:
        return Finding("note", "/dev/shm", "not there", cure)
    level: Literal["ok", "note"] = "ok" if machine.shared_memory_free >= GIB // 2 else "note"
    return Finding(level, "/dev/shm", f"{_gib(machine.shared_memory_free)} free", cure if level == "note" else "")


def _disk(machine: Machine) -> Finding:
    files = "" if machine.files_free is None else f", room for {machine.files_free:,} more files"
    found = f"{_gib(machine.disk_free)} free at {machine.folder}{files}"
    if machine.disk_free < 5 * GIB:
        return Finding("note", "disk", found, "free some, or work on another disk; the demo needs about 1 GiB")
    if machine.files_free is not None and machine.files_free < 10_000:
        return Finding("note", "disk", found, "remove files, or work on another disk; a store has one file a case")
    return Finding("ok", "disk", found)


def _gpus(machine: Machine) -> Finding:
    if machine.torch_gpus:
        return Finding("ok", "GPU", f"{machine.torch_gpus} x {machine.gpus[0] if machine.gpus else 'of unknown name'}")
    if machine.gpus:
        cure = "install a torch build with CUDA that fits the driver: pip install --force-reinstall torch"
        return Finding("note", "GPU", f"{len(machine.gpus)} x {machine.gpus[0]}, but torch cannot use it", cure)
    return Finding("note", "GPU", "none", "nothing to do for the demo and the tests; training at full size wants one")


def _slurm(machine: Machine) -> Finding:
    absent = [name for name in SLURM if name not in machine.commands]
    if not machine.commands:
        return Finding("note", "SLURM", "no commands here", "nothing to do on a machine of your own")
    if absent:
        return Finding("note", "SLURM", f"without {', '.join(absent)}", "ask the site, or work on its login node")
    if machine.refusal:
        return Finding("note", "SLURM", machine.refusal, "say in the cluster's file what jobs must ask for (docs/slurm.md)")
    return Finding("ok", "SLURM", ", ".join(machine.commands))


def _open_files(machine: Machine) -> Finding:
    if 0 <= machine.open_files < FEWEST_OPEN_FILES:
        cure = f"ask the site for a hard limit (ulimit -Hn) of {FEWEST_OPEN_FILES:,} or more; Ray and open cases need them"
        return Finding("note", "open files", f"at most {machine.open_files:,}", cure)
    return Finding("ok", "open files", "no limit" if machine.open_files < 0 else f"up to {machine.open_files:,}")


def _quota(machine: Machine) -> Finding:
    return Finding("ok", "quota", "; ".join(machine.quota[:3]))


def _cluster(machine: Machine) -> Finding:
    if machine.site_fault:
        return Finding("missing", "site file", machine.site_fault, "mend it; configs/cluster/example.yaml has every entry")
    if machine.site is None and machine.commands:
        cure = f"say once what the cluster is like: ~/{OWN_FILE} (docs/slurm.md)"
        return Finding("note", "site file", "none, so jobs ask for nothing but cores and memory", cure)
    return Finding("ok", "site file", machine.site or "none, and none needed")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
