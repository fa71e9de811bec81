"""Copies of cases on a node's own disk, made when a case is first needed, shared by all processes of the node.

A copy is named by its content (sha256 from the manifest), and checked by it while it is made: copies of another store, or of
an older conversion, are never taken for it. Nothing is thrown out once the limit is reached: samples come in random
order, so one case is as likely to be needed again as another.
"""

import contextlib
import hashlib
import os
import time
import warnings
from pathlib import Path

PIECE = 4 << 20  # bytes copied at a time
STALE_S = 600.0  # a copy that has not grown for so long belongs to a process that is gone


class Stage:
    """A folder that holds up to `limit_bytes` of copies."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._full = False

    def path_of(self, source: Path, size: int, sha256: str) -> Path:
        """The copy of a case's file, made now if there is room and nobody else makes it; else the file itself."""
        copy = self.folder / f"{sha256}.ozx"
        with contextlib.suppress(OSError):
            if copy.stat().st_size == size:
                return copy
        if self._full:
            return source
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._used() + size > self.limit_bytes:
                self._full = True
                return source
            return copy if self._copy(source, copy, size, sha256) else source
        except OSError as error:
            self._full = True
            warnings.warn(f"data.stage {self.folder}: {error.strerror}; cases are read from the store instead", stacklevel=2)
            return source

    def _used(self) -> int:
        with os.scandir(self.folder) as entries:
            return sum(entry.stat().st_size for entry in entries)

    def _copy(self, source: Path, copy: Path, size: int, sha256: str) -> bool:
        """Whether the copy is there now; not where another process is at it, or the source is not what it should be."""
        unfinished = copy.with_suffix(".tmp")
        with contextlib.suppress(FileNotFoundError):
            if time.time() - unfinished.stat().st_mtime > STALE_S:
                unfinished.unlink()
        try:
            out = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        try:
            with open(out, "wb") as target, open(source, "rb") as file:
                os.posix_fallocate(out, 0, max(size, 1))  # the room is taken before others count
                digest = hashlib.sha256()
                while piece := file.read(PIECE):
                    digest.update(piece)
                    target.write(piece)
            if digest.hexdigest() != sha256:
                return False
            os.replace(unfinished, copy)
            return True
        finally:
            unfinished.unlink(missing_ok=True)
