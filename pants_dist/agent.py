"""The agent of a node: starts its ranks, and ends them all where one fails. `python -m pants_dist.agent RUN --ranks N ...`

It is torchrun's, with one difference: ranks are forked from a process that has imported everything they need. Importing
takes seconds of every core and, on a shared disk, tens of thousands of small files; so a node does it once, not once a rank.
"""

import argparse
import multiprocessing
import os
import socket
import sys
import time
import uuid
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

ALONE = 4  # exit code: the agents of other nodes were not there in time


def rank(run: str) -> None:
    """What a rank does, in a process of its own, which ps and top show by its number."""
    Path("/proc/self/comm").write_text(f"pants rank {os.environ['RANK']}")
    from pants_dist.train import main as train_main

    train_main(Path(run))


def main() -> int:
    """Returns 0 when all ranks of this node ended well, ALONE where other nodes are missing, else 1."""
    given = _parser().parse_args()
    multiprocessing.set_forkserver_preload(["pants_dist.mortal", "pants_dist.train"])
    forkserver.ensure_running()  # imports while we import torch's own
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    deadline = time.monotonic() + given.patience
    while time.monotonic() < deadline:
        try:
            if given.node == 0 or _listens(given.meet):
                launch_agent(_config(given), rank, [str(given.run)])
                return 0
        except ChildFailedError:  # the rank has said why
            return 1
        except DistError:  # nobody there, or still the agent of the start before this
            pass
        time.sleep(1)
    return ALONE


def _listens(place: str) -> bool:
    """Whether somebody does at HOST:PORT. torch itself would try for much longer than it is told."""
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
        return True
    except OSError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pants_dist.agent")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--ranks", type=int, required=True, help="of this node")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--min-nodes", type=int, default=1, help="go on with so many where the others do not come in time")
    parser.add_argument("--node", type=int, default=0, help="number of this one")
    parser.add_argument("--meet", default="localhost:0", help="host and port of node 0")
    parser.add_argument("--local-address", help="of this node, as the others see it")
    parser.add_argument("--start", default="", help="names this start of all agents: those of others are no company")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for other nodes")
    parser.add_argument("--logs", type=Path, help="folder: what ranks say is also kept there, and said with their number")
    return parser


def _config(given: argparse.Namespace) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    backend, meeting = "static", {"timeout": round(given.patience), "rank": given.node}
    if given.nodes == 1 or given.min_nodes < given.nodes:  # who comes before the last call ends takes part
        backend, last_call = "c10d", round(given.patience)
        meeting = {"is_host": given.node == 0, "last_call_timeout": last_call, "join_timeout": last_call + 20}
    return LaunchConfig(
        min_nodes=min(given.min_nodes, given.nodes), max_nodes=given.nodes, nproc_per_node=given.ranks,
        run_id=given.start or uuid.uuid4().hex, rdzv_backend=backend, rdzv_endpoint=given.meet, rdzv_configs=meeting,
        local_addr=given.local_address, max_restarts=0, start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(given.logs), tee=Std.ALL) if given.logs else None,
        log_line_prefix_template="[rank${rank}] " if given.logs else None,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
