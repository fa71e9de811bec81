"""Runs to W&B: as they go, or later, many at a time. Each is sent by a process of its own, which is mirror.py's."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pants_dist import config
from pants_dist.errors import UserError
from pants_dist.tracking import UPLOADED, evaluation_stamp, logged_bytes

SYNC_PATIENCE_S = 600.0  # for a server that is slow to take what it is sent
LIVE_PATIENCE_S = 45.0  # the same at the end of a run, which has a node to give back
STOP_S = 15.0  # beyond that, before the process is ended


@dataclass(frozen=True)
class Upload:
    """What came of one run."""

    run: Path
    words: str
    failed: bool = False


def sync(paths: Sequence[Path], workers: int, on_done: Callable[[Upload], None], offline: bool = False) -> list[Upload]:
    """Upload what W&B lacks of these runs, or of all runs in these folders, `workers` at a time; `offline` as in `upload`.

    `on_done` is called as each ends. Raises UserError for a folder without runs.
    """
    runs = [run for path in paths for run in runs_in(path)]
    with ThreadPoolExecutor(workers) as pool:
        done = []
        for future in as_completed([pool.submit(upload, run, SYNC_PATIENCE_S, offline) for run in runs]):
            done.append(future.result())
            on_done(done[-1])
    return done


def runs_in(path: Path) -> list[Path]:
    """The run folder itself, or those in it, also in sweeps."""
    found = sorted(config_file.parent for pattern in ("", "*/", "*/*/") for config_file in path.glob(f"{pattern}config.yaml"))
    if not found:
        raise UserError(f"{path}: no run there; give run folders, or folders of runs")
    return found


def upload(run: Path, patience_s: float, offline: bool = False) -> Upload:
    """Upload what W&B lacks of one run, which may be going on; `offline`: only write it as a folder for "wandb sync"."""
    if config.load(run / "config.yaml", []).tracking.wandb == "off":
        return Upload(run, "left out: its tracking.wandb is off")
    if not offline and is_uploaded(run):
        return Upload(run, "nothing new")
    words = [*_mirror(run, patience_s), *["--offline"] * offline]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        return Upload(run, (done.stderr.splitlines() or ["killed"])[-1].removeprefix("pants-dist: "), failed=True)
    sent = json.loads(done.stdout.splitlines()[-1])
    what = f"steps written; send them: wandb sync {sent['url']}" if offline else f"steps sent, {sent['url']}"
    return Upload(run, f"{sent['steps']:,} {what}")


def is_uploaded(run: Path) -> bool:
    """Whether W&B has all of metrics.jsonl and the last evaluation, as far as the run folder knows."""
    mark = run / UPLOADED
    return mark.is_file() and mark.read_text() == f"{logged_bytes(run)} {evaluation_stamp(run)}"


@contextmanager
def following(run: Path) -> Iterator[None]:
    """Send a run to W&B as it goes, from a process that cannot hold it up; at the end wait a minute at most.

    Where W&B does not take it a line on stderr says so, and the run goes on.
    """
    process = subprocess.Popen(_mirror(run, LIVE_PATIENCE_S), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    yield
    try:
        process.communicate(timeout=LIVE_PATIENCE_S + STOP_S)  # closes its stdin, as our death would
    except subprocess.TimeoutExpired:
        process.kill()
    if process.wait():
        print(f"pants-dist: W&B lacks some of this run; when it answers: pants-dist sync {run}", file=sys.stderr)


def _mirror(run: Path, patience_s: float) -> list[str]:
    return [sys.executable, "-m", "pants_dist.mirror", str(run), f"--patience={patience_s}"]
