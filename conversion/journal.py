"""What a conversion remembers while it runs: rows of finished cases, and cases that were refused.

    STORE/journal/<writer>.jsonl       how many cases there are to be; a line a finished case: its manifest row; until the
                                       manifest holds it
    STORE/quarantine/<writer>.jsonl    a line a refused case: its id, its image's path, the reason

One process writes one file, so nothing is shared between hosts; a line that a kill tore is passed over.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JOURNAL, QUARANTINE = "journal", "quarantine"


class Writer:
    """Appends lines to a file of this process's own; the file appears with the first line."""

    def __init__(self, store: Path, kind: str) -> None:
        self.path = store / kind / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"

    def append(self, line: dict[str, Any]) -> None:
        """Add one line, stamped with the time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "time": time.time()}) + "\n")

    def sync(self) -> None:
        """Return when everything appended is on the disk."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())


def read_rows(store: Path) -> dict[str, dict[str, Any]]:
    """Case -> its last journaled manifest row."""
    return {line["row"]["case"]: line["row"] for line in _lines(store / JOURNAL) if "row" in line}


def planned(store: Path) -> int | None:
    """How many cases the store is to have in the end; None where no conversion has said so."""
    said = [line["cases"] for line in _lines(store / JOURNAL) if "cases" in line]
    return int(said[-1]) if said else None


def quarantined(store: Path) -> dict[str, dict[str, Any]]:
    """Case -> its line (case, reason, path of the image, root of its dataset), as the last attempt left it."""
    last = {line["case"]: line for line in _lines(store / QUARANTINE)}
    return {case: line for case, line in sorted(last.items()) if line["reason"]}


def clear(store: Path, kind: str, keep: Path | None = None) -> None:
    """Remove every writer's file but `keep`, and the folder if it is then empty."""
    folder = store / kind
    for path in folder.glob("*.jsonl"):
        if path != keep:
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def gather(store: Path, refused: list[dict[str, Any]]) -> None:
    """Replace all files of the quarantine by one with these lines."""
    writer = Writer(store, QUARANTINE)
    for line in refused:
        writer.append(line)
    clear(store, QUARANTINE, keep=writer.path)


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of every file in a folder, in the order of their time."""
    found = [line for path in sorted(folder.glob("*.jsonl")) for line in _whole_lines(path)]
    return iter(sorted(found, key=lambda line: line["time"]))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # torn by a kill
        if isinstance(line, dict) and "time" in line:
            yield line
