"""Who is waited for, when a step hangs."""

import os
import signal
import time
from pathlib import Path

import pytest
from small import launched, make_store, rank_process

from pants_dist import config
from pants_dist.heartbeat import Doing, in_words, waited_for
from pants_dist.tracking import read_metrics, read_summary


def test_the_rank_that_is_the_least_far_is_waited_for() -> None:
    """By step, then by phase; one that does not answer before all others."""
    ranks = {0: Doing("a", 7, "backward", 61), 1: Doing("a", 7, "reading", 62), 2: Doing("b", 7, "backward", 60)}
    assert waited_for(ranks, set()) == [1]
    assert in_words(ranks, set()) == "step 8 hangs: waiting for rank 1 on a (reading, 62 s)"
    assert in_words(ranks, {2}) == "step 8 hangs: waiting for rank 2 on b (backward, does not answer, 60 s)"
    stale = ranks | {2: Doing("b", 3, "starting", 0)}
    assert in_words(stale, {2}).startswith("step 8 hangs: waiting for rank 2 on b (starting, does not answer")
    behind = ranks | {3: Doing("c", 6, "checkpoint", 99)}
    assert in_words(behind, set()) == "step 7 hangs: waiting for rank 3 on c (checkpoint, 99 s)"
    alike = {rank: Doing("a", 7, "backward", 61) for rank in range(4)}
    assert "all ranks are at the same thing" in in_words(alike, set())
    many = in_words({rank: Doing("a", 7, "reading", 61) for rank in range(12)} | {12: Doing("a", 7, "update", 1)}, set())
    assert many.endswith("and 4 more")


@pytest.mark.timeout(120)
def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    """One of three ranks is stopped in its step: another says which and where; once it goes on, so does the run."""
    store = make_store(tmp_path / "store", cases=6)
    wanted = config.load("debug", [
        f"--data.store={store}", f"--runs={tmp_path}", "--train.steps=200", "--train.ranks=3", "--train.batch=3",
        "--train.micro_batch=1", "--data.patch_zyx=[16, 32, 32]", "--model.channels=[4, 8, 16]", "--loader.kind=local",
        "--tracking.wandb=off", "--train.log_every=1",
    ])  # fmt: skip
    run, log = tmp_path / "run", tmp_path / "log"
    process = launched(wanted, "run", PANTS_DIST_LATE_S="3")
    victim = rank_process(process.pid, 1)
    try:
        os.kill(victim, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while "hangs" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        done = len(read_metrics(run))
        os.kill(victim, signal.SIGCONT)
        said = [line for line in log.read_text().splitlines() if "hangs" in line]
        assert len(said) == 1 and "waiting for rank 1 on " in said[0] and "does not answer" in said[0]
        assert f"step {done} hangs" in said[0] or f"step {done + 1} hangs" in said[0]
        assert process.wait(90) == 0 and read_summary(run)["state"] == "finished"
    finally:
        process.kill()
