"""Nodes compare themselves before ranks start. The nodes are threads or launchers of this machine, the sockets are real."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slurm_cluster import free_ports, until
from small import LAUNCH, make_store, started

from pants_dist import config, launch, rollcall
from pants_dist.errors import UserError
from pants_dist.rollcall import Report, RollCall, differences

GOOD = Report("n0", {"Python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"}, "sha256:1", gpus=4)
HERE = "127.0.0.1"


def test_equal_nodes_have_no_differences() -> None:
    """A host's name is no difference, and neither is a GPU more where each has one."""
    assert differences({0: GOOD, 1: replace(GOOD, host="n1"), 2: replace(GOOD, host="n2", gpus=8)}) == []
    assert differences({number: replace(GOOD, gpus=0) for number in range(3)}) == []


@pytest.mark.parametrize(
    ("change", "found", "cure"),
    [
        ({"versions": GOOD.versions | {"torch": "2.6.0"}}, "node n1: has torch 2.6.0, node 0 has 2.13.0", "one environment"),
        ({"store": "sha256:2"}, "node n1: reads a store with digest sha256:2, node 0 one with sha256:1", "one path"),
        ({"gpus": 0}, "node n1: torch sees no GPU, elsewhere it does", "--sbatch.exclude=n1"),
        ({"fault": "/dev/shm: too small; free some"}, "node n1: /dev/shm: too small", "free some"),
    ],
    ids=["version", "store", "GPU", "fault"],
)
def test_a_difference_is_a_line_with_a_cure(change: dict[str, Any], found: str, cure: str) -> None:
    """One line, on the node that differs from node 0."""
    (line,) = differences({0: GOOD, 1: replace(GOOD, host="n1", **change), 2: replace(GOOD, host="n2")})
    assert line.startswith(found) and cure in line


def test_a_node_without_a_store_has_one_fault_alone() -> None:
    """What it could not find out is not held against it, too."""
    (line,) = differences({0: GOOD, 1: Report("n1", {}, "", 0, "store s: no such folder; convert first")})
    assert line == "node n1: store s: no such folder; convert first"


def called(*nodes: Callable[[RollCall], object]) -> list[str]:
    """What each node was refused with, all at a time; "" for those that may start."""
    (port,) = free_ports(1)
    said, calls = [""] * len(nodes), list[RollCall]()

    def live(number: int) -> None:
        try:
            call = RollCall(number, len(nodes), HERE, port)
            calls.append(call)  # node 0's is there until all have ended
            nodes[number](call)
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(len(nodes))]
    threads[0].start()
    until(lambda: not rollcall._knock(HERE, port), 60)  # node 0 listens before the others read where
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said


def node(**changes: Any) -> Callable[[RollCall], object]:
    """A node that answers the call."""
    return lambda call: call.answer(replace(GOOD, host=f"n{call.number}", **changes), HERE)


def test_nodes_that_fit_together_start() -> None:
    """Three nodes have compared themselves and reached each other."""
    assert called(node(), node(), node()) == ["", "", ""]


def test_one_that_differs_stops_all(capsys: pytest.CaptureFixture) -> None:
    """Node 0 names each fault, a line each; no node starts."""
    said = called(node(), node(store="sha256:2", gpus=0), node())
    assert said[0].startswith("node n1: reads a store") and "node n1: torch sees no GPU" in capsys.readouterr().err
    assert all("node 0" in line and "says why" in line for line in said[1:])


def test_a_node_that_others_cannot_reach_is_named() -> None:
    """It meets node 0 and says where it listens, but nobody gets through to it there."""

    def walled(call: RollCall) -> None:
        (closed,) = free_ports(1)
        call.agree("report", {"report": asdict(replace(GOOD, host="n1")), "place": [HERE, closed]}, 10, lambda _: [])
        call.agree("reach", [], 10, lambda said: said[0] if 0 in said else [])

    said = called(node(), walled)
    assert said[0].startswith("node n0: cannot reach node n1 at 127.0.0.1 (Connection refused)") and "interface" in said[0]


def test_a_silent_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes wait for the third no longer than their patience."""
    monkeypatch.setattr(rollcall, "ARRIVAL_SECONDS", 2.0)
    said = called(node(), node(), lambda call: None)
    assert said[0].startswith("node 2 of 3 has not answered (report) in 2 s")


def test_no_node_0() -> None:
    """Nobody listens where it should: that is said at once."""
    (port,) = free_ports(1)
    with pytest.raises(UserError, match=f"cannot reach node 0 at {HERE}:{port} .*Connection refused"):
        RollCall(1, 2, HERE, port)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_gpus_that_torch_cannot_use_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM gave this node two: it does not train on its CPUs instead."""
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    words = [f"--data.store={make_store(tmp_path / 'store')}", f"--runs={tmp_path}", "--train.ranks=1"]
    with pytest.raises(UserError, match="SLURM gave us 2 GPUs, but torch sees none; install a torch with CUDA"):
        launch.launch(config.load("debug", words), "run")


@pytest.mark.timeout(120)
def test_node_0_says_what_keeps_another_from_starting(tmp_path: Path) -> None:
    """Two launchers, of which one does not see the store: both end before ranks start, and both say why."""
    words = [f"--runs={tmp_path}", "--train.ranks=1", "--train.batch=2", "--tracking.wandb=off", "--loader.kind=local"]
    words += ["--data.patch_zyx=[16, 32, 32]", "--model.channels=[4, 8, 16]"]
    store = make_store(tmp_path / "store")
    said = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": HERE}
    first = started(config.load("debug", [f"--data.store={store}", *words]), "run", SLURM_NODEID="0", **said)
    blind = tmp_path / "blind.yaml"
    blind.write_text(config.dump(config.load("debug", [f"--data.store={tmp_path / 'unmounted'}", *words])))
    environment = os.environ | said | {"SLURM_NODEID": "1", "SLURMD_NODENAME": "n1"}
    second = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(blind), "run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert first.wait(60) and second.returncode
    assert f"UserError: store {tmp_path / 'unmounted'}" in second.stderr
    assert f"node n1: store {tmp_path / 'unmounted'}" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
