import json
import os
import signal
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small import launched, make_store, plan_of, trained_here

from pants_dist import config, launch
from pants_dist.casefile import RECORD
from pants_dist.checkpoints import last_checkpoint, resume_step
from pants_dist.errors import DamagedError, UserError
from pants_dist.store import open_store, write_case, write_manifest
from pants_dist.tracking import read_metrics, read_summary
from pants_dist.train import intensity_of

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
    "--optim.ema",
    "0.9",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("train") / "store", cases=6)


def settings(store: Path, runs: Path, steps: int, *more: str) -> config.Settings:
    return config.load(
        "debug", ["--data.store", str(store), "--runs", str(runs), "--train.steps", str(steps), *SMALL, *more]
    )


WHOLE = "state_dict", "optimizer_states", "average", "global_step", "intensity", "plan", "callbacks", "skipped_steps"


def saved(run: Path) -> dict[str, Any]:
    """All of the last checkpoint that must not depend on interruptions."""
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: kept[name] for name in WHOLE}


def metrics(run: Path) -> list[dict[str, Any]]:
    """All that was logged but for what a clock decides."""
    clocks = ("attempt", "time", "host", "train/samples_per_s", "loader/", "ranks/", "ray/", "time/")
    return [{name: value for name, value in row.items() if not name.startswith(clocks)} for row in read_metrics(run)]


def assert_equal(one: Any, other: Any) -> None:
    """To the bit, however deep."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


STEPS = 24
SPLIT = ["--validation.every", "12", "--data.held_out_centers", '["Center C"]']


@pytest.fixture(scope="module")
def uninterrupted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks fed by Ray, in one go, validated on the way."""
    runs = tmp_path_factory.mktemp("whole")
    assert launch.launch(settings(store, runs, STEPS, *SPLIT), "whole") == 0
    return runs / "whole"


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
    ours = config.load(uninterrupted / "config.yaml", [])
    opened = open_store(ours.data.store)
    assert saved(uninterrupted)["intensity"] == asdict(intensity_of(opened, plan_of(opened, ours).cases))
    for name in (
        "checkpoints/best.ckpt",
        "validation/step=000012/cases.parquet",
        "validation/step=000024/centers.parquet",
    ):
        assert (uninterrupted / name).is_file()


def test_a_stop_and_a_resume_change_nothing(store: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """SIGTERM saves and exits with 75; the same command goes on: weights, average, optimizer and metrics, bit for bit.

    The second run is read by local processes instead of Ray, so the two kinds of loader are held to the same weights.
    """
    wanted = settings(store, tmp_path, STEPS, *SPLIT, "--loader.kind", "local")
    process = launched(wanted, "again")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == launch.REQUEUE
    assert read_summary(tmp_path / "again")["state"] == "stopped"
    assert 0 < read_summary(tmp_path / "again")["step"] < STEPS
    assert launch.launch(wanted, "again") == 0
    assert metrics(tmp_path / "again") == metrics(uninterrupted)
    assert_equal(saved(tmp_path / "again"), saved(uninterrupted))


def test_a_killed_run_leaves_no_process_and_goes_on(store: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """SIGKILL takes ranks and Ray with it; the same command resumes from the last checkpoint and loses no step."""
    wanted = settings(store, tmp_path, STEPS, *SPLIT, "--train.checkpoint_minutes", "0.0001")
    process = launched(wanted, "again")
    below = children(process.pid)
    assert len(below) > 4
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while (left := [pid for pid in below if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [Path(f"/proc/{pid}/status").read_text() for pid in left]
    assert launch.launch(wanted, "again") == 0
    assert metrics(tmp_path / "again") == metrics(uninterrupted)
    assert_equal(saved(tmp_path / "again"), saved(uninterrupted))


LOCAL = ["--loader.kind", "local", "--train.micro_batch", "1"]
ALONE = ["--loader.kind", "local", "--train.ranks", "1", "--train.micro_batch", "4"]


SGD = ["--optim.name", "sgd", "--optim.lr", "1e-2"]  # Adam makes steps of what is nothing but rounding


def test_other_numbers_of_ranks_train_the_same(store: Path, tmp_path: Path) -> None:
    """Begun on two ranks and ended on one, and all on one: the same samples, and weights alike to 1e-5."""
    stopped(settings(store, tmp_path, STEPS, *SGD, *LOCAL, "--train.ranks", "2"), tmp_path)
    run = trained_here(settings(store, tmp_path, STEPS, *SGD, *ALONE), "again")
    assert_alike(run, trained_here(settings(store, tmp_path, STEPS, *SGD, *ALONE), "one"))


@pytest.mark.long
def test_four_ranks_then_two_then_eight_train_the_same(store: Path, tmp_path: Path) -> None:
    """The same begun on four ranks, resumed on two and then on eight."""
    eight = "--train.batch", "8"
    for ranks in ("4", "2", "8"):
        stopped(settings(store, tmp_path, 200, *SGD, *LOCAL, *eight, "--train.ranks", ranks), tmp_path)
    run = trained_here(settings(store, tmp_path, 200, *SGD, *ALONE, *eight), "again")
    assert_alike(run, trained_here(settings(store, tmp_path, 200, *SGD, *ALONE, *eight), "one"))


def stopped(wanted: config.Settings, folder: Path) -> None:
    """The run "again", stopped some steps after it began or went on."""
    before = len(read_metrics(folder / "again"))
    process = launched(wanted, "again", before + 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == launch.REQUEUE and before < read_summary(folder / "again")["step"] < wanted.train.steps


def assert_alike(some: Path, one: Path) -> None:
    ours, theirs = (saved(run)["state_dict"] for run in (some, one))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5
    losses = [[row["train/loss"] for row in metrics(run)] for run in (some, one)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_channels_last_trains_the_same(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the layout that GPUs get, DDP's buckets lie as the weights do, and the weights are those of the other layout."""
    plain = trained_here(settings(store, tmp_path, 2, *SGD, *ALONE), "plain")
    monkeypatch.setattr("pants_dist.model.layout_of", lambda device_type: torch.channels_last_3d)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Grad strides do not match bucket view strides")
        last = trained_here(settings(store, tmp_path, 2, *SGD, *ALONE), "last")
    kernels = [tensor for tensor in saved(last)["state_dict"].values() if tensor.ndim == 5 and min(tensor.shape[:3]) > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
    assert_alike(last, plain)


def test_a_run_begins_with_another_s_weights(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """train.init_from: heads go by the names of their structures, and what is taken over is said; no step changes them here."""
    few = "--model.name", "dynunet", "--model.structures"
    first = trained_here(settings(store, tmp_path, 1, *ALONE, *few, "[liver, pancreas]"), "first")
    still = "--optim.lr", "1e-12", "--train.init_from", str(first)
    second = trained_here(settings(store, tmp_path, 1, *ALONE, *still, *few, "[pancreas, pancreatic_lesion, liver]"), "second")
    assert "structures pancreas, liver; begun anew: pancreatic_lesion" in capfd.readouterr().out
    theirs, ours = saved(first)["average"]["weights"], saved(second)["state_dict"]
    assert len(theirs["heads.0.conv.conv.bias"]) == 2 and len(ours) == len(theirs)
    for name, tensor in theirs.items():
        mine = ours[f"network.{name}"]
        torch.testing.assert_close(mine[[2, 0]] if name.startswith("heads.") else mine, tensor, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("ranks", "cases"), [
    (3, 1), *(pytest.param(*each, marks=pytest.mark.long) for each in ((2, 1), (2, 3), (3, 3), (4, 1), (4, 3))),
])  # fmt: skip
def test_validation_is_the_same_on_any_number_of_ranks(store: Path, tmp_path: Path, ranks: int, cases: int) -> None:
    """Every case is scored once, on some rank, with the same rows: one of each split, fewer than ranks, or three; no hang."""
    more = *SGD, "--optim.lr", "1e-12", "--train.batch", "12", *SPLIT, "--validation.every", "1"
    more = *more, "--validation.cases", str(cases)
    many = settings(store, tmp_path, 1, *more, *LOCAL, "--train.ranks", str(ranks), "--train.micro_batch", "4")
    assert launch.launch(many, "many") == 0
    one = trained_here(settings(store, tmp_path, 1, *more, *ALONE), "one")
    rows = [pd.read_parquet(run / "validation/step=000001/cases.parquet") for run in (tmp_path / "many", one)]
    pd.testing.assert_frame_equal(*rows, rtol=0, atol=1e-6)
    assert rows[0]["case"].is_unique and (len(rows[0]) == 2 if cases == 1 else len(rows[0]) >= 4)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(store: Path, tmp_path: Path) -> None:
    """One flipped bit in last.ckpt is found, the run goes on from previous.ckpt; with both damaged it is refused."""
    run = trained_here(settings(store, tmp_path, 4, *ALONE), "run")
    longer = settings(store, tmp_path, 6, *ALONE)
    trained_here(longer, "run")
    whole, folder = saved(run), run / "checkpoints"
    flip_a_bit(folder / "last.ckpt")
    with pytest.warns(UserWarning, match=r"last.ckpt: damaged .*; going on from previous.ckpt"):
        assert last_checkpoint(run)[1]["global_step"] == 4
    with pytest.warns(UserWarning, match="going on from previous.ckpt"):
        trained_here(longer, "run")
    assert_equal(saved(run), whole)
    for name in ("last.ckpt", "previous.ckpt"):
        flip_a_bit(folder / name)
    with pytest.raises(DamagedError, match=r"last.ckpt: damaged .*previous.ckpt: damaged .*begin anew"):
        launch.launch(longer, "run")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """A case with NaN for HU ends a run of two ranks, naming step and case; with train.on_nan skip its steps are left out."""
    store = make_store(tmp_path / "store", cases=6)
    spoil(store, "PanTS_00000002")
    some = "--data.val_fraction", "0", "--validation.every", "null"
    two = "--loader.kind", "local", "--train.batch_dice", "true", "--model.name", "dynunet"  # an exchange at every head
    with pytest.raises(UserError, match=r"step \d: the loss of case PanTS_00000002 is not a finite number"):
        launch.launch(settings(store, tmp_path, 4, *two, *some), "stops")
    run = trained_here(settings(store, tmp_path, 4, *ALONE, *some, "--train.on_nan", "skip"), "skips")
    assert 0 < read_metrics(run)[-1]["train/skipped_steps"] < 4
    assert all(torch.isfinite(tensor).all() for tensor in saved(run)["state_dict"].values())


def spoil(store: Path, case: str) -> None:
    """Write a case anew with NaN instead of HU."""
    opened = open_store(store)
    image, codes = opened.read_patch(case, (0, 0, 0), opened.shape_zyx(case))
    record = {name: value for name, value in opened.attributes(case).items() if name in RECORD.names}
    foreground = opened.foreground(case)
    path = opened.case_path(case)
    path.unlink()
    row = write_case(path, record, np.full(image.shape, np.nan, np.float32), codes, foreground)
    write_manifest(store, [row if other["case"] == case else other for other in opened.table.to_pylist()])


@pytest.mark.long
def test_a_killed_raylet_ends_the_run(store: Path, tmp_path: Path) -> None:
    """Without Ray's node the run ends within a minute with the first error said, and leaves no process behind."""
    process = launched(settings(store, tmp_path, 100_000, "--train.checkpoint_minutes", "0.0001"), "again")
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
            launch.launch(settings(store, runs, STEPS, *SPLIT, *changed), "whole")


def test_a_checkpoint_of_another_plan_is_refused(store: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """The same run name on a store with other cases: refused by the plan's digest, naming the checkpoint."""
    other = open_store(make_store(tmp_path / "other", cases=12))
    plan = plan_of(other, config.load(uninterrupted / "config.yaml", []))
    path, kept = last_checkpoint(uninterrupted)
    with pytest.raises(UserError, match=r"last\.ckpt: was trained on another plan .cases, structures of the cases differ"):
        resume_step(path, kept, plan, {})
    ours = config.load(uninterrupted / "config.yaml", [])
    plan, model = plan_of(open_store(ours.data.store), ours), asdict(ours.model)
    assert resume_step(path, kept, plan, model) == STEPS
    with pytest.raises(UserError, match=r"of another network \(model.channels is \(4, 8, 16\) there, \(4, 8\) here\)"):
        resume_step(path, kept, plan, model | {"channels": (4, 8)})


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
    assert [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
