"""Is a case's file still what its sources would give? Sizes and times first, contents where times differ."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conversion.repack import CONVERTER
from conversion.source import ABOUT, Source
from pants_dist.casefile import file_digest, row_of
from pants_dist.errors import UserError


def current_row(source: Source, cases: Path, row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The manifest row of a case that need not be converted again, with the sources' present times; else None.

    `row` is what the journal or the manifest says. A file that they do not know, or know otherwise, is asked itself: a
    conversion may have been killed between the file and its line in the journal.
    """
    path = cases / f"{source.case}.ozx"
    if not path.is_file():
        return None
    for candidate in _candidates(path, row):
        mtimes = _matching_mtimes(source, candidate)
        if mtimes is not None:
            return {**candidate, "source_mtimes_ns": json.dumps(mtimes)}
    return None


def current_row_of_archived(source: Source, cases: Path, row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same of a case whose files are not in place: only what was made of the very same archives is known."""
    path = cases / f"{source.case}.ozx"
    if row is None or source.archived is None or not path.is_file() or row["file_bytes"] != path.stat().st_size:
        return None
    return row if row["source_mtimes_ns"] == source.archived.stamp and _same_words(source, row) else None


def _candidates(path: Path, row: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if row is not None and row["file_bytes"] == path.stat().st_size:
        yield row
    try:
        yield row_of(path)
    except (UserError, OSError):  # damaged, or of another format: convert it again
        return


def _same_words(source: Source, row: dict[str, Any]) -> bool:
    return row["converter"] == CONVERTER and all(row[name] == source.about[name] for name in ABOUT)


def _matching_mtimes(source: Source, row: dict[str, Any]) -> list[int] | None:
    """The files' modification times where `row` was made from exactly these files and words, else None."""
    if not _same_words(source, row):
        return None
    recorded = json.loads(row["sources"])
    if [name for name, _, _ in recorded] != source.names:
        return None
    before = json.loads(row["source_mtimes_ns"] or "null") or [None] * len(recorded)
    mtimes = []
    try:
        for path, (_, size, sha256), mtime in zip(source.files, recorded, before, strict=True):
            now = path.stat()
            if now.st_size != size or (now.st_mtime_ns != mtime and file_digest(path) != sha256):
                return None
            mtimes.append(now.st_mtime_ns)
    except OSError:
        return None
    return mtimes
