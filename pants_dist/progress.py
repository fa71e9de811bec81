"""How far long work is: a bar with rate and time left on a terminal, plain lines in a log. Written to stderr."""

import contextlib
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pants_dist.tracking import read_summary

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 0.5
PACE_SECONDS = 60.0

Tell = Callable[..., None]  # tell(done, total, note): done and total in units; note: a few words, or anything else


@contextlib.contextmanager
def shown(what: str, unit: str = "cases") -> Iterator[Tell]:
    """Show the work done inside; what it yields is called as `tell(done, total, note)` whenever something is done."""
    with _bar(what, unit) if sys.stderr.isatty() else _lines(what, unit) as tell:
        yield tell


@contextlib.contextmanager
def _bar(what: str, unit: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    layout = TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")
    with Progress(*layout, console=console, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(what, total=None, pace="")
        pace = Pace(unit)

        def tell(done: int, total: int, note: Any = "") -> None:
            words = [pace.words(done, total), *([note] if isinstance(note, str) and note else [])]
            progress.update(task, completed=done, total=total, pace=", ".join(words))

        yield tell


@contextlib.contextmanager
def _lines(what: str, unit: str) -> Iterator[Tell]:
    pace, said_at = Pace(unit), -math.inf

    def tell(done: int, total: int, note: Any = "") -> None:
        nonlocal said_at
        words = pace.words(done, total)
        if done < total and time.monotonic() - said_at < SECONDS_BETWEEN_LINES:
            return
        said_at = time.monotonic()
        more = f", {note}" if isinstance(note, str) and note else ""
        print(f"{what}: {done:,} of {total:,} {unit}, {words}{more}", file=sys.stderr, flush=True)

    yield tell


class Conversion:
    """Shows a conversion's events: lines of what is worth one, and how far it is, how fast, how many were refused."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.begun, self.read, self.refused = tell, time.monotonic(), 0, 0

    def hears(self, event: Any) -> None:
        """One of conversion.run.Event."""
        self.read += event.source_bytes
        self.refused += event.kind == "refused"
        if event.total:
            self.tell(event.done, event.total, "" if event.kind == "checked" else self._pace())
        elif event.kind == "plan":
            self.begun = time.monotonic()
        if event.kind not in ("checked", "converted"):
            print(event.text, flush=True)

    def _pace(self) -> str:
        rate = self.read / 1e9 / max(time.monotonic() - self.begun, 1e-3)
        return f"{rate:.3f} GB/s, {self.refused:,} quarantined"


class Pace:
    """Rate and time left, from the last minute: what an earlier attempt did comes at once and is soon forgotten."""

    def __init__(self, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit, self.clock, self.begun = unit, clock, clock()
        self.told: deque[tuple[float, int]] = deque()

    def words(self, done: int, total: int) -> str:
        """Like "3.1 steps/s, 0:01:30 left"."""
        now = self.clock()
        self.told.append((now, done))
        while len(self.told) > 2 and self.told[0][0] < now - PACE_SECONDS:
            self.told.popleft()
        (since, before), took = self.told[0], timedelta(seconds=round(now - self.begun))
        if done == before or now == since:
            return "starting" if done < total else f"took {took}"
        rate = (done - before) / (now - since)
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{60 * rate:.1f} {self.unit}/min"
        left = timedelta(seconds=round((total - done) / rate))
        return f"{speed}, {left} left" if done < total else f"{speed}, took {took}"


@contextlib.contextmanager
def watching(run: Path, what: str = "train") -> Iterator[None]:
    """Show the steps of a run while others train it: what its summary.json says, from now on."""
    since, ended = time.time(), threading.Event()
    with shown(what, "steps") as tell:
        watcher = threading.Thread(target=_watch, args=(run, since, ended, tell), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _watch(run: Path, since: float, ended: threading.Event, tell: Tell) -> None:
    told = -1
    while True:
        last_look = ended.wait(SECONDS_BETWEEN_LOOKS)
        summary = read_summary(run)
        if summary.get("heartbeat", 0) >= since and summary["step"] != told:
            told = summary["step"]
            tell(told, summary["steps"], _loss(summary))
        if last_look:
            return


def _loss(summary: dict[str, Any]) -> str:
    loss = summary.get("metrics", {}).get("train/loss")
    return f"loss {loss:.3f}" if loss is not None else ""
