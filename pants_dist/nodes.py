"""A run on several nodes: one launcher a node, which srun starts, and how they find each other.

Node 0 says in a file of the run folder where it listens. The others go there, all compare themselves and try each other
(rollcall), then node 0 starts Ray's head and the others join it. The ranks meet at node 0, too. Ports come in blocks, each
claimed by one job of this machine.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pants_dist import __version__, cluster
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.rollcall import Report, RollCall, this_host

PATIENCE_SECONDS = 180.0  # for the other nodes: file systems between them may show a new file late
EXCUSE_SECONDS = 20.0  # the same for a node that does not start: mostly none does, and for the same reason
BLOCK = 100  # ports a job has on a node: the daemons' first, then one a worker of Ray
DAEMONS = (
    "node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip
RANKS_PORT, RAY_PORT, CALL_PORT, FIRST_DAEMON = 0, 1, 2, 3  # places in a block


@dataclass(frozen=True)
class Node:
    """This node among those of the run; node 0 leads. `start` names this start of the job, also after a requeue."""

    number: int = 0
    count: int = 1
    start: str = ""

    @property
    def leads(self) -> bool:
        return self.number == 0


@dataclass(frozen=True)
class Meeting:
    """What node 0 tells the others."""

    address: str
    ranks_port: int
    ray_port: int
    call_port: int
    token: str
    version: str


class RaySize(NamedTuple):
    """What Ray gets on each node."""

    readers: int
    object_store_bytes: int


def this_node() -> Node:
    """The node that SLURM says this is, where srun started us; else the only one.

    Raises UserError where srun starts more than one task on a node.
    """
    said = os.environ
    count = int(said.get("SLURM_STEP_NUM_NODES", 1))
    if count == 1:
        return Node()
    if (tasks := said.get("SLURM_STEP_NUM_TASKS")) != str(count):
        raise UserError(
            f"srun: {tasks} tasks on {count} nodes; start one a node (srun --ntasks-per-node=1), which starts ranks"
        )
    start = "-".join(said.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
    return Node(int(said["SLURM_NODEID"]), count, start)


@contextlib.contextmanager
def gathered(node: Node, run: Path, report: Report, size: RaySize | None) -> Iterator[tuple[list[str], dict[str, str]]]:
    """All nodes of a run, with Ray on each where `size` is given.

    Yields the options by which the agents meet and the environment by which ranks find Ray and each other. Ends
    when every process that was started here is gone. Raises UserError where the nodes cannot meet or do not fit together.
    """
    with contextlib.ExitStack() as ending:
        first = ending.enter_context(_ports())
        meeting, address, call = _met(node, run, first, ending)
        call.answer(report, address)
        environment = _interfaces(address)
        if size:
            environment |= ending.enter_context(_ray(node, call, meeting, address, first, size))
        options = [f"--nodes={node.count}", f"--node={node.number}", f"--local-address={address}"]
        yield [*options, f"--meet={meeting.address}:{meeting.ranks_port}"], environment


def excused(node: Node, run: Path, report: Report) -> None:
    """Tell node 0, if it is there, why this node does not start: `report.fault`."""
    with contextlib.suppress(UserError):
        meeting = _read(run, node, EXCUSE_SECONDS)
        call = RollCall(node.number, node.count, meeting.address, meeting.call_port)
        call.answer(report, _address_towards(meeting.address))


def _met(node: Node, run: Path, first: int, ending: contextlib.ExitStack) -> tuple[Meeting, str, RollCall]:
    """Where the nodes meet, this one's own address, and the roll call; `first` is the first of this node's ports."""
    if node.leads:
        address = _own_address()
        ranks_port, ray_port, call_port = (first + place for place in (RANKS_PORT, RAY_PORT, CALL_PORT))
        meeting = Meeting(address, ranks_port, ray_port, call_port, cluster.token(), __version__)
        call = RollCall(0, node.count, address, meeting.call_port)
        ending.callback(_meeting_file(run, node).unlink, missing_ok=True)
        _publish(_meeting_file(run, node), meeting)
    else:
        meeting = _read(run, node, PATIENCE_SECONDS)
        address = _address_towards(meeting.address)
        call = RollCall(node.number, node.count, meeting.address, meeting.call_port)
    return meeting, address, call


def _meeting_file(run: Path, node: Node) -> Path:
    return run / f".meeting-{node.start}"


def _publish(file: Path, meeting: Meeting) -> None:
    for old in file.parent.glob(".meeting-*"):  # of a start that was killed
        old.unlink(missing_ok=True)
    with replacing(file) as handle:
        os.fchmod(handle.fileno(), 0o600)  # it holds Ray's token
        handle.write(json.dumps(asdict(meeting)).encode())


def _read(run: Path, node: Node, patience: float) -> Meeting:
    deadline, file = time.monotonic() + patience, _meeting_file(run, node)
    while not (run.is_dir() and file.name in os.listdir(run)):  # opening the folder makes NFS look again
        if time.monotonic() > deadline:
            raise UserError(f"{file}: node 0 has not written it in {patience:g} s; see its lines in the job's log")
        time.sleep(0.2)
    meeting = Meeting(**json.loads(file.read_text()))
    if meeting.version != __version__:
        name = this_host()
        raise UserError(f"node {name}: has pants-dist {__version__}, node 0 has {meeting.version}; install one version for all")
    return meeting


def _own_address() -> str:
    """This node's address: on the interface that the site names, or on the network that SLURM uses."""
    wanted = os.environ.get("PANTS_DIST_INTERFACE")
    if not wanted:
        return _address_towards(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    import psutil

    interfaces = psutil.net_if_addrs()
    found = [part.address for part in interfaces.get(wanted, ()) if part.family == socket.AF_INET]
    if not found:
        raise UserError(f"cluster: interface {wanted} has no address on this node; there are {', '.join(sorted(interfaces))}")
    return found[0]


def _address_towards(other: str) -> str:
    """The address from which packets to `other` leave this node. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, 9))
        except OSError as error:
            raise UserError(f"node {this_host()}: no way to {other or 'the others'} ({error.strerror})") from error
        return probe.getsockname()[0]


def _interfaces(address: str) -> dict[str, str]:
    """By which interface the ranks talk: that of this node's address. By themselves they go by the host's name."""
    import psutil

    for name, parts in psutil.net_if_addrs().items():
        if any(part.address == address for part in parts):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


@contextlib.contextmanager
def _ports() -> Iterator[int]:
    """The first of a block of free ports in the site's range, ours until the block ends."""
    first, last = (int(port) for port in os.environ.get("PANTS_DIST_PORTS", "20000-32000").split("-"))
    blocks = list(range(first, last - BLOCK, BLOCK))
    random.SystemRandom().shuffle(blocks)
    for block in blocks:
        claim = cluster.claim(f"ports-{block}")
        if claim is None:
            continue
        with claim:
            if all(_free(block + place) for place in range(FIRST_DAEMON + len(DAEMONS))):
                yield block
                return
    raise UserError(f"cluster: no {BLOCK} free ports between {first} and {last} (ports of the site's file); widen them")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _ray(
    node: Node, call: RollCall, meeting: Meeting, address: str, first: int, size: RaySize
) -> Iterator[dict[str, str]]:
    """Ray on this node: the head on node 0. Yields the environment by which ranks of this node join it, once all have it."""
    with cluster.private_folder() as folder:
        environment = cluster.environment_of(folder, meeting.token)
        head = f"{meeting.address}:{meeting.ray_port}"
        place = ["--head", f"--port={meeting.ray_port}", "--include-dashboard=false"] if node.leads else [f"--address={head}"]
        words = [*place, *_ray_options(address, first, size), f"--temp-dir={folder}", "--block", "--disable-usage-stats"]
        if not node.leads:
            call.hear_node_0("ray", 2 * PATIENCE_SECONDS)
        with open(folder / "start.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words], env=os.environ | environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=cluster.die_with_parent,
            )  # fmt: skip
        try:
            fault = _ray_fault(process, address, first + FIRST_DAEMON, folder / "start.log")
            call.agree("ray", fault, 2 * PATIENCE_SECONDS, lambda said: [line for line in said.values() if line])
            yield environment | {"RAY_ADDRESS": head}
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def _ray_options(address: str, first: int, size: RaySize) -> list[str]:
    """Ray asks the machine, not the allocation, for whatever it is not told."""
    daemons = [f"--{name}={first + FIRST_DAEMON + place}" for place, name in enumerate(DAEMONS)]
    memory = int(os.environ.get("SLURM_MEM_PER_NODE", 0)) << 20
    return [
        f"--node-ip-address={address}", *daemons, f"--min-worker-port={first + FIRST_DAEMON + len(DAEMONS)}",
        f"--max-worker-port={first + BLOCK - 1}", f"--num-cpus={allocated_cores()}", "--num-gpus=0",
        f"--resources={json.dumps({cluster.READER_SLOT: size.readers})}",
        f"--object-store-memory={size.object_store_bytes}", *([f"--memory={memory}"] if memory else []),
    ]  # fmt: skip


def allocated_cores() -> int:
    """Cores that SLURM gave this task, which a site without task plugins does not enforce; else those we may use."""
    return min(cluster.usable_cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", sys.maxsize)))


def _ray_fault(process: subprocess.Popen[bytes], address: str, port: int, log: Path) -> str:
    """Wait for the daemon of this node to listen; returns "", or that it does not come up, with Ray's last line."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), 5).close()
            return ""
        time.sleep(0.1)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    return f"node {this_host()}: Ray did not come up at {address}: {last}; or use --loader.kind local"
