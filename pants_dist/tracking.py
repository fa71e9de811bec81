"""The run folder: settings, metrics and state, all on disk. Rank 0 writes, anyone reads; mirror.py carries it to W&B.

config.yaml      the settings as resolved; the run can be started again from it
metrics.jsonl    one line a log event: step, attempt, time, host and the metrics by their slashed names
summary.json     last step, rate, state, heartbeat, machine, last metrics, what slows it down; replaced atomically
ranks.json       what each rank measured last; gauges.py writes it
"""

import json
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

from pants_dist import __version__
from pants_dist.diagnosis import LONG, Finding, diagnose
from pants_dist.disk import replacing

ATTEMPT = "PANTS_DIST_ATTEMPT"  # environment: which start of a job this is; set by the batch script
STOP_REQUEST = "stop-request"  # a file in the run folder: all ranks save the same step and end
FAILURE = "failure"  # a file in the run folder: which rank failed of its own, and how
UPLOADED = "wandb-uploaded"  # a file in the run folder: how many bytes of metrics.jsonl W&B has, and which evaluation


@cache
def code_version() -> str:
    """Of this code: its version, and the commit where it runs from a git checkout, with a + where files were changed since."""
    folder = Path(__file__).parent
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    if not (folder.parent / ".git").exists():
        return __version__
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return f"{__version__} (git {said.stdout.strip()})" if said.returncode == 0 else __version__


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file whole, so that no reader sees half of it."""
    with replacing(path) as file:
        file.write(text.encode())


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run folder, {} where there is none yet."""
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl as a run without interruptions would have written them, in order of steps.

    Steps that a resumed attempt did again count once, as the later attempt saw them; a torn last line is left out.
    """
    path, rows = run / "metrics.jsonl", list[dict[str, Any]]()
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            append_row(rows, json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that a kill tore; a later attempt begins a new one
    return rows


def append_row(rows: list[dict[str, Any]], row: dict[str, Any]) -> bool:
    """Add a line to those before it; the first of an attempt takes away what the attempt does again. True of such a one."""
    anew = bool(rows) and rows[-1]["attempt"] != row["attempt"]
    while anew and rows and rows[-1]["step"] >= row["step"]:
        rows.pop()
    if rows and rows[-1]["step"] == row["step"]:
        rows[-1] = rows[-1] | row
    else:
        rows.append(row)
    return anew


def validation_folder(run: Path, step: int) -> Path:
    """Where the tables and pictures of the validation after this step are."""
    return run / "validation" / f"step={step:06d}"


def logged_bytes(run: Path) -> int:
    """Size of metrics.jsonl, 0 where there is none yet."""
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.is_file() else 0


def evaluation_stamp(run: Path) -> int:
    """Changes when the run is evaluated; 0 before."""
    return max((table.stat().st_mtime_ns for table in run.glob("evaluation/*/centers.parquet")), default=0)


def mark(run: Path, state: str, error: str | None = None) -> None:
    """Leave word in summary.json how an attempt ended that could not say so itself, and why."""
    write_atomically(run / "summary.json", json.dumps(read_summary(run) | {"state": state, "error": error}))


class Tracker:
    """Writes one attempt of a run. Every rank makes one; only rank 0's writes anything."""

    def __init__(self, run: Path, steps: int, machine: dict[str, Any], writes: bool) -> None:
        self.run, self.steps, self.machine, self.writes = run, steps, machine, writes
        self.attempt = read_summary(run).get("attempt", 0) + 1
        self.host = socket.gethostname()
        self.last: dict[str, Any] = {}
        self.recent: list[dict[str, Any]] = []
        self.found: list[Finding] = []  # what slows this attempt down
        if writes:
            self._mend_last_line()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append one line; W&B gets the same metrics, under the x axis trainer/global_step."""
        if not self.writes:
            return
        line = {"step": step, "attempt": self.attempt, "time": time.time(), "host": self.host, **metrics}
        with open(self.run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.last |= metrics
        append_row(self.recent, line)
        del self.recent[:-LONG]
        self.found = diagnose(self.recent)
        self.state("running", step)

    def state(self, state: str, step: int) -> None:
        """Replace summary.json: `state` is running, stopped (on request; resumable) or finished."""
        if self.writes:
            row = {"state": state, "step": step, "steps": self.steps, "attempt": self.attempt, "heartbeat": time.time()}
            row |= {"host": self.host, "machine": self.machine, "metrics": self.last}
            row["slow"] = [f"{one.words}; {one.cure}" for one in self.found]
            write_atomically(self.run / "summary.json", json.dumps(row))

    def _mend_last_line(self) -> None:
        path = self.run / "metrics.jsonl"
        if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n")
