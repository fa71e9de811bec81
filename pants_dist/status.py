"""Where everything stands: a row a stage of each run folder. What the queue does not know, the run folder does.

Asked in this order: the queue, the mark that a script leaves when its stage ended well, accounting where the site keeps
it, and the heartbeat in summary.json.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pants_dist import queue
from pants_dist.errors import UserError
from pants_dist.jobs import OVER, RECORD, Submitted, is_done, last_of_each
from pants_dist.tracking import read_metrics, read_summary

SILENT_SECONDS = 600.0  # without a heartbeat, after which a run counts as stalled, or lost where no queue knows it
COLUMNS = ("run", "stage", "state", "job", "step", "rate", "left", "requeues", "last metric", "note")


@dataclass(frozen=True)
class Row:
    """One stage of one run, in words."""

    run: str
    stage: str
    state: str
    job: str = ""
    step: str = ""
    rate: str = ""
    left: str = ""
    requeues: str = ""
    metric: str = ""
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        return (
            self.run, self.stage, self.state, self.job, self.step, self.rate, self.left, self.requeues, self.metric, self.note,
        )  # fmt: skip


def rows(runs: Path) -> list[Row]:
    """Rows of a run folder, or of all that lie in `runs`, also in sweeps. Raises UserError where there are none."""
    if not runs.is_dir():
        raise UserError(f"runs {runs}: no such folder; give the folder of all runs, or that of one")
    folders = list(_run_folders(runs))
    if not folders:
        raise UserError(f"runs {runs}: no run there; start one with pants-dist train or pants-dist submit")
    jobs = {folder: last_of_each(folder) for folder in folders}
    ids = [job.job for of_folder in jobs.values() for job in of_folder.values()]
    try:
        known = queue.states(ids)
    except UserError as error:  # SLURM is down: the run folders still say what they know
        print(f"pants-dist: {error}; what follows is from the run folders alone", file=sys.stderr)
        known = {}
    known = queue.accounted([job for job in ids if job not in known]) | known
    return [row for folder in folders for row in _rows_of(folder, runs, jobs[folder], known)]


def _run_folders(runs: Path) -> Iterator[Path]:
    for folder in (runs, *sorted(runs.glob("*/")), *sorted(runs.glob("*/*/"))):
        if (folder / RECORD).is_file() or (folder / "summary.json").is_file():
            yield folder


def _rows_of(folder: Path, runs: Path, jobs: dict[str, Submitted], known: dict[str, queue.State]) -> Iterator[Row]:
    name = folder.name if folder == runs else str(folder.relative_to(runs))
    stages: dict[str, list[Submitted]] = {} if jobs else {"train": []}  # a run that was started by hand
    for job in jobs.values():
        stages.setdefault(job.stage.partition("-")[0], []).append(job)
    for stage, parts in stages.items():
        yield _row(folder, name, stage, parts, known)


def _row(folder: Path, name: str, stage: str, parts: list[Submitted], known: dict[str, queue.State]) -> Row:
    queued = [known[part.job] for part in parts if part.job in known and known[part.job].word not in OVER]
    left = [part for part in parts if not is_done(folder, part.stage)]
    done, ended = len(parts) - len(left), [known[part.job] for part in left if part.job in known]
    summary = read_summary(folder) if stage == "train" else {}
    if parts and not queued and not left:
        word = "done"
    else:  # of an array that is over, what became of those that did not end well
        counted = Counter(state.word for state in queued or ended).items()
        word = ", ".join(f"{word} {n}" if len(parts) > 1 else word for word, n in counted) or _by_heartbeat(summary)
    waits = {state.reason for state in queued if state.word == "PENDING" and state.reason not in ("", "None")}
    progress = _progress(folder, summary, bool(queued)) if summary else {}
    note = "; ".join([f"waits: {reason}" for reason in sorted(waits)] + progress.pop("notes", []))
    job = parts[-1].job.partition("_")[0] if len(parts) > 1 else parts[-1].job if parts else ""
    step = progress.pop("step", f"{done} of {len(parts)}" if len(parts) > 1 else "")
    return Row(name, stage, word, job, step, note=note, **progress)


def _by_heartbeat(summary: dict[str, Any]) -> str:
    state = str(summary.get("state", "gone"))
    lost = state == "running" and time.time() - summary.get("heartbeat", 0) > SILENT_SECONDS
    return "lost" if lost else state


def _progress(folder: Path, summary: dict[str, Any], queued: bool) -> dict[str, Any]:
    """Step, rate, time left, requeues, last metric and notes of a run that trains or trained."""
    step, steps = summary.get("step", 0), summary.get("steps", 0)
    found: dict[str, Any] = {"step": f"{step:,} of {steps:,}", "notes": []}
    if attempts := summary.get("attempt", 1) - 1:
        found["requeues"] = str(attempts)
    last = read_metrics(folder)[-2:]
    if len(last) == 2 and last[0]["attempt"] == last[1]["attempt"] and last[1]["time"] > last[0]["time"]:
        rate = (last[1]["step"] - last[0]["step"]) / (last[1]["time"] - last[0]["time"])
        found["rate"] = f"{rate:.2f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        if step < steps and summary.get("state") == "running":
            found["left"] = str(timedelta(seconds=round((steps - step) / rate)))
    metrics = summary.get("metrics", {})
    name = next((name for name in ("val/dsc", "train/loss") if name in metrics), None)
    if name:
        found["metric"] = f"{name} {metrics[name]:.3f}"
    silent = time.time() - summary.get("heartbeat", time.time())
    if queued and summary.get("state") == "running" and silent > SILENT_SECONDS:
        since = datetime.fromtimestamp(summary["heartbeat"]).strftime("%m-%d %H:%M")
        found["notes"].append(f"stalled since {since} (no step for {timedelta(seconds=round(silent))})")
    if summary.get("state") == "running" and summary.get("slow"):
        found["notes"].append(str(summary["slow"][0]))
    if summary.get("error"):
        found["notes"].append(str(summary["error"]))
    return found


def lines(found: list[Row]) -> list[str]:
    """A table as plain text, without the columns that are empty throughout."""
    table = [COLUMNS, *(row.cells() for row in found)]
    shown = [n for n in range(len(COLUMNS)) if any(cells[n] for cells in table[1:])]
    widths = {n: max(len(cells[n]) for cells in table) for n in shown}
    return ["  ".join(cells[n].ljust(widths[n]) for n in shown).rstrip() for cells in table]
