"""metrics.jsonl, read as it grows: what is new is read once, and of a long file a bounded part, spread evenly over it."""

import json
import os
from pathlib import Path
from typing import Any

from pants_dist.tracking import append_row

MOST_BYTES = 16 * 2**20  # of one file that are read and kept
BLOCK = 2**16  # bytes that are read in one go from a long file


def spans(size: int, most: int, block: int) -> list[tuple[int, int]]:
    """Parts [start, stop) of `size` bytes that are read: all of them, or `most` in blocks spread evenly, with begin and end."""
    count = most // block
    if size <= most or count < 2:
        return [(max(0, size - most) if size > most else 0, size)]
    starts = [(size - block) * n // (count - 1) for n in range(count)]
    return [(start, start + block) for start in starts]


class Lines:
    """Rows of one file as a run without interruptions would have written them, and the steps at which attempts began anew.

    A last line without its end is left for later. `damaged` lines were passed over; `size` bytes are behind us.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.most, self.block = path, MOST_BYTES, BLOCK
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.requeues: list[int] = []
        self.damaged, self.size, self.kept, self.inode, self.whole = 0, 0, 0, inode, True

    def refresh(self) -> bool:
        """Read what has come since; True if the rows are others now. Raises OSError."""
        with open(self.path, "rb") as file:
            found = os.fstat(file.fileno())
            replaced = found.st_ino != self.inode or found.st_size < self.size
            if not replaced and found.st_size == self.size:
                return False
            if replaced or self.kept + found.st_size - self.size > 2 * self.most:
                self._begin(found.st_ino)
                parts = spans(found.st_size, self.most, self.block)
                self.whole = parts == [(0, found.st_size)]
            else:
                parts = [(self.size, found.st_size)]
            before = self.size
            for start, stop in parts:
                file.seek(start)
                self._take(file.read(stop - start), start, torn=start not in (0, before))
        return self.size != before or replaced

    def _take(self, data: bytes, start: int, torn: bool) -> None:
        """Lines of a part that begins at `start`; `torn`: probably within one."""
        end = data.rfind(b"\n") + 1
        lines = data[:end].splitlines()[1 if torn else 0 :]
        self.size, self.kept = start + end, self.kept + end
        for line in lines:
            row = parsed(line)
            if not row:
                self.damaged += 1
            elif append_row(self.rows, row):
                self.requeues = [step for step in self.requeues if step < row["step"]] + [row["step"]]


def parsed(line: bytes) -> dict[str, Any]:
    """A row that has step, attempt and time; {} of anything else."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    whole = isinstance(row, dict) and all(isinstance(row.get(key), int | float) for key in ("step", "attempt", "time"))
    return row if whole else {}
