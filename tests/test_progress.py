import json
import threading
import time
from pathlib import Path

import pytest

from pants_dist.progress import Pace, shown, watching
from pants_dist.tracking import Tracker


def test_pace_gives_rate_and_time_left() -> None:
    """Cases a second above one, a minute below; from the last minute alone."""
    now = [0.0]
    pace = Pace("cases", lambda: now[0])
    assert pace.words(0, 100) == "starting"
    now[0] = 10
    assert pace.words(20, 100) == "2.0 cases/s, 0:00:40 left"
    now[0] = 100
    assert pace.words(21, 100) == "0.7 cases/min, 1:58:30 left"
    now[0] = 110
    assert pace.words(100, 100).endswith(", took 0:01:50")


def test_what_was_done_before_does_not_count_as_fast() -> None:
    """A run that goes on at step 900 of 1000 has its rate from what it does now."""
    now = [0.0]
    pace = Pace("steps", lambda: now[0])
    pace.words(900, 1000)
    now[0] = 10
    assert pace.words(920, 1000) == "2.0 steps/s, 0:00:40 left"


def test_a_log_gets_plain_lines(capsys: pytest.CaptureFixture) -> None:
    """Without a terminal: whole lines on stderr, the first and the last always, in between at most one each 10 s."""
    with shown("convert") as tell:
        for done in range(1, 501):
            tell(done, 500, {"not": "shown"})
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and len(lines) == 2
    assert lines[0].startswith("convert: 1 of 500 cases") and lines[1].startswith("convert: 500 of 500 cases")


def test_a_run_is_watched_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Steps and loss come from summary.json; what an earlier attempt left there is not shown."""
    old = {"state": "stopped", "step": 3, "steps": 9, "heartbeat": time.time() - 100, "metrics": {}}
    (tmp_path / "summary.json").write_text(json.dumps(old))

    def train() -> None:
        tracker = Tracker(tmp_path, 9, {}, writes=True)
        tracker.state("running", 3)
        time.sleep(0.8)
        tracker.log(9, {"train/loss": 0.25})

    with watching(tmp_path):
        time.sleep(0.6)
        assert capsys.readouterr().err == ""
        trainer = threading.Thread(target=train)
        trainer.start()
        trainer.join()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 3 of 9 steps") and lines[-1].endswith("loss 0.250")
