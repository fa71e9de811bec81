"""On a real SLURM: arrays, preemption, requeues, lost nodes, two jobs on one node. The cluster is slurm_cluster.py's."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster, of_job, until
from small import make_store
from sources import files_of, write_pants

from pants_dist import config, launch
from pants_dist.jobs import submitted
from pants_dist.tracking import read_metrics, read_summary

pytestmark = pytest.mark.timeout(300)
STEPS = 250
SMALL = {
    "data.patch_zyx": "[16, 32, 32]", "model.channels": "[4, 8, 16]", "tracking.wandb": "off", "train.log_every": "1",
    "train.ranks": "1", "train.batch": "2", "train.micro_batch": "1", "train.steps": str(STEPS), "loader.kind": "local",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("slurm-store") / "store", cases=6)


@pytest.fixture
def home(tmp_path: Path, slurm: Cluster) -> Iterator[Path]:
    """A folder to work in, with a cluster's file that names a scratch folder; no job is left in the queue afterwards."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as scratch:  # a short path, for Ray's sockets
        (slurm.folder / "cluster.yaml").write_text(f"scratch: {scratch}\n")
        (tmp_path / "scratch").symlink_to(scratch)
        yield tmp_path
        slurm.call("scancel", "--user=root")
        until(lambda: not slurm.call("squeue", "--noheader").stdout, 60)


def pants_dist(slurm: Cluster, cwd: Path, *words: str | Path, code: int = 0) -> str:
    """What the command printed."""
    if words[0] == "submit":
        words = (*words, "--cluster", slurm.folder / "cluster.yaml")
    done = slurm.call(sys.executable, "-m", "pants_dist", *words, cwd=cwd, timeout=120)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def submit_training(slurm: Cluster, cwd: Path, store: Path, name: str, *words: str, **changes: str) -> str:
    """Submit a small run; returns the job's id."""
    pants_dist(slurm, cwd, *training(store, name, *words, **changes))
    return submitted(cwd / "runs" / name)[-1].job


def training(store: Path, name: str, *words: str, **changes: str) -> list[str]:
    """The words that submit a small run."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()} | {"data.store": str(store)}
    given = [f"--{key}={value}" for key, value in settings.items()]
    return ["submit", "train", "--config", "debug", "--run-name", name, *words, "--mem", "1G", *given]


def step(run: Path) -> int:
    return read_summary(run).get("step", 0)


def restarted(slurm: Cluster, job: str, times: int) -> None:
    """Wait until the job was started anew so often, and trains."""
    until(lambda: slurm.job(job, "Restarts") == str(times) and slurm.job(job, "JobState") == "RUNNING", 60)


def test_hostile_names_pass_through_slurm(slurm: Cluster, home: Path, store: Path) -> None:
    """Quotes, `;`, `$()` and `%` in a folder's name: the job runs there, its log and its mark are there, nothing else is."""
    cwd = home / """a b'c"d; $(touch hit) `touch hit` %j #e"""
    cwd.mkdir()
    linked = cwd / "$(touch hit) 's"
    linked.symlink_to(store)
    words = ("submit", "verify", linked, "--wait", "--mem", "1G", "--time", "5", "--sbatch.comment=$(touch hit); 'x")
    pants_dist(slurm, cwd, *words)
    folder = cwd / "runs" / f"verify-{linked.name}"
    assert (folder / "done" / "verify").exists()
    assert "whole" in submitted(folder)[-1].log.read_text()
    assert not list(home.rglob("hit")) and not Path("hit").exists()


def test_slices_are_an_array_and_those_that_failed_run_again(slurm: Cluster, home: Path) -> None:
    """The store of three slices and a manifest job is that of one process; after a failure one slice alone is queued."""
    source = write_pants(home / "PanTS", [1, 2, 3, 4], shape_ijk=(8, 9, 10))
    pants_dist(slurm, home, "convert", source, "whole")
    too_many = pants_dist(slurm, home, "submit", "convert", source, "store", "--slices", "20", code=2)
    assert "--slices 20: 20 array elements, but this SLURM takes 19 (MaxArraySize)" in too_many
    words = ["submit", "convert", source, "store", "--slices", "3", "--mem", "500M", "--cpus-per-task", "1", "--wait"]
    image = source / "ImageTr" / "PanTS_00000002"
    (home / "store" / "cases").mkdir(parents=True)
    blocked = home / "store" / "cases" / "PanTS_00000002.ozx"
    blocked.mkdir()  # the slice that has this case cannot write it
    pants_dist(slurm, home, *words, code=1)
    assert sorted(path.name for path in (home / "runs/convert-store/done").iterdir()) == ["convert-1-of-3", "convert-3-of-3"]
    assert "2 of 3" in pants_dist(slurm, home, "status", "runs")
    blocked.rmdir()
    assert "(array 2)" in pants_dist(slurm, home, *words)
    assert image.is_dir() and files_of(home / "store") == files_of(home / "whole")
    assert "(array 1-3)" in pants_dist(slurm, home, *words)


def test_a_hard_life_changes_nothing(slurm: Cluster, home: Path, store: Path) -> None:
    """Notice, requeue, preemption and a lost node, one after the other: the weights and losses of an uninterrupted run.

    With notice no step is done twice. The log is one, the metrics have no gap and no double, and the requeues are counted.
    """
    whole = config.load("debug", [f"--{k}={v}" for k, v in (SMALL | {"data.store": str(store), "runs": str(home)}).items()])
    assert launch.launch(whole, "whole") == 0
    job = submit_training(slurm, home, store, "hard", train__checkpoint_minutes="0.001")
    run = home / "runs" / "hard"

    until(lambda: step(run) > 20, 60)
    assert "RUNNING" in pants_dist(slurm, home, "status", "runs")
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    restarted(slurm, job, 1)
    until(lambda: read_summary(run).get("attempt") == 2, 60)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # nothing twice: it saved before it went

    reached = step(run)
    until(lambda: step(run) > reached + 20, 60)
    slurm.call("scontrol", "requeue", job)
    restarted(slurm, job, 2)

    until(lambda: read_summary(run).get("attempt") == 3, 60)
    urgent = slurm.call(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    ).stdout.strip()
    assert slurm.ended(urgent) == "COMPLETED"
    restarted(slurm, job, 3)

    until(lambda: read_summary(run).get("attempt") == 4, 60)
    node = slurm.job(job, "NodeList")
    slurm.lose_node(node)
    restarted(slurm, job, 4)
    assert slurm.job(job, "NodeList") != node
    assert slurm.ended(job) == "COMPLETED"
    slurm.start_node(node)

    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in read_metrics(home / "whole")]
    states = [torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (run, home / "whole")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    table = pants_dist(slurm, home, "status", "runs")
    assert "done" in table and f"{STEPS} of {STEPS}" in table and "requeues" in table
    assert len(list(run.glob("train-*.out"))) == 1


def test_two_trainings_share_nodes_and_leave_nothing(slurm: Cluster, home: Path, store: Path) -> None:
    """Two jobs of one user on the same two nodes, each with Ray on both: when one has finished the other goes on.

    Cancelled, that one has saved its last step and is not queued again. A folder that a killed job left on a node is
    swept, and no process, no file with a token and no folder of these two is left.
    """
    leftover = home / "scratch" / "pants-ray-0-0badcafe"
    leftover.mkdir(mode=0o700)
    words = ("--nodes", "2", "--sbatch.nodelist=n1,n2")
    short = submit_training(slurm, home, store, "a", *words, loader__kind="ray", loader__readers="1", train__steps="12")
    long = training(store, "b", *words, loader__kind="ray", loader__readers="1", train__steps="100000")
    pants_dist(slurm, home, *long)
    a, b = home / "runs/a", home / "runs/b"
    job = submitted(b)[-1].job
    assert slurm.ended(short, 200) == "COMPLETED", submitted(a)[-1].log.read_text()
    assert [row["step"] for row in read_metrics(a)] == list(range(1, 13))
    until(lambda: step(b) > 0, 100)
    reached = step(b)
    until(lambda: step(b) > reached + 5, 100)
    assert f"job {job} is in the queue already" in pants_dist(slurm, home, *long, code=2)
    pants_dist(slurm, home, "cancel", b)
    assert slurm.ended(job) == "CANCELLED"
    saved = torch.load(b / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert read_summary(b)["state"] == "stopped" and saved == read_summary(b)["step"] > reached
    until(lambda: not of_job(job) and not of_job(short), 40)
    assert not [path for run in (a, b) for path in run.glob(".meeting-*")]
    assert not list((home / "scratch").iterdir())


def test_a_pipeline_is_one_command(slurm: Cluster, home: Path) -> None:
    """convert, verify, train, evaluate, report in a row; a stage that fails stops those after it, and a rerun begins there."""
    source = write_pants(home / "PanTS", list(range(1, 7)), shape_ijk=(36, 36, 20))
    settings = [f"--{k}={v}" for k, v in (SMALL | {"train.steps": "2", "model.structures": "[liver, pancreas]"}).items()]
    words = ["submit", "pipeline", source, "store", "--config", "debug", "--run-name", "p", "--mem", "1G", "--wait", *settings]
    (home / "runs/p/evaluation").mkdir(parents=True)
    blocked = home / "runs/p/report"
    blocked.write_text("a file where a folder has to be")
    pants_dist(slurm, home, *words, code=1)
    done = home / "runs/p/done"
    assert sorted(path.name for path in done.iterdir()) == ["evaluate", "train", "verify"]
    blocked.unlink()
    said = pants_dist(slurm, home, *words)
    assert "report:" in said and "train:" not in said
    assert (home / "runs/p/report/report.html").is_file()
    assert "every stage is done" in pants_dist(slurm, home, *words, code=2)


def test_a_sweep_is_one_array(slurm: Cluster, home: Path, store: Path) -> None:
    """A run folder for each value, and one table of them all."""
    settings = [f"--{k}={v}" for k, v in (SMALL | {"train.steps": "2", "data.store": str(store)}).items()]
    words = ["submit", "train", "--config", "debug", "--run-name", "s", "--sweep", "optim.lr=1e-3,3e-4", "--max-running", "2"]
    pants_dist(slurm, home, *words, "--mem", "1G", "--wait", *settings)
    table = pants_dist(slurm, home, "status", "runs/s").splitlines()
    assert [line.split()[:3] for line in table[1:3]] == [
        ["optim.lr=1e-3", "train", "done"], ["optim.lr=3e-4", "train", "done"],
    ]  # fmt: skip
    assert config.load(home / "runs/s/optim.lr=3e-4/config.yaml", []).optim.lr == 3e-4


@pytest.mark.long
def test_a_run_goes_on_with_fewer_nodes(slurm: Cluster, home: Path, store: Path) -> None:
    """One of two nodes is lost, and train.min_nodes allows it: the same job goes on with the other and ends well."""
    changes = {"train__min_nodes": "1", "train__steps": "2000", "train__checkpoint_minutes": "0.05"}
    job = submit_training(slurm, home, store, "few", "--nodes", "2", "--sbatch.nodelist=n1,n2", **changes)
    run = home / "runs" / "few"
    until(lambda: step(run) > 3, 60)
    slurm.lose_node("n2")
    assert slurm.ended(job, 200) == "COMPLETED", submitted(run)[-1].log.read_text()
    slurm.start_node("n2")
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 2001))
    assert read_summary(run)["machine"]["ranks"] == 1 and slurm.job(job, "Restarts") == "0"
