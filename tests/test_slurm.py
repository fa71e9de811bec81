"""On a real SLURM: arrays, preemption, requeues, lost nodes, two jobs on one node. The cluster is slurm_cluster.py's."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from slurm_cluster import SLOWER, Cluster, until
from small import last_row, make_store, trained_here
from sources import files_of, write_pants

from pants_dist import cli, cluster, config, jobs
from pants_dist.jobs import submitted
from pants_dist.pipeline import train_stage
from pants_dist.queue import State
from pants_dist.site import Site
from pants_dist.submit import Resources
from pants_dist.tracking import read_metrics, read_summary

pytestmark = pytest.mark.timeout(600 * SLOWER)
ROOT = Path(__file__).parent.parent
STEPS = 100  # that are compared with an uninterrupted run's
SMALL = {
    "data.patch_zyx": "[16, 32, 32]", "model.channels": "[4, 8, 16]", "tracking.wandb": "off", "train.log_every": "1",
    "train.ranks": "1", "train.batch": "2", "train.micro_batch": "1", "loader.kind": "local",
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
    return done.stdout if "--dry-run" in words else done.stdout + done.stderr


def here(slurm: Cluster, cwd: Path, *words: str | Path) -> int:
    """The exit code of a submit in this very process, which has imported already what takes others seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        return cli.main([*map(str, words), "--cluster", str(slurm.folder / "cluster.yaml")])


def submit_training(slurm: Cluster, cwd: Path, store: Path, name: str, *words: str, **changes: str) -> str:
    """Submit a small run; returns the job's id."""
    assert here(slurm, cwd, *training(store, name, *words, **changes)) == 0
    return submitted(cwd / "runs" / name)[-1].job


def training(store: Path, name: str, *words: str, **changes: str) -> list[str]:
    """The words that submit a small run."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()} | {"data.store": str(store)}
    given = [f"--{key}={value}" for key, value in settings.items()]
    return ["submit", "train", "--config", "debug", "--run-name", name, "--mem", "1G", "--cpus-per-task", "1", *words, *given]


def whole_losses(store: Path, runs: Path) -> list[float]:
    """Losses of the first STEPS of the same training, to which nothing happens: in this process, on one thread as there."""
    long = SMALL | {"train.steps": "100000", "data.store": str(store), "runs": str(runs)}

    def stop() -> None:
        until(lambda: step(runs / "whole") > STEPS, 100)
        (runs / "whole" / "stop-request").touch()

    with ThreadPoolExecutor() as beside:
        stopping = beside.submit(stop)
        run = trained_here(config.load("debug", [f"--{key}={value}" for key, value in long.items()]), "whole")
        stopping.result()
    return [row["train/loss"] for row in read_metrics(run)][:STEPS]


def later(run: Path, attempt: int, beyond: int) -> bool:
    """Whether this attempt has logged a step beyond another. summary.json tells of an attempt before its first step."""
    row = last_row(run)
    return row["attempt"] == attempt and row["step"] > beyond


def step(run: Path) -> int:
    return read_summary(run).get("step", 0)


def tarball(folder: Path) -> Path:
    """A tar file of a virtual environment that finds pants-dist and its packages where this one does."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder / "env"], check=True)
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    (packages / "here.pth").write_text("\n".join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]))
    subprocess.run(["tar", "-cf", folder / "env.tar", "-C", folder / "env", "."], check=True)
    return folder / "env.tar"


def test_hostile_names_pass_through_slurm(slurm: Cluster, home: Path, store: Path) -> None:
    """Quotes, `;`, `$()` and `%` in a folder's name: the job runs there, its log and its mark are there, nothing else is.

    It runs from a tarball, which is unpacked to the node's disk and leaves nothing there; what a killed job left is
    swept, what belongs to a job that is not over is not.
    """
    cwd = home / """a b'c"d; $(touch hit) `touch hit` %j #e"""
    cwd.mkdir()
    linked = cwd / "$(touch hit) 's"
    linked.symlink_to(store)
    waiting = slurm.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").stdout.strip()
    alive, leftover = (home / "scratch" / f"pants-dist-env-{job}" for job in (waiting, 4711))
    alive.mkdir()
    leftover.mkdir()
    with open(slurm.folder / "cluster.yaml", "a") as file:
        file.write(f"environment: tarball\nenvironment_path: {json.dumps(str(tarball(cwd)))}\n")
    words = ("submit", "verify", linked, "--mem", "1G", "--time", "5", "--sbatch.comment=$(touch hit); 'x")
    assert "sbatch refused: " in pants_dist(slurm, cwd, *words, "--partition", "nowhere", code=2)
    assert not (cwd / "runs" / f"verify-{linked.name}" / "jobs.jsonl").exists()
    pants_dist(slurm, cwd, *words, "--wait")
    folder = cwd / "runs" / f"verify-{linked.name}"
    assert (folder / "done" / "verify").exists()
    assert "whole" in submitted(folder)[-1].log.read_text()
    assert not list(home.rglob("hit")) and not Path("hit").exists()
    assert list((home / "scratch").iterdir()) == [alive]


def test_the_queue_is_listed(slurm: Cluster, home: Path) -> None:
    """Every job of ours, where it runs or why it waits: what the dashboard shows."""
    for words in (("--nodelist=n2", "-J", "runs"), ("--begin=now+1hour", "-J", "waits")):
        slurm.call("sbatch", "--mem=10M", "--wrap", "sleep 60", *words, cwd=home)
    until(lambda: "RUNNING" in slurm.call("squeue", "--noheader", "--format=%T").stdout, 30)
    listing = "import json; from pants_dist import queue; print(json.dumps(queue.mine()))"
    found = json.loads(slurm.call(sys.executable, "-c", listing).stdout)
    jobs = {job["name"]: (job["state"], job["reason"], job["nodes"], job["where"]) for job in found}
    assert jobs == {"runs": ("RUNNING", "None", "1", "n2"), "waits": ("PENDING", "BeginTime", "1", "")}


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


LIVES = {  # what becomes of each of four trainings; the memory decides which fit on a node together
    "noticed": ("--mem", "8000M", "--sbatch.nodelist=n1"), "requeued": ("--mem", "8000M", "--sbatch.nodelist=n1"),
    "preempted": ("--mem", "16000M", "--sbatch.nodelist=n2"), "lost": ("--mem", "1G"),
}  # fmt: skip


@dataclass
class Lives:
    """Trainings under way on three nodes, and the losses of one that nothing happened to."""

    home: Path
    jobs: dict[str, str]
    whole: list[float]

    def run(self, name: str) -> Path:
        return self.home / "runs" / name

    def went_on(self, slurm: Cluster, name: str) -> None:
        """Started anew once, it has the uninterrupted run's losses, each step once, beyond where it was."""
        run, job, before = self.run(name), self.jobs[name], read_summary(self.run(name)).get("step", 0)
        (log,) = run.glob("train-*.out")  # one for both
        until(lambda: later(run, 2, max(before, STEPS)), 200, lambda: slurm.told(job, log))
        rows = read_metrics(run)
        assert slurm.job(job, "Restarts") == "1" and {row["attempt"] for row in rows} == {1, 2}
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        assert [row["train/loss"] for row in rows[:STEPS]] == self.whole
        assert list(run.glob("train-*.out")) == [log]


@pytest.fixture(scope="module")
def lives(slurm: Cluster, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """Each of the four in its place and training, then to each what its name says. Ranks find no scontrol: no command."""
    home = tmp_path_factory.mktemp("lives")
    inside = home / "container" / "bin" / "python"
    inside.parent.mkdir(parents=True)
    inside.write_text(f'#!/bin/sh\nPATH=/nowhere exec {sys.executable} "$@"\n')
    inside.chmod(0o755)
    (slurm.folder / "cluster.yaml").write_text(f"scratch: /tmp\nenvironment_path: {home}/container\n")
    jobs: dict[str, str] = {}
    for name, words in LIVES.items():  # the last goes where there is room: to n3
        until(lambda: all(slurm.job(job, "JobState") == "RUNNING" for job in jobs.values()), 60)
        changes = {"train__steps": "100000", "train__checkpoint_minutes": "0.05"}
        jobs[name] = submit_training(slurm, home, store, name, *words, **changes)
    found = Lives(home, jobs, whole_losses(store, home))
    until(lambda: min(step(found.run(name)) for name in LIVES) > 20, 100)
    assert slurm.job(jobs["lost"], "NodeList") == "n3"
    slurm.call("scancel", "--batch", "--signal=USR1", jobs["noticed"])
    slurm.call("scontrol", "requeue", jobs["requeued"])
    urgent = ("--parsable", "--partition=urgent", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    jobs["urgent"] = slurm.call("sbatch", *urgent).stdout.strip()
    slurm.lose_node("n3")
    until(lambda: slurm.job(jobs["lost"], "JobState") == "PENDING", 30)
    slurm.call("scontrol", "hold", jobs["lost"])  # until the others have left a place for it
    yield found
    slurm.call("scancel", "--user=root")
    slurm.start_node("n3")
    until(lambda: not slurm.call("squeue", "--noheader").stdout, 60)


def test_with_notice_no_step_is_done_twice(slurm: Cluster, lives: Lives) -> None:
    """The signal that comes before the time limit, to the batch script alone: it saved before it went."""
    lives.went_on(slurm, "noticed")
    lines = [json.loads(line) for line in (lives.run("noticed") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def test_a_requeued_job_goes_on(slurm: Cluster, lives: Lives) -> None:
    """`scontrol requeue`; the table counts it."""
    lives.went_on(slurm, "requeued")
    table = pants_dist(slurm, lives.home, "status", "runs")
    assert "requeues" in table and "RUNNING" in table


def test_a_preempted_job_goes_on(slurm: Cluster, lives: Lives) -> None:
    """A job of a partition with priority takes its node, and gives it back."""
    assert slurm.ended(lives.jobs["urgent"]) == "COMPLETED"
    lives.went_on(slurm, "preempted")
    slurm.call("scancel", lives.jobs["preempted"])  # the machine is wanted by others


def test_a_cancelled_job_leaves_nothing(slurm: Cluster, lives: Lives) -> None:
    """`pants-dist cancel`, and plain scancel: both end for good, the first with its last step saved; no process is left."""
    jobs = [lives.jobs[name] for name in ("noticed", "requeued")]
    pants_dist(slurm, lives.home, "cancel", lives.run("noticed"))
    slurm.call("scancel", jobs[1])
    assert [slurm.ended(job) for job in jobs] == ["CANCELLED"] * 2
    saved = torch.load(lives.run("noticed") / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert read_summary(lives.run("noticed"))["state"] == "stopped" and saved == step(lives.run("noticed"))
    until(lambda: not slurm.left_by(*jobs), 35)


def test_a_lost_node_is_left_for_another(slurm: Cluster, lives: Lives) -> None:
    """Its slurmd and all its processes are gone: the job begins again elsewhere, from its last checkpoint."""
    assert not slurm.call("scontrol", "release", lives.jobs["lost"]).returncode
    lives.went_on(slurm, "lost")
    assert slurm.job(lives.jobs["lost"], "NodeList") in ("n1", "n2")
    slurm.call("scancel", "--user=root")  # its node is wanted
    until(lambda: not slurm.call("squeue", "--noheader").stdout, 60)


def test_two_trainings_share_nodes_and_leave_nothing(
    slurm: Cluster, home: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Two jobs of one user on one node, each with Ray there, one also on another: when it has finished the other goes on.

    Of the finished one no file with a token and no folder is left. Then the batch step of the other is killed: within
    KillWait and 30 s no process of either is left. A folder that a killed job left on a node is swept, with all that
    agents and ranks had for themselves: afterwards scratch is empty.
    """
    scratch = (home / "scratch").resolve()
    (scratch / "pants-run-0-0badcafe").mkdir(mode=0o700)
    words = ("--nodes", "2", "--sbatch.nodelist=n1,n2")
    long = training(store, "b", "--sbatch.nodelist=n1", loader__kind="ray", loader__readers="1", train__steps="100000")
    assert here(slurm, home, *long) == 0
    short = submit_training(slurm, home, store, "a", *words, loader__kind="ray", loader__readers="1", train__steps="12")
    a, b = home / "runs/a", home / "runs/b"
    job = submitted(b)[-1].job
    assert slurm.ended(short, 200) == "COMPLETED", submitted(a)[-1].log.read_text()
    assert [row["step"] for row in read_metrics(a)] == list(range(1, 13))
    assert {row["nodes/slowest"] for row in read_metrics(a)} <= {"n1", "n2"} and read_summary(a)["machine"]["nodes"] == 2
    until(lambda: step(b) > 0, 100)
    reached = step(b)
    until(lambda: step(b) > reached + 5, 100)
    assert here(slurm, home, *long) == 2 and f"job {job} is in the queue already" in capsys.readouterr().err
    (own,) = scratch.iterdir()  # b's alone
    assert slurm.left_by(job) and list(own.glob("pymp-*"))
    slurm.call("scancel", "--batch", "--signal=KILL", job)
    assert slurm.ended(job) in ("FAILED", "CANCELLED")
    until(lambda: not slurm.left_by(job, short), 35)
    assert not [path for run in (a, b) for path in run.glob(".meeting-*")]
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with cluster.private_folder() as of_the_next_job:
        assert list(scratch.iterdir()) == [of_the_next_job]
    assert not list(scratch.iterdir())


def test_a_pipeline_is_one_command(slurm: Cluster, home: Path) -> None:
    """convert, verify, train, evaluate, report in a row; a stage that fails stops those after it, and a rerun begins there.

    At first with --dry-run, and what that prints is given to bash: the same jobs, and `status` knows them.
    """
    source = write_pants(home / "PanTS", list(range(1, 7)), shape_ijk=(36, 36, 20))
    settings = [f"--{k}={v}" for k, v in (SMALL | {"train.steps": "2", "model.structures": "[liver, pancreas]"}).items()]
    words = ["submit", "pipeline", source, "store", "--config", "debug", "--run-name", "p", "--mem", "1G", *settings]
    (home / "runs/p/evaluation").mkdir(parents=True)
    blocked = home / "runs/p/report"
    blocked.write_text("a file where a folder has to be")
    (home / "all.sh").write_text(pants_dist(slurm, home, *words, "--dry-run"))
    ids = [line.split() for line in slurm.call("bash", "all.sh", cwd=home).stdout.splitlines()]
    assert [stage for _, stage in ids] == ["convert", "verify", "train", "evaluate", "report"]
    assert slurm.ended(ids[-1][0], 200) == "FAILED"
    assert "FAILED" in pants_dist(slurm, home, "status", "runs/p").splitlines()[4]
    done = home / "runs/p/done"
    assert sorted(path.name for path in done.iterdir()) == ["evaluate", "train", "verify"]
    blocked.unlink()
    said = pants_dist(slurm, home, *words, "--wait")
    assert "report:" in said and "train:" not in said
    assert (home / "runs/p/report/report.html").is_file()
    assert "every stage is done" in pants_dist(slurm, home, *words, code=2)


def test_a_sweep_is_one_array(slurm: Cluster, home: Path, store: Path, capsys: pytest.CaptureFixture) -> None:
    """A run folder for each value, and one table of them all; --dry-run's script alone, in a clean folder, is enough for it."""
    settings = [f"--{k}={v}" for k, v in (SMALL | {"train.steps": "2", "data.store": str(store)}).items()]
    words = ["submit", "train", "--config", "debug", "--run-name", "s", "--sweep", "optim.lr=1e-3,3e-4", "--max-running", "2"]
    assert here(slurm, home, *words, "--mem", "1G", "--dry-run", *settings) == 0
    (home / "script").write_text(capsys.readouterr().out)
    done = slurm.call("sbatch", "--wait", "script", cwd=home, timeout=120)
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in (home / "runs/s").glob("*.out"))
    table = pants_dist(slurm, home, "status", "runs/s").splitlines()
    assert [line.split()[:3] for line in table[1:3]] == [
        ["optim.lr=1e-3", "train", "done"], ["optim.lr=3e-4", "train", "done"],
    ]  # fmt: skip
    assert config.load(home / "runs/s/optim.lr=3e-4/config.yaml", []).optim.lr == 3e-4
    assert submitted(home / "runs/s/optim.lr=3e-4")[0].log.is_file()


STUB = """#!/bin/bash
asked() { grep -qsx "$PANTS_DIST_ATTEMPT" runs/s/*/stop-request; }
while [ -e hold ] && ! asked; do sleep 0.1; done
! asked || exit 75
"""


def test_scripts_stand_alone(slurm: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that somebody else gives to sbatch is known to `status` and `cancel`, once in the list however often it begins.

    `cancel` of a sweep is that of its runs. Where there is no scontrol the log says how the job goes on.
    """
    monkeypatch.chdir(home)
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    program = home / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(STUB)
    program.chmod(0o755)
    (home / "hold").touch()
    site, asked = Site(environment_path=str(home / "env")), Resources(mem="100M", cpus_per_task=1)
    runs = [Path("runs/s/a"), Path("runs/s/$(touch hit) 'b")]

    def given_to_sbatch(site: Site) -> str:
        stage = train_stage(runs, Path("runs/s"), 2, asked, home, ["a: 1\n", "a: 2\n"])
        Path("script").write_text(jobs.text([stage], site, None))
        job = slurm.call("sbatch", "--parsable", "script", cwd=home).stdout.strip()
        until(lambda: submitted(runs[0]) and submitted(runs[0])[-1].job == f"{job}_0", 20)
        return job

    job = given_to_sbatch(site)
    slurm.call("scancel", "--batch", "--signal=USR1", f"{job}_0")
    until(lambda: slurm.job(f"{job}_0", "Restarts") == "1", 20)
    until(lambda: jobs.in_queue(Path("runs/s")).get(f"{job}_0") == State("RUNNING", "None"), 30)
    assert [each.job for each in submitted(runs[0])].count(f"{job}_0") == 1 and submitted(runs[0])[-1].log.is_file()
    assert [path.read_text() for path in Path("runs/s/a").glob("config.yaml")] == ["a: 1\n"]
    assert Path("runs/s/submit.sbatch").read_text() == Path("script").read_text()
    assert f"{job}_0" in jobs.withdraw(Path("runs/s"), now=False)
    until(lambda: not jobs.in_queue(Path("runs/s")), 30)
    slurm.call("scancel", "--user=root")

    job = given_to_sbatch(replace(site, setup=("command() { return 1; }",)))  # as where scontrol is missing
    slurm.call("scancel", "--batch", "--signal=USR1", f"{job}_0")
    assert slurm.ended(f"{job}_0") == "FAILED"
    assert "no scontrol here to requeue by, so: sbatch runs/s/submit.sbatch" in submitted(runs[0])[-1].log.read_text()
    assert not list(home.rglob("hit"))


@pytest.mark.long
@pytest.mark.parametrize("how", ["notice", "requeue"])
def test_five_requeues_in_a_row(how: str, slurm: Cluster, home: Path, store: Path) -> None:
    """With notice no step is done twice, and without none is missing: the losses are an uninterrupted run's."""
    changes = {"train__steps": "100000", "train__checkpoint_minutes": "0.05"}
    job, run = submit_training(slurm, home, store, how, **changes), home / "runs" / how
    for attempt in range(1, 6):
        until(lambda n=attempt: later(run, n, 20 * n), 100)
        words = ("scontrol", "requeue", job) if how == "requeue" else ("scancel", "--batch", "--signal=USR1", job)
        slurm.call(*words)
    until(lambda: later(run, 6, 120), 100)
    pants_dist(slurm, home, "cancel", run)
    assert slurm.ended(job) == "CANCELLED" and slurm.job(job, "Restarts") == "5"
    rows, lines = read_metrics(run), (run / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and (how == "requeue" or len(lines) == len(rows))
    assert [row["train/loss"] for row in rows[:STEPS]] == whole_losses(store, home)


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
