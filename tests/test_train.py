import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import make_store, plan_of

from pants_dist import config, train
from pants_dist.errors import UserError
from pants_dist.tracking import read_metrics, read_summary

pytestmark = pytest.mark.timeout(300)
SMALL = [
    "--data.patch_zyx",
    "[16, 32, 32]",
    "--model.channels",
    "[4, 8, 16]",
    "--tracking.wandb",
    "off",
    "--train.log_every",
    "1",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("train") / "store", cases=6)


def settings(store: Path, runs: Path, steps: int, *more: str) -> config.Settings:
    return config.load(
        "debug", ["--data.store", str(store), "--runs", str(runs), "--train.steps", str(steps), *SMALL, *more]
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in read_metrics(run)]


STEPS = 24
SPLIT = ["--validation.every", "12", "--data.held_out_centers", '["Center C"]']
LAUNCH = "import sys; from pants_dist import config, train; sys.exit(train.launch(config.load(sys.argv[1], []), sys.argv[2]))"


@pytest.fixture(scope="module")
def uninterrupted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks fed by Ray, in one go, validated on the way."""
    runs = tmp_path_factory.mktemp("whole")
    assert train.launch(settings(store, runs, STEPS, *SPLIT), "whole") == 0
    return runs / "whole"


def started(wanted: config.Settings, folder: Path) -> subprocess.Popen:
    """The run "again", launched in a process of its own, once it has logged three steps; it speaks into folder/log."""
    (folder / "config.yaml").write_text(config.dump(wanted))
    command = [sys.executable, "-c", LAUNCH, str(folder / "config.yaml"), "again"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    while len(read_metrics(folder / "again")) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    return process


def children(pid: int) -> list[int]:
    """Processes below this one, however deep."""
    found = [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


def test_a_run_leaves_what_the_design_promises(uninterrupted: Path) -> None:
    """Settings, metrics with the share of waiting from the first line, a summary, checkpoints and validation tables."""
    rows = read_metrics(uninterrupted)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all({"attempt", "time", "host", "train/loss", "loader/wait_fraction"} <= set(row) for row in rows)
    assert {"val/dsc", "val_ood/dsc/liver", "val/center/Center C/dsc"} <= set(rows[11])
    assert read_summary(uninterrupted)["state"] == "finished" and read_summary(uninterrupted)["step"] == STEPS
    assert config.load(uninterrupted / "config.yaml", []).train.steps == STEPS
    for name in (
        "checkpoints/best.ckpt",
        "validation/step=000012/cases.parquet",
        "validation/step=000024/centers.parquet",
    ):
        assert (uninterrupted / name).is_file()


def test_a_stop_and_a_resume_change_nothing(store: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """SIGTERM saves and exits with 75; the same command goes on: weights and losses of the uninterrupted run, bit for bit.

    The second run is read by local processes instead of Ray, so the two kinds of loader are held to the same weights.
    """
    wanted = settings(store, tmp_path, STEPS, *SPLIT, "--loader.kind", "local")
    process = started(wanted, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == train.REQUEUE
    assert read_summary(tmp_path / "again")["state"] == "stopped"
    assert 0 < read_summary(tmp_path / "again")["step"] < STEPS
    assert train.launch(wanted, "again") == 0
    assert losses(tmp_path / "again") == losses(uninterrupted)
    assert all(
        torch.equal(tensor, weights(uninterrupted)[name]) for name, tensor in weights(tmp_path / "again").items()
    )


def test_a_killed_run_leaves_no_process_and_goes_on(store: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """SIGKILL takes ranks and Ray with it; the same command resumes from the last checkpoint and loses no step."""
    wanted = settings(store, tmp_path, STEPS, *SPLIT, "--train.checkpoint_minutes", "0.0001")
    process = started(wanted, tmp_path)
    below = children(process.pid)
    assert len(below) > 4
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while (left := [pid for pid in below if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [Path(f"/proc/{pid}/status").read_text() for pid in left]
    assert train.launch(wanted, "again") == 0
    assert losses(tmp_path / "again") == losses(uninterrupted)


def test_a_killed_raylet_ends_the_run(store: Path, tmp_path: Path) -> None:
    """Without Ray's node the run ends within a minute with the first error said, and leaves no process behind."""
    process = started(settings(store, tmp_path, 100_000, "--train.checkpoint_minutes", "0.0001"), tmp_path)
    below = children(process.pid)
    raylets = [pid for pid in below if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet")]
    assert len(raylets) == 1
    os.kill(raylets[0], signal.SIGKILL)
    assert process.wait(60) == 1
    assert "Raylet is terminated" in (tmp_path / "log").read_text()
    deadline = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in below if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_other_settings_in_a_run_that_exists_are_refused(store: Path, uninterrupted: Path) -> None:
    """Only train.steps may differ, and only grow; anything else is named with both values."""
    runs = uninterrupted.parent
    for changed in (["--optim.lr", "0.5"], ["--train.steps", "6"]):
        with pytest.raises(UserError, match=f"{changed[0][2:]} was .* and is now {changed[1]}"):
            train.launch(settings(store, runs, STEPS, *SPLIT, *changed), "whole")


def test_a_checkpoint_of_another_plan_is_refused(store: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """The same run name on a store with other cases: refused by the plan's digest, naming the checkpoint."""
    from pants_dist.store import open_store

    other = open_store(make_store(tmp_path / "other", cases=12))
    plan = plan_of(other, config.load(uninterrupted / "config.yaml", []))
    with pytest.raises(UserError, match=r"last\.ckpt: was trained on another plan"):
        train.resume_step(uninterrupted / "checkpoints" / "last.ckpt", plan)


def test_a_center_that_does_not_exist_is_refused(store: Path, tmp_path: Path) -> None:
    """A held-out center that the store does not have is named before anything starts, with those that it has."""
    with pytest.raises(UserError, match="no center 'Nowhere'.*Center A, Center B, Center C"):
        train.launch(settings(store, tmp_path, 1, "--data.held_out_centers", '["Nowhere"]'), "x")


def test_holding_out_every_center_leaves_nothing(store: Path, tmp_path: Path) -> None:
    """No cases left after a split is one line."""
    with pytest.raises(UserError, match="no cases to train on"):
        train.launch(
            settings(store, tmp_path, 1, "--data.held_out_centers", '["Center A", "Center B", "Center C"]'), "x"
        )


def test_validation_without_cases_is_refused(store: Path, tmp_path: Path) -> None:
    """Validating during training needs a case that was kept for it: said before anything starts."""
    with pytest.raises(UserError, match="no case is kept for validation"):
        train.launch(settings(store, tmp_path, 1, "--validation.every", "1", "--data.val_fraction", "0"), "x")


def test_metrics_are_read_without_gap_or_double(tmp_path: Path) -> None:
    """Steps that a resumed attempt did again count once, and a line that a kill tore is passed over."""
    lines = [{"step": step, "attempt": 1, "train/loss": 1.0} for step in (1, 2, 3)]
    lines += [{"step": step, "attempt": 2, "train/loss": 2.0} for step in (2, 3, 4)]
    text = (
        "\n".join(json.dumps(line) for line in lines[:3])
        + '\n{"step": 4, "att\n'
        + "\n".join(json.dumps(line) for line in lines[3:])
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
