"""The run folder: settings, metrics and state on disk always, to W&B if asked. Rank 0 writes, anyone reads.

config.yaml      the settings as resolved; the run can be started again from it
metrics.jsonl    one line a log event: step, attempt, time, host and the metrics by their slashed names
summary.json     last step, rate, state, heartbeat, last metrics; replaced atomically; what status reads first
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

from pants_dist.disk import replacing
from pants_dist.errors import UserError

WandbMode = Literal["off", "offline", "online"]


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
    path = run / "metrics.jsonl"
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill tore; a later attempt begins a new one
        if row["attempt"] not in {earlier["attempt"] for earlier in list(by_step.values())[-1:]}:
            by_step = {step: earlier for step, earlier in by_step.items() if step < row["step"]}
        by_step[row["step"]] = by_step.get(row["step"], {}) | row
    return [by_step[step] for step in sorted(by_step)]


def mark(run: Path, state: str, error: str | None = None) -> None:
    """Leave word in summary.json how an attempt ended that could not say so itself, and why."""
    write_atomically(run / "summary.json", json.dumps(read_summary(run) | {"state": state, "error": error}))


class Tracker:
    """Writes one attempt of a run. Every rank makes one; only rank 0's writes anything."""

    def __init__(self, run: Path, settings: dict[str, Any], steps: int, wandb_mode: WandbMode, writes: bool) -> None:
        self.run, self.steps, self.writes = run, steps, writes
        self.attempt = read_summary(run).get("attempt", 0) + 1
        self.host = socket.gethostname()
        self.last: dict[str, float] = {}
        self.wandb = _wandb_run(run, settings, wandb_mode) if writes else None
        if writes:
            self._mend_last_line()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line; the same dict goes to W&B under the x axis trainer/global_step."""
        if not self.writes:
            return
        line = {"step": step, "attempt": self.attempt, "time": time.time(), "host": self.host, **metrics}
        with open(self.run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.last |= metrics
        self.state("running", step)
        if self.wandb:
            self.wandb.log({"trainer/global_step": step, **metrics})

    def state(self, state: str, step: int) -> None:
        """Replace summary.json: `state` is running, stopped (on request; resumable) or finished."""
        if self.writes:
            row = {"state": state, "step": step, "steps": self.steps, "attempt": self.attempt, "heartbeat": time.time()}
            write_atomically(self.run / "summary.json", json.dumps({**row, "host": self.host, "metrics": self.last}))

    def close(self) -> None:
        if self.wandb:
            self.wandb.finish()

    def _mend_last_line(self) -> None:
        path = self.run / "metrics.jsonl"
        if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n")


def _wandb_run(run: Path, settings: dict[str, Any], mode: WandbMode) -> Any:
    if mode == "off":
        return None
    import wandb

    try:
        return wandb.init(
            project="pants-dist", name=run.name, id=_wandb_id(run), dir=run, config=settings, mode=mode, resume="allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True, init_timeout=30),
        )  # fmt: skip
    except Exception as error:  # no account, no network: wandb has an error class for each
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"tracking.wandb {mode}: W&B refused ({reason}); use --tracking.wandb offline") from error


def _wandb_id(run: Path) -> str:
    """One id a run folder, so that a resumed run goes on as the same W&B run."""
    path = run / "wandb-id"
    if not path.is_file():
        write_atomically(path, os.urandom(4).hex())
    return path.read_text().strip()
