import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small import make_store

from pants_dist import config, jobs, launch, preflight, queue, status
from pants_dist.errors import UserError
from pants_dist.jobs import Submitted
from pants_dist.queue import State
from pants_dist.site import Site
from pants_dist.store import open_store


def run_folder(
    folder: Path, state: str, heartbeat: float | None = None, jobs: tuple[Submitted, ...] = (), done: str = ""
) -> Path:
    """A run at step 40 of 100 that makes two steps a second."""
    (folder / "done").mkdir(parents=True)
    summary = {"state": state, "step": 40, "steps": 100, "attempt": 3, "metrics": {"train/loss": 0.5}}
    summary["heartbeat"] = heartbeat or time.time()
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [{"step": step, "attempt": 3, "time": time.time() + step / 2} for step in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps({"job": job.job, "stage": job.stage, "log": str(job.log), "time": job.time}) for job in jobs]
    if jobs:
        (folder / "jobs.jsonl").write_text("\n".join(lines))
    if done:
        (folder / "done" / done).touch()
    return folder


def only(folder: Path) -> status.Row:
    (row,) = status.rows(folder)
    return row


def test_a_run_that_no_queue_knows_is_told_by_its_heartbeat(tmp_path: Path) -> None:
    """Running while it beats, lost when it has not for long; step, rate, time left and requeues come from the folder."""
    row = only(run_folder(tmp_path / "fresh", "running"))
    assert (row.state, row.step, row.rate, row.left, row.requeues) == ("running", "40 of 100", "2.00/s", "0:00:30", "2")
    assert row.metric == "train/loss 0.500"
    assert only(run_folder(tmp_path / "old", "running", time.time() - 3600)).state == "lost"
    assert only(run_folder(tmp_path / "over", "finished", time.time() - 3600)).state == "finished"


@pytest.fixture
def queue_says(monkeypatch: pytest.MonkeyPatch):
    def says(**states: State) -> None:
        found = {name.removeprefix("j"): state for name, state in states.items()}
        monkeypatch.setattr(status.queue, "states", lambda ids: {job: found[job] for job in ids if job in found})
        monkeypatch.setattr(status.queue, "accounted", lambda ids: {})

    return says


def test_what_the_queue_knows_comes_first(tmp_path: Path, queue_says) -> None:
    """Why a job waits, and that one in the queue has made no step for long; a mark counts where the queue has forgotten."""
    job = Submitted("7", "train", tmp_path / "log", time.time())
    queue_says(j7=State("PENDING", "Resources"))
    row = only(run_folder(tmp_path / "a", "stopped", jobs=(job,)))
    assert (row.state, row.note) == ("PENDING", "waits: Resources")
    queue_says(j7=State("RUNNING"))
    row = only(run_folder(tmp_path / "b", "running", time.time() - 3600, jobs=(job,)))
    assert row.state == "RUNNING" and re.fullmatch(r"stalled since \d\d-\d\d \d\d:\d\d \(no step for 1:0.*\)", row.note)
    queue_says()
    assert only(run_folder(tmp_path / "c", "finished", jobs=(job,), done="train")).state == "done"


def test_slices_are_one_row(tmp_path: Path, queue_says) -> None:
    """How many are done, and the states of those in the queue."""
    parts = tuple(Submitted(f"5_{n}", f"convert-{n}-of-4", tmp_path / "log", time.time()) for n in (1, 2, 3, 4))
    queue_says(j5_2=State("RUNNING"), j5_3=State("RUNNING"), j5_4=State("PENDING", "Resources"))
    folder = run_folder(tmp_path / "convert-s", "", jobs=parts, done="convert-1-of-4")
    row = only(folder)
    assert (row.stage, row.state, row.job, row.step) == ("convert", "RUNNING 2, PENDING 1", "5", "1 of 4")


def test_the_table_leaves_out_what_is_empty() -> None:
    """Columns without any entry are not shown; the others are aligned."""
    row = status.Row("a", "train", "done", step="3 of 3")
    assert status.lines([row, replace(row, run="longer")]) == [
        "run     stage  state  step",
        "a       train  done   3 of 3",
        "longer  train  done   3 of 3",
    ]


def test_a_case_that_is_missing_is_found_before_anything_is_queued(tmp_path: Path) -> None:
    """It is named, with the command that looks closer."""
    store = make_store(tmp_path / "store", cases=4)
    launch.check_cases(open_store(store), preflight.SAMPLED, config.Data(store=""))
    path = store / "cases" / "PanTS_00000002.ozx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="PanTS_00000002.*run pants-dist verify"):
        launch.check_cases(open_store(store), preflight.SAMPLED, config.Data(store=""))


def test_a_node_reads_what_it_is_to_train_on(tmp_path: Path) -> None:
    """A byte that the disk has turned is found before ranks start, though the file has its size."""
    store = make_store(tmp_path / "store", cases=4)
    path = store / "cases" / "PanTS_00000003.ozx"
    whole = bytearray(path.read_bytes())
    whole[int(open_store(store).frame("image_offset").loc["PanTS_00000003", "image_offset"]) + 20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="PanTS_00000003.*run pants-dist verify"):
        launch.check_cases(open_store(store), launch.CASES_READ, config.Data(store=""))
    launch.check_cases(open_store(store), launch.CASES_READ, config.Data(store="", on_damage="skip"))


def test_a_log_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as they come, of one rank alone where it is asked for, until no job of the run is in the queue."""
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LOOKS", 0.01)
    log, looks = tmp_path / "train-7.out", iter([True, True, True, False])
    parts = iter(["[rank0] a\n[rank1] b\n", "[rank10] c\n", "[rank1] d\n"])

    def in_queue(folder: Path) -> dict:
        with open(log, "a") as file:
            file.write(next(parts, ""))
        return {"7": State("RUNNING")} if next(looks) else {}

    monkeypatch.setattr(jobs, "in_queue", in_queue)
    assert list(jobs.follow(log, tmp_path, "1")) == ["[rank1] b\n", "[rank1] d\n"]
    assert len(list(jobs.follow(log, tmp_path, None, on=False))) == 4


def test_a_queue_that_does_not_answer_leaves_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A squeue that fails is said once; the table is there all the same. A torn line of jobs.jsonl is passed over."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    folder = run_folder(tmp_path / "a", "finished", jobs=(Submitted("7", "train", tmp_path / "log", 1.0),))
    with open(folder / "jobs.jsonl", "a") as file:
        file.write('\n{"job": "7", "sta{"job"\n')
    assert only(folder).state == "finished"
    assert "squeue refused: Unable to contact slurm controller; what follows" in capsys.readouterr().err


def test_what_accounting_knows_of_a_job_that_the_queue_forgot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sacct's words, of elements of an array, too: of a job that was requeued how it ended at last."""
    sacct = tmp_path / "sacct"
    sacct.write_text("#!/bin/sh\necho '5_1|COMPLETED\n5_2|CANCELLED by 0\n7|OUT_OF_MEMORY'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = {job: state.word for job, state in queue.accounted(["5_1", "5_2", "8"]).items()}
    assert found == {"5_1": "COMPLETED", "5_2": "CANCELLED"}


def test_a_quota_that_nobody_knows_refuses_nothing(tmp_path: Path) -> None:
    """The site's command is asked first; one that fails or hangs is passed over."""
    assert preflight.quota_lines(Site(quota_command=("echo", "3 of 5 TB")), tmp_path) == ["3 of 5 TB"]
    began = time.monotonic()
    assert preflight.quota_lines(Site(quota_command=("sleep", "60")), tmp_path)
    assert time.monotonic() - began < 2 * preflight.QUOTA_SECONDS  # all are asked at a time
    assert preflight.quota_lines(Site(quota_command=("no-such-command",)), tmp_path)
