"""wandb's real client talks to a stand-in for its server on loopback; run folders are written by the real Tracker."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from wandb_server import Received, WandbServer

from pants_dist import __version__, config, uploads
from pants_dist.cli import main
from pants_dist.evaluate import ood_metrics
from pants_dist.pictures import Plane, write_plane
from pants_dist.tracking import Tracker, code_version, read_metrics, validation_folder
from pants_dist.uploads import following, upload

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that takes everything, and a home without any trace of W&B."""
    with WandbServer() as server:
        for name, value in (("WANDB_BASE_URL", server.url), ("WANDB_API_KEY", "a" * 40), ("HOME", str(tmp_path / "home"))):
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


def run_folder(run: Path, *more: str) -> Path:
    run.mkdir(parents=True)
    settings = config.load("debug", ["--data.store", "s", *more])
    (run / "config.yaml").write_text("# pants-dist 1.2.3, store abc\n" + config.dump(settings))
    return run


def received_of(server: WandbServer, run: Path) -> Received:
    return server.runs[(run / "wandb-id").read_text()]


def attempt(run: Path, first: int, last: int, state: str = "running") -> None:
    """One attempt's lines, as a run writes them: train/ at every step, val/ besides at every fifth."""
    tracker = Tracker(run, 40, {"cpus": 3}, writes=True)
    for step in range(first, last + 1):
        tracker.log(step, {"train/loss": 1 / step})
        if step % 5 == 0:
            tracker.log(step, {"val/dsc": step / 100})
    tracker.state(state, last)


def test_five_requeues_are_one_run(server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Killed five times, each time gone on with from some steps before, uploaded in between: every step once, and whole."""
    run = run_folder(tmp_path / "runs" / "r")
    attempt(run, 1, 10)
    attempt(run, 8, 15)
    assert main(["sync", str(run)]) == 0
    attempt(run, 11, 22)
    attempt(run, 21, 22)
    assert main(["sync", str(run)]) == 0
    attempt(run, 20, 33)
    attempt(run, 31, 40, "finished")
    assert main(["sync", str(run.parent)]) == 0
    (received,) = server.runs.values()
    assert received.steps == [row["_step"] for row in received.rows] == list(range(1, 41))
    assert [row["train/loss"] for row in received.rows] == [1 / step for step in range(1, 41)]
    assert [row["trainer/global_step"] for row in received.rows if "val/dsc" in row] == list(range(5, 41, 5))
    assert server.unknown == []
    server.status = 500
    capsys.readouterr()
    assert main(["sync", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run}: nothing new\n")


def test_what_a_run_is_goes_with_it(server: WandbServer, tmp_path: Path) -> None:
    """Settings, code version, machine and times arrive; the run keeps its name; nothing is left in the folder or at home."""
    run = run_folder(tmp_path / "first", "--optim.lr", "0.5")
    attempt(run, 1, 3, "finished")
    assert not upload(run, 20).failed
    received = received_of(server, run)
    assert received.name == "first" and received.config["optim"]["lr"] == 0.5
    assert received.config["about"] == "pants-dist 1.2.3, store abc" and received.config["machine"] == {"cpus": 3}
    assert [row["_timestamp"] for row in received.rows] == [row["time"] for row in read_metrics(run)]
    axes = received.config["_wandb"]["m"]
    assert axes[0]["1"] == "trainer/global_step" and axes[1]["2"] == "*" and axes[1]["5"] == 1
    assert not (run / "wandb").exists() and not list((tmp_path / "home").rglob("*wandb*"))


def test_the_code_is_named_by_its_commit() -> None:
    """In a checkout, with a + where something was changed since; else the version alone."""
    folder = Path(uploads.__file__).parent.parent
    asked = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True)
    found = re.fullmatch(re.escape(__version__) + r"(?: \(git (\w{12})\+?\))?", code_version())
    assert found and (found[1] == asked.stdout[:12] if asked.returncode == 0 else found[1] is None)


CENTERS = pd.DataFrame({"center": ["Center A", "Center B"], "n": [3, 4], "dsc/liver": [0.9, 0.4]})


def scored(folder: Path) -> None:
    """The table and the picture that a validation or an evaluation leaves."""
    (folder / "worst").mkdir(parents=True)
    CENTERS.to_parquet(folder / "centers.parquet")
    masks = np.zeros((2, 40, 30), np.uint8)
    masks[0, 10:20, 5:9], masks[1, 12:22, 5:9] = 1, 1
    gray = np.arange(1200, dtype=np.uint8).reshape(40, 30)
    write_plane(folder / "worst" / "case7.npz", Plane("case7, Dice 0.400", ("pancreas",), gray, *masks))


def test_all_that_is_logged_arrives(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very dict of metrics.jsonl, words too; the table by center as a Table; the worst case as an image with both masks.

    On its way it lies in the run folder alone: nothing is left in /tmp, which on compute nodes is small.
    """
    monkeypatch.setenv("TMPDIR", str(temporary := tmp_path / "tmp"))
    temporary.mkdir()
    run = run_folder(tmp_path / "r")
    tracker = Tracker(run, 5, {}, writes=True)
    tracker.log(4, {"train/loss": 0.5, "ranks/slowest": 3, "ranks/slowest_node": "gpu2"})
    tracker.log(5, {"val/dsc": 0.25, "val/center/Center A/dsc": 0.9})
    scored(validation_folder(run, 5))
    (validation_folder(run, 5) / "worst" / "case8.npz").write_bytes(b"torn")
    tracker.state("finished", 5)
    assert not upload(run, 20).failed
    received = received_of(server, run)
    for row, logged in zip(received.rows, read_metrics(run), strict=True):
        assert {name: row[name] for name in logged if "/" in name} == {name: logged[name] for name in logged if "/" in name}
    table, worst = received.rows[1]["val/centers"], received.rows[1]["val/worst"]
    content = json.loads(received.files[table["path"]])
    assert table["_type"] == "table-file" and content["columns"] == list(CENTERS)
    assert content["data"] == CENTERS.to_numpy().tolist()
    assert (worst["count"], worst["width"], worst["height"], worst["captions"]) == (1, 30, 40, ["case7, Dice 0.400"])
    image = imread(io.BytesIO(received.files[worst["filenames"][0]]))
    assert np.rint(255 * image[..., 0] if image.ndim == 3 else 255 * image).astype(int)[39, 29] == 1199 % 256
    masks = worst["all_masks"][0]
    for name, rows in (("reference", slice(10, 20)), ("prediction", slice(12, 22))):
        pixels = np.rint(255 * imread(io.BytesIO(received.files[masks[name]["path"]]))).astype(int)
        pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
        assert pixels[rows, 5:9].all() and pixels.sum() == 40
    assert not list(temporary.iterdir()) and server.unknown == []


def test_an_evaluation_goes_to_the_summary(server: WandbServer, tmp_path: Path) -> None:
    """Also one that came after all steps were sent: once, with table and picture, and no step more."""
    run = run_folder(tmp_path / "r")
    attempt(run, 1, 3, "finished")
    assert not upload(run, 20).failed
    scored(run / "evaluation" / "held_out")
    assert not upload(run, 20).failed and upload(run, 20).words == "nothing new"
    received = received_of(server, run)
    table, worst = (received.summary[f"evaluation/held_out/{name}"] for name in ("centers", "worst"))
    assert json.loads(received.files[table["path"]])["data"] == CENTERS.to_numpy().tolist()
    assert worst["filenames"][0] in received.files and set(worst["all_masks"][0]) == {"reference", "prediction"}
    assert received.steps == [1, 2, 3] and received.summary["train/loss"] == 1 / 3


def test_centers_with_a_metric_of_their_own_are_bounded() -> None:
    """Of 145 centers the 32 with the most cases have one, however many structures are learnt; means are over all."""
    rows = [
        {"center": f"Center {n % 145}", "seen": n % 2 == 0, "dsc/liver": n / 400, "dsc/pancreas": 0.5} for n in range(400)
    ]  # fmt: skip
    metrics = ood_metrics(rows, ("liver", "pancreas"))
    assert sum(name.startswith("val/center/") for name in metrics) == 32 and len(metrics) == 32 + 2 * 3


def test_many_runs_at_once_and_killed_on_the_way(server: WandbServer, tmp_path: Path) -> None:
    """Two runs are sent at the same time; a sync that is killed is gone on with, and no step comes twice."""
    runs = [run_folder(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        attempt(run, 1, 40, "finished")
    server.delay_s = 0.4
    words = [sys.executable, "-m", "pants_dist", "sync", str(tmp_path), "--workers", "2"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while not any(run.history for run in server.runs.values()):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert main(["sync", str(tmp_path), "--workers", "2"]) == 0
    assert server.most_at_once == 2
    assert [received_of(server, run).steps for run in runs] == [list(range(1, 41))] * 2


def test_wandb_s_own_sync(server: WandbServer, tmp_path: Path) -> None:
    """`sync --offline` asks no server; what it writes the real `wandb sync` sends: one run, each step once, also when twice."""
    run = run_folder(tmp_path / "first")
    attempt(run, 1, 20)
    attempt(run, 16, 30)
    server.status = 500
    for _ in range(2):
        assert main(["sync", str(run), "--offline"]) == 0
        attempt(run, 26, 40, "finished")
    server.status = 200
    assert main(["sync", str(run), "--offline"]) == 0
    (folder,) = (run / "wandb").glob("offline-run-*")
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "wandb", "sync", str(folder)], check=True, stdout=subprocess.DEVNULL)
    (received,) = server.runs.values()
    assert received is received_of(server, run) and received.steps == list(range(1, 41))
    assert received.name == "first" and received.config["optim"]["lr"] > 0


def test_an_upload_that_broke_off_goes_on(server: WandbServer, tmp_path: Path) -> None:
    """A server that stops taking rows half-way gets the others later, none twice."""
    run = run_folder(tmp_path / "r")
    attempt(run, 1, 20)
    assert not upload(run, 20).failed
    attempt(run, 20, 40, "finished")
    server.rows_taken = 30
    assert upload(run, 2).failed and received_of(server, run).steps == list(range(1, 20))
    server.rows_taken = 1_000_000
    assert not upload(run, 20).failed and received_of(server, run).steps == list(range(1, 41))


@pytest.mark.parametrize("trouble", ["refuses", "is slow", "is not there", "no key"])
def test_a_server_that_does_not_answer_costs_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, trouble: str
) -> None:
    """A run that goes on beside it ends in time, all of it is on the disk, one line says what to do; later it is sent."""
    run = run_folder(tmp_path / "r", "--tracking.wandb", "online")
    monkeypatch.setattr(uploads, "LIVE_PATIENCE_S", 3.0)
    server.status, server.delay_s = (403 if trouble == "refuses" else 200), (60.0 if trouble == "is slow" else 0.0)
    if trouble == "is not there":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    with following(run):
        attempt(run, 1, 10, "finished")
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 11))
    said = capfd.readouterr().err
    assert f"when it answers: pants-dist sync {run}" in said and "Traceback" not in said
    server.status, server.delay_s = 200, 0.0
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert not upload(run, 20).failed and received_of(server, run).steps == list(range(1, 11))
