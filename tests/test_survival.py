"""What stops a run from outside, and what it then does: real ranks, real signals, real kills."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from slurm_cluster import until
from small import LAUNCH, comm, launched, make_store, rank_process, reached, started

from pants_dist import config, launch
from pants_dist.errors import UserError
from pants_dist.settings import Train
from pants_dist.tracking import read_metrics, read_summary

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("survival") / "store", cases=6)


def settings(store: Path, runs: Path, ranks: int, *more: str) -> config.Settings:
    return config.load("debug", [
        f"--data.store={store}", f"--runs={runs}", "--train.steps=400", f"--train.ranks={ranks}", "--train.batch=4",
        "--train.micro_batch=1", "--data.patch_zyx=[16, 32, 32]", "--model.channels=[4, 8, 16]", "--loader.kind=local",
        "--tracking.wandb=off", "--train.log_every=1", *more,
    ])  # fmt: skip


def saved_step(run: Path) -> int:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def stop_one_of_four(store: Path, runs: Path, seed: int) -> None:
    """A signal to one random rank of four, then a stop-request: each time all stop at one step, saved, with exit code 75."""
    rng = random.Random(seed)
    wanted, run = settings(store, runs, 4), runs / "run"
    process = launched(wanted, "run")
    time.sleep(rng.uniform(0, 0.3))
    os.kill(rank_process(process.pid, rng.randrange(4)), rng.choice([signal.SIGUSR1, signal.SIGTERM]))
    assert process.wait(60) == launch.REQUEUE, (runs / "log").read_text()
    first = read_summary(run)
    assert first["state"] == "stopped" and first["step"] == saved_step(run) == len(read_metrics(run)) < 400
    process = launched(wanted, "run", first["step"] + 2)
    (run / "stop-request").touch()
    assert process.wait(60) == launch.REQUEUE, (runs / "log").read_text()
    second = read_summary(run)
    assert second["step"] == saved_step(run) == len(read_metrics(run)) > first["step"]
    assert not (run / "stop-request").exists()


def test_one_of_four_ranks_is_asked_to_stop(store: Path, tmp_path: Path) -> None:
    """See stop_one_of_four."""
    stop_one_of_four(store, tmp_path, seed=0)


def test_a_rank_is_asked_to_stop_before_its_first_step(store: Path, tmp_path: Path) -> None:
    """SIGTERM and SIGUSR1 to one of two ranks that have only begun to start: they end after a step, saved, with 75."""
    process = started(settings(store, tmp_path, 2), "run")
    victim = None
    while victim is None:
        assert process.poll() is None, (tmp_path / "log").read_text()
        below = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        victim = next((pid for pid in below if comm(pid) == "pants rank 1"), None)
        time.sleep(0.05)
    while not catches(victim, signal.SIGUSR1):
        time.sleep(0.001)
    assert not read_metrics(tmp_path / "run")
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(victim, number)
    assert process.wait(120) == launch.REQUEUE, (tmp_path / "log").read_text()
    assert read_summary(tmp_path / "run")["step"] == saved_step(tmp_path / "run") == 1


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for this signal."""
    (mask,) = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 21))
def test_one_of_four_ranks_is_asked_to_stop_twenty_times(store: Path, tmp_path: Path, seed: int) -> None:
    """Twenty signals and as many stop-requests, at random moments."""
    stop_one_of_four(store, tmp_path, seed)


def test_a_killed_rank_is_started_again(store: Path, tmp_path: Path) -> None:
    """SIGKILL of one rank: the run goes on from its last checkpoint and ends; no step is missing or counted twice.

    Killed once more than train.restarts allows, it ends.
    """
    wanted = settings(store, tmp_path, 2, "--train.restarts=1", "--train.checkpoint_minutes=0.0001", "--train.steps=120")
    process, log = launched(wanted, "run"), tmp_path / "log"
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    assert process.wait(120) == 0, log.read_text()
    assert "a rank was killed; going on from the last checkpoint, 0 more times" in log.read_text()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 121))
    assert {row["attempt"] for row in read_metrics(tmp_path / "run")} == {1, 2}


def test_an_exception_ends_all_ranks_and_is_shown_first(store: Path, tmp_path: Path) -> None:
    """One rank of three cannot write its metrics: all end, at once and for good, and its error stands before all others."""
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    wanted = settings(store, tmp_path, 3, "--train.batch=3")
    (tmp_path / "config.yaml").write_text(config.dump(wanted))
    begun = time.monotonic()
    command = [sys.executable, "-c", LAUNCH, str(tmp_path / "config.yaml"), "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 1 and "a rank was killed" not in done.stderr
    first = min(done.stderr.find(word) for word in ("failed:", "another rank is gone") if word in done.stderr)
    assert done.stderr[first:].startswith("failed:") and "IsADirectoryError" in done.stderr[first:]
    assert (tmp_path / "run" / "failure").read_text().startswith("rank 0 on ")
    assert read_summary(tmp_path / "run")["state"] == "failed" and time.monotonic() - begun < 120


OWNER = """
import os, subprocess, sys, time
from pants_dist import cluster
with cluster.private_folder() as folder:
    subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], str(folder)], env=os.environ | {"TMPDIR": str(folder)})
    time.sleep(100)
"""
ORPHAN = """
import os, sys, time
held = open(sys.argv[2] + "/held", "w")
open(sys.argv[1], "w").close()
while os.path.exists(sys.argv[1]):
    time.sleep(0.01)
time.sleep(1)
with open(sys.argv[1] + ".saw", "w") as out:
    out.write(f"{os.path.exists(held.name)} {sys.argv[2]}")
"""


def test_what_a_killed_launcher_leaves_is_swept_last(tmp_path: Path) -> None:
    """A process below it that dies a second later still had its temporary folder, which then goes.

    A rank whose readers went first would say that it failed of its own, and the run would not go on.
    """
    there, saw = tmp_path / "there", tmp_path / "there.saw"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, ORPHAN, str(there)])
    until(there.exists, 30)
    owner.kill()
    owner.wait()
    there.unlink()
    until(lambda: saw.exists() and saw.read_text(), 30)
    whole, folder = saw.read_text().split()
    assert whole == "True"
    until(lambda: not Path(folder).exists(), 30)


@contextlib.contextmanager
def two_nodes(wanted: config.Settings, **environment: str) -> Iterator[list[subprocess.Popen]]:
    """A launcher for each of two nodes, both on this machine, as srun would start them. At the end they are killed."""
    said = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"} | environment
    nodes = [started(wanted, "run", SLURM_NODEID=str(node), **said) for node in (0, 1)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def test_a_lost_node(store: Path, tmp_path: Path) -> None:
    """Two nodes of a rank each. The agent of one is killed: the run goes on. Its launcher is killed: the other node ends.

    It says which node it missed; the same command then goes on from the last checkpoint. The nodes are this machine.
    """
    wanted = settings(store, tmp_path, 1, "--train.steps=100000", "--train.batch=2", "--train.checkpoint_minutes=0.0001")
    log, run = tmp_path / "log", tmp_path / "run"
    with two_nodes(wanted, TEST_PATIENCE_S="15") as nodes:
        reached(run, 3, nodes)
        (agent,) = [child for child in psutil.Process(nodes[1].pid).children() if "pants_dist.agent" in child.cmdline()]
        agent.kill()
        while read_metrics(run)[-1]["attempt"] == 1:
            assert [node.poll() for node in nodes] == [None, None], log.read_text()
            time.sleep(0.1)
        ranks = [rank_process(node.pid, rank) for rank, node in enumerate(nodes)]
        nodes[1].kill()
        assert nodes[0].wait(60) == 1, log.read_text()
        said = log.read_text()
        assert "node 0: not all 2 nodes were there in 15 s; one is lost" in said, said
        assert read_summary(run)["state"] == "failed" and saved_step(run) > 3
        assert not [pid for pid in ranks if comm(pid).startswith("pants rank")]


def test_a_run_goes_on_with_fewer_nodes(store: Path, tmp_path: Path) -> None:
    """Two nodes of a rank each, of which one may be lost: its launcher is killed, and the other alone does the rest."""
    few = ["--train.min_nodes=1", "--train.steps=40", "--train.batch=2", "--train.checkpoint_minutes=0.0001"]
    log, run = tmp_path / "log", tmp_path / "run"
    with two_nodes(settings(store, tmp_path, 1, *few), TEST_PATIENCE_S="5") as nodes:
        reached(run, 3, nodes)
        nodes[1].kill()
        assert nodes[0].wait(120) == 0, log.read_text()
        assert read_summary(run)["machine"]["ranks"] == 1
        assert [row["step"] for row in read_metrics(run)] == list(range(1, 41))
        assert {row["attempt"] for row in read_metrics(run)} == {1, 2}


@pytest.mark.parametrize(("nodes", "changes", "says"), [
    (4, {"batch": 64, "ranks": 8}, ""),
    (4, {"batch": 64, "ranks": 8, "min_nodes": 3}, "which 24 ranks on 3 nodes cannot share; use 96"),
    (4, {"batch": 96, "ranks": 8, "min_nodes": 3}, ""),
    (1, {"batch": 3, "ranks": 2}, "which 2 ranks on 1 nodes cannot share; use 4"),
    (2, {"min_nodes": 3}, "train.min_nodes is 3, but the run begins with 2; use 1 to 2"),
    (2, {"min_nodes": 0}, "train.min_nodes is 0"),
    (2, {"batch": 8, "micro_batch": 2, "batch_dice": True}, "micro_batch is 2, .*Dice of all 8 patches of a step .*use 4, or"),
    (2, {"batch": 8, "micro_batch": 4, "batch_dice": True}, ""),
    (2, {"batch": 8, "micro_batch": 4, "batch_dice": True, "min_nodes": 1}, "use 8, or more ranks"),
])  # fmt: skip
def test_nodes_that_cannot_share_a_batch_are_refused(nodes: int, changes: dict, says: str) -> None:
    """With as few nodes as train.min_nodes allows, too; the batch that is named is one that all of them can share."""
    train = replace(Train(), **({"batch": 2, "ranks": 1} | changes))
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        launch.check_shares(train, nodes)


def test_ranks_share_the_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS of whoever starts a run holds; else each rank gets its share of the cores, at least one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch.environment_of(2)["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = launch.allocated_cores()
    assert [launch.environment_of(ranks)["OMP_NUM_THREADS"] for ranks in (1, cores, 99 * cores)] == [str(cores), "1", "1"]


def test_ranks_can_be_forked_after_the_imports() -> None:
    """Nothing that a node imports before it forks its ranks wakes CUDA: a process forked after that could not use it.

    Who launches them imports neither Lightning nor what evaluates.
    """
    said = "import sys, torch; calls = []; torch.cuda._lazy_init = lambda: calls.append(1); import pants_dist.launch; "
    said += "print([name for name in ('lightning', 'pants_dist.evaluate') if name in sys.modules]); "
    said += "import pants_dist.train; print(calls)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.long
def test_the_first_node_is_lost(store: Path, tmp_path: Path) -> None:
    """Two nodes of a rank each. The launcher of the one where all meet is killed: the other ends within 60 s and says so."""
    wanted = settings(store, tmp_path, 1, "--train.steps=100000", "--train.batch=2", "--train.checkpoint_minutes=0.0001")
    log, run = tmp_path / "log", tmp_path / "run"
    with two_nodes(wanted) as nodes:
        reached(run, 3, nodes)
        ranks = [rank_process(node.pid, rank) for rank, node in enumerate(nodes)]
        nodes[0].kill()
        assert nodes[1].wait(60) == 1, log.read_text()
        assert "node 1: not all 2 nodes were there in 40 s; one is lost" in log.read_text()
        assert saved_step(run) > 0 and not [pid for pid in ranks if comm(pid).startswith("pants rank")]
