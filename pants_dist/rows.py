"""Rows of scored cases on the disk while an evaluation goes on: appended as they come, by one process or by many.

Each writer has a file of its own in the folder, so that nobody waits and a killed one tears at most its own last line.
The first line of a file says what its rows are of; rows of anything else are not taken.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pants_dist.disk import replacing

Row = dict[str, Any]
WHOLE = (1, 1)  # the slice of who does it all


def known_rows(folder: Path, head: Row, counts: Callable[[Row], bool] = bool) -> dict[str, Row]:
    """Rows by case in all files of the folder whose first line is `head`; only those that `counts` is true of."""
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("rows*.jsonl")):
        lines = _whole_lines(path)
        if lines and lines[0] == head:
            rows |= {row["case"]: row for row in lines[1:] if counts(row)}
    return rows


def passed_over(folder: Path, head: Row) -> str | None:
    """A line on rows in the folder that are of something else, and in what that differs; None where there are none."""
    count, differs = 0, set[str]()
    for path in sorted(folder.glob("rows*.jsonl")):
        lines = _whole_lines(path)
        if len(lines) > 1 and lines[0] != head:
            count += len(lines) - 1
            differs |= {name for name in head if lines[0].get(name) != head[name]}
    if not count:
        return None
    made = " and ".join(name.replace("_", " ") for name in sorted(differs))
    return f"{folder.name}: {count:,} rows that are there were made with another {made}; those cases are scored again"


class Rows:
    """What one writer adds to a folder: he who does slice (i, n) of the cases. A file with another head is begun anew."""

    def __init__(self, folder: Path, head: Row, slice_: tuple[int, int] = WHOLE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ("rows.jsonl" if slice_ == WHOLE else f"rows-{slice_[0]}-of-{slice_[1]}.jsonl")
        lines = _whole_lines(self.path)
        kept = lines if lines and lines[0] == head else [head]
        with replacing(self.path) as file:  # without a torn last line
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, row: Row) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _whole_lines(path: Path) -> list[Row]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
