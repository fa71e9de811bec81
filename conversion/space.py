"""What a conversion will take of a disk, and whether the disk has it. Nothing here writes."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conversion.source import Source
from pants_dist.errors import UserError

RATIO = 0.90  # a case's file over its sources' bytes: measured on full-size cases, benchmarks/RESULTS.md
SAMPLE = 500  # cases whose files are looked at; a million look-ups on a network disk would take minutes
EXTRA_FILES = 8  # manifest, journals, quarantine


@dataclass(frozen=True)
class Need:
    """Bytes and files that cases will take, and what is free; `free_files` is None where a disk does not count them."""

    bytes: int
    files: int
    free_bytes: int
    free_files: int | None

    @property
    def missing_bytes(self) -> int:
        """How many bytes the disk is short of; 0 where they fit."""
        return max(self.bytes - self.free_bytes, 0)

    @property
    def text(self) -> str:
        """One clause for people."""
        files = "" if self.free_files is None else f" and {self.free_files:,} files"
        return f"about {size(self.bytes)} in {self.files:,} files needed, {size(self.free_bytes)}{files} free"


def need(sources: Sequence[Source], store: Path) -> Need:
    """What converting `sources` into `store` takes; earlier files of the same cases make room for the new ones.

    The labels of archives are staged beside the store while it is made.
    """
    folder = next(path for path in [store, *store.absolute().parents] if path.is_dir())
    sample = sources[:: -(-len(sources) // SAMPLE)] if sources else []
    looked_at = sum(
        source.archived.image_bytes + source.archived.label_bytes if source.archived
        else sum(_size(path) for path in source.files)
        for source in sample
    )
    there = sum(_size(store / "cases" / f"{source.case}.ozx") for source in sample)
    scale = len(sources) / max(len(sample), 1)
    staged = sum(source.archived.label_bytes for source in sources if source.archived)
    disk = os.statvfs(folder)
    return Need(
        bytes=max(int((RATIO * looked_at - there) * scale), 0) + staged,
        files=len(sources) + EXTRA_FILES if sources else 0,
        free_bytes=shutil.disk_usage(folder).free,
        free_files=disk.f_favail if disk.f_files else None,
    )


def check(needed: Need, store: Path) -> None:
    """Raises UserError where the disk has not enough room, with how much it is short of."""
    if needed.missing_bytes:
        raise UserError(f"store {store}: {needed.text}; free {size(needed.missing_bytes)} more, or name another disk")
    if needed.free_files is not None and needed.files > needed.free_files:
        short = needed.files - needed.free_files
        raise UserError(f"store {store}: {needed.text}; free {short:,} more files (inodes), or name another disk")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a source that cannot be read is refused when its turn comes
        return 0


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
