"""A real SLURM for tests: munge, slurmctld and a slurmd a node, on this machine, in a folder of their own.

The commands find it by SLURM_CONF. Every daemon is ended by its own pid, and every process that a job left with it.
Nothing outside the folder is written; the settings that matter are explained in docs/slurm.md.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import psutil
from small import comm

SLOWER = float(os.environ.get("SLOWER", 1))  # than a machine that does nothing else: tests wait so many times longer
NEEDS = ("munged", "slurmctld", "slurmd", "sbatch")
CLAIMS: list[ExitStack] = []  # names of ports, ours until this process ends
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MaxArraySize=20
SlurmdTimeout=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,preempt_send_user_signal
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 RealMemory=16000
PartitionName=normal Nodes=n[1-3] Default=YES PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n[1-3] PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """Nodes n1, n2, n3; partitions "normal" and "urgent", which preempts the other. `call` runs a command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str | Path, cwd: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words], env=self.environment, cwd=cwd, capture_output=True, text=True,
            timeout=SLOWER * timeout,
        )

    def node(self, name: str, what: str) -> str:
        """A field like State of `scontrol show node`."""
        said = self.call("scontrol", "show", "node", name).stdout
        return (re.search(rf"\b{what}=(\S*)", said) or ["", ""])[1]

    def job(self, job_id: str, what: str) -> str:
        """A field like JobState of `scontrol show job`; "" once SLURM has forgotten the job."""
        said = self.call("scontrol", "show", "job", job_id).stdout
        return (re.search(rf"\b{what}=(\S*)", said) or ["", ""])[1]

    def told(self, job_id: str, log: Path) -> str:
        """All that may say why a job does not go on."""
        said = [self.call("scontrol", "show", *words).stdout for words in (("job", job_id), ("node",))]
        return "\n".join([*said, *(log.read_text().splitlines()[-60:] if log.exists() else [])])

    def ended(self, job_id: str, seconds: float = 120) -> str:
        """Wait for the job's end; returns its last state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "")
        return until(lambda: (state := self.job(job_id, "JobState")) in over and (state or "FORGOTTEN"), seconds)

    def start_node(self, name: str) -> None:
        subprocess.run(["slurmd", "-N", name], env=self.environment, check=True, timeout=30)

    def left_by(self, *jobs: str) -> list[int]:
        """Processes of these jobs that are still there, wherever they went."""
        words = {f"SLURM_JOB_ID={job}" for job in jobs}
        return [pid for pid, said in self._processes() if words & said]

    def _processes(self) -> Iterator[tuple[int, set[str]]]:
        """Of this cluster's jobs: another one on this machine numbers jobs and nodes alike."""
        ours = f"SLURM_CONF={self.folder}/slurm.conf"
        return ((pid, words) for pid, words in processes() if ours in words and pid != os.getpid())

    def sweep(self) -> None:
        """Kill what its jobs left."""
        for pid, _ in self._processes():
            kill(pid)

    def lose_node(self, name: str) -> None:
        """Kill its slurmd and all that runs below it, and tell the controller at once.

        First those that would still report how a job ended: a node that loses its power says nothing.
        """
        below = [pid for pid, words in self._processes() if f"SLURMD_NODENAME={name}" in words]
        reporting = {pid for job in below for pid in ancestors(job) if comm(pid) == "slurmstepd"}
        for pid in (int((self.folder / f"{name}.pid").read_text()), *reporting, *below):
            kill(pid)
        self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")


@contextmanager
def started(
    folder: Path, more: str = "", accounting: Callable[[Cluster], AbstractContextManager[None]] = nullcontext
) -> Iterator[Cluster]:
    """The cluster, with all nodes idle. What it and its jobs leave is killed at the end.

    `more` are lines for slurm.conf; `accounting` is there before slurmctld and goes after it.
    """
    ports = free_ports(4)
    cluster = Cluster(folder)
    for name in ("state", "spool.n1", "spool.n2", "spool.n3"):
        (folder / name).mkdir(parents=True)
    conf = CONF.format(host=socket.gethostname().split(".")[0], folder=folder, port=ports[0], first=ports[1], last=ports[3])
    (folder / "slurm.conf").write_text(conf + more)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    with ExitStack() as ending:
        ending.callback(cluster.sweep)
        munged = ["munged", f"--socket={folder}/munge.socket", f"--key-file={key}", f"--pid-file={folder}/munged.pid"]
        munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed", "--force"]
        subprocess.run(munged, check=True, timeout=30)
        ending.callback(end, folder / "munged.pid")
        ending.enter_context(accounting(cluster))
        subprocess.run(["slurmctld", "-c"], env=cluster.environment, check=True, timeout=30)
        ending.callback(end, folder / "slurmctld.pid")
        for name in ("n1", "n2", "n3"):
            cluster.start_node(name)
            ending.callback(end, folder / f"{name}.pid")
        until(lambda: all(cluster.node(name, "State") == "IDLE" for name in ("n1", "n2", "n3")), 30)
        yield cluster
        cluster.call("scancel", "--full", "--signal=KILL", "--user=root")


def until(holds: Callable[[], object], seconds: float, instead: Callable[[], str] = str) -> str:
    """What `holds` says as soon as it is true; TimeoutError otherwise, with what `instead` says then."""
    deadline = time.monotonic() + SLOWER * seconds
    while time.monotonic() < deadline:
        if said := holds():
            return str(said)
        time.sleep(0.1)
    raise TimeoutError(f"not in {seconds} s\n{instead()}")


def free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens at, and that no other tests on this machine take before we have ended.

    Above those that pants-dist, Ray's workers (10002 to 19999) and the kernel take.
    """
    for first in range(61000, 65500, count):
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    claim = held.enter_context(socket.socket(socket.AF_UNIX))
                    claim.bind(f"\0pants-dist-test-{port}")
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            CLAIMS.append(held.pop_all())
            return list(range(first, first + count))
    raise OSError("no free ports")


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def processes() -> Iterator[tuple[int, set[str]]]:
    """Process -> the words of its environment."""
    for pid in pids():
        try:
            yield pid, set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
        except OSError:
            continue


def ancestors(pid: int) -> list[int]:
    try:
        return [parent.pid for parent in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end(pid_file: Path) -> None:
    """Stop a daemon by its pid file, and wait until it is gone."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    for _ in range(20):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    kill(pid)


def missing() -> list[str]:
    """The daemons and commands that this machine lacks."""
    return [name for name in NEEDS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
