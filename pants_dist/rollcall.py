"""Before ranks start, the nodes of a run compare themselves and try each other: what would hang later is a line now.

They meet at a small store of keys that node 0 keeps open. Each says what it has, listens at a port of the system's choice,
as gloo and NCCL do, and knocks at all the others. Any fault that one of them finds ends the start on all.
"""

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from pants_dist.errors import UserError

Said = dict[int, Any]  # number of a node -> what it said
PACKAGES = ("pants-dist", "torch", "lightning", "monai", "ray", "zarr", "numpy")
ARRIVAL_SECONDS, REACH_SECONDS, KNOCK_SECONDS = 180.0, 30.0, 5.0  # for all to come; for all to try each other; for one try
KNOCKS_AT_ONCE, LINGER_SECONDS = 32, 2.0
MOST_LINES = 8
OPEN_PORTS = (
    "nodes must reach each other at any port: name the network between them in the cluster's file (interface: ib0), or ask "
    "the site to open it"
)


@dataclass(frozen=True)
class Report:
    """What a node says of itself. `store` is the digest of what it reads; `fault`, if any, is why it cannot start."""

    host: str
    versions: dict[str, str]
    store: str
    gpus: int
    fault: str = ""

    @classmethod
    def of_this_node(cls, store: str, fault: str) -> "Report":
        import torch

        return cls(this_host(), _versions(), store, torch.cuda.device_count(), fault)


def this_host() -> str:
    """This node by the name that SLURM has for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _versions() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout that is on the path and not installed
            installed[name] = "no version"
    return {"Python": platform.python_version()} | installed


class RollCall:
    """This node among `count`, with node 0 at `address`:`port`; node 0 keeps its own for as long as the others may speak.

    Raises UserError where node 0 cannot be reached.
    """

    def __init__(self, number: int, count: int, address: str, port: int) -> None:
        from torch.distributed import TCPStore

        self.number, self.count = number, count
        if number and (reason := _knock(address, port)):
            raise UserError(f"node {this_host()}: cannot reach node 0 at {address}:{port} ({reason}); {OPEN_PORTS}")
        self._store = TCPStore(address, port, is_master=number == 0, wait_for_workers=False)

    def answer(self, report: Report, address: str) -> None:
        """Compare this node with the others, and try to reach each of them from `address`.

        Raises UserError where one has a fault, has other versions, reads another store, lacks GPUs, or cannot be reached.
        """
        with socket.create_server((address, 0), backlog=self.count) as listening:
            mine = {"report": asdict(report), "place": listening.getsockname()}
            said = self.agree("report", mine, ARRIVAL_SECONDS, _differences)
            places = {number: tuple(each["place"]) for number, each in said.items()}
            with ThreadPoolExecutor(KNOCKS_AT_ONCE) as knocking:
                reasons = dict(zip(places, knocking.map(lambda place: _knock(*place), places.values()), strict=True))
            unreached = [
                f"node {report.host}: cannot reach node {said[number]['report']['host']} at {places[number][0]} "
                f"({reason}); {OPEN_PORTS}"
                for number, reason in sorted(reasons.items()) if reason
            ]  # fmt: skip
            self.agree("reach", unreached, REACH_SECONDS, lambda lines: [line for each in lines.values() for line in each])

    def agree(self, topic: str, mine: Any, patience: float, faults: Callable[[Said], list[str]]) -> Said:
        """Say `mine`, as JSON; returns what each node says on the topic.

        Raises UserError as soon as there are `faults` in what was said, and where a node says nothing in `patience` seconds.
        """
        with _while_node_0_is_there():
            self._store.set(f"{topic}-{self.number}", json.dumps(mine))
        said: Said = {}
        for said in self._heard(topic, range(self.count), patience):
            if lines := faults(said):
                self._refuse(lines)
        return said

    def hear_node_0(self, topic: str, patience: float) -> Any:
        """What node 0 says on the topic, once it does."""
        *_, said = self._heard(topic, [0], patience)
        return said[0]

    def _heard(self, topic: str, numbers: Collection[int], patience: float) -> Iterator[Said]:
        """What was said so far, again and again, until all have spoken."""
        deadline = time.monotonic() + patience
        said: Said = {}
        while len(said) < len(numbers):
            if time.monotonic() > deadline:
                missing = ", ".join(str(number) for number in numbers if number not in said)
                raise UserError(
                    f"node {missing} of {self.count} has not answered ({topic}) in {patience:g} s; see its lines in the job's "
                    f"log, and if there is none: {OPEN_PORTS}"
                )
            with _while_node_0_is_there():
                for number in numbers:
                    if number not in said and self._store.check([f"{topic}-{number}"]):
                        said[number] = json.loads(self._store.get(f"{topic}-{number}"))
            yield said
            time.sleep(0 if len(said) == len(numbers) else 0.1)

    def _refuse(self, lines: list[str]) -> None:
        if self.number:
            raise UserError(f"node {this_host()}: not started; node 0 says why")
        for line in lines[1:MOST_LINES]:
            print(f"pants-dist: {line}", file=sys.stderr, flush=True)
        time.sleep(LINGER_SECONDS)  # the others read it from us
        raise UserError(lines[0] + (f"; and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""))


def _differences(said: Said) -> list[str]:
    return differences({number: Report(**each["report"]) for number, each in said.items()})


def differences(reports: Mapping[int, Report]) -> list[str]:
    """What keeps these nodes from training together: a line a fault, with its cure. Pure; node 0 is right."""
    with_gpus = sum(report.gpus > 0 for report in reports.values())
    lines = []
    for _, report in sorted(reports.items()):
        found = [report.fault] if report.fault else _differing(report, reports.get(0, report), with_gpus)
        lines += [f"node {report.host}: {fault}" for fault in found]
    return lines


def _differing(report: Report, first: Report, with_gpus: int) -> Iterator[str]:
    for name, version in report.versions.items():
        if version != (other := first.versions.get(name)):
            yield f"has {name} {version}, node 0 has {other}; give all one environment (environment_path in the cluster's file)"
    if report.store != first.store:
        yield (
            f"reads a store with digest {report.store}, node 0 one with {first.store}; use one path that all nodes see, and "
            "wait until its newest manifest is seen everywhere"
        )
    if with_gpus and not report.gpus:
        yield f"torch sees no GPU, elsewhere it does; leave this node out (--sbatch.exclude={report.host}) and tell the site"


def _knock(address: str, port: int) -> str:
    """Why nobody can be reached there; "" where somebody can."""
    try:
        socket.create_connection((address, port), KNOCK_SECONDS).close()
        return ""
    except OSError as error:
        return error.strerror or str(error)


@contextmanager
def _while_node_0_is_there() -> Iterator[None]:
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise UserError(f"node {this_host()}: not started; node 0 has ended and says why") from error
