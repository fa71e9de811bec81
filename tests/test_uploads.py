"""wandb's real client talks to a stand-in for its server on loopback; run folders are written by the real Tracker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_server import Received, WandbServer

from pants_dist import config, uploads
from pants_dist.cli import main
from pants_dist.tracking import Tracker, read_metrics
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
