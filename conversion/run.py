"""All cases of some dataset folders into one store: `convert` is the story, and may be killed and run again at any line.

What is finished is known from the disk: a case's file appears whole, by a rename; its manifest row is then journaled;
the manifest is written when every case of the sources is either done or refused.
"""

import errno
import os
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from conversion.journal import JOURNAL, QUARANTINE, Writer, clear, quarantined, read_rows
from conversion.layouts import Found, Source, recognise
from conversion.nifti import BadImage
from conversion.pool import Died, run_jobs
from conversion.repack import convert_case
from conversion.resume import current_row
from pants_dist.cluster import usable_cores
from pants_dist.errors import DamagedError, UserError
from pants_dist.store import open_store, write_manifest

UNREADABLE = "cannot be read"  # begins the reason of a refusal that may pass: the earlier conversion stays
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Event:
    """Something to show: `text` is one line in plain words; `done` of `total` cases of the stage are behind us.

    Kinds: "found" (a dataset was recognised), "note", "plan" (what is to be done), then one a case: "checked" (of an
    earlier conversion), "converted" or "refused"; "manifest" at the end. `source_bytes` is the case's.
    """

    kind: Literal["found", "note", "plan", "checked", "converted", "refused", "manifest"]
    text: str
    case: str = ""
    done: int = 0
    total: int = 0
    source_bytes: int = 0


@dataclass
class Summary:
    """What a conversion did: case ids, and why cases were refused. `exit_code` is 0 whole, 1 partial."""

    store: Path
    notes: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    elsewhere: int = 0  # cases that other slices have still to do
    planned: list[str] = field(default_factory=list)  # cases that a dry run would convert
    digest: str | None = None  # of the manifest; None while it cannot be written yet
    source_bytes: int = 0
    store_bytes: int = 0
    source_files: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 where every case was converted or kept, 1 where some were refused."""
        return 1 if self.refused else 0


@dataclass(frozen=True)
class _Result:
    status: Literal["kept", "stale", "converted", "refused", "no room"]
    row: dict[str, Any] | None = None
    reason: str = ""
    trace: str = ""


Job = tuple[Source, dict[str, Any] | None]  # a case, and the manifest row that is known of it
Listener = Callable[[Event], None]


def convert(
    sources: Sequence[Path],
    store: Path,
    *,
    layout: str = "auto",
    metadata: Path | None = None,
    workers: int | None = None,
    slice_: tuple[int, int] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    on_event: Listener = lambda event: None,
) -> Summary:
    """Repack the datasets in `sources` (folders) into the folder `store`; the same call again goes on and redoes nothing.

    `layout` names a reader of conversion.layouts.LAYOUTS or is "auto"; `metadata` is the dataset's table where it does
    not lie beside it. `workers` processes (None: one a core) convert case by case. `slice_` (i, n), from 1, takes every
    n-th case, so that n jobs share a store; `limit` takes the first cases by id; `dry_run` only says what would be done.
    `on_event` hears of everything as it happens, in this process. A refused case is quarantined and stops nothing.

    Raises UserError for sources that are missing, empty or like no layout, for a store that is something else, and where
    the disk is full.
    """
    begun = time.monotonic()
    check_options(workers, slice_, limit)
    found = [recognise(Path(source), layout, metadata) for source in sources]
    everything = _unique(found)[:limit]
    mine = everything[slice_[0] - 1 :: slice_[1]] if slice_ else everything
    for event in _introduction(found, everything, mine):
        on_event(event)
    summary = Summary(Path(store), [note for part in found for note in part.notes])
    known = known_rows(summary.store)
    stale = _check(mine, known, summary, workers or usable_cores(), on_event)
    on_event(Event("plan", f"{len(stale):,} cases to convert, {len(summary.kept):,} are done already"))
    if dry_run:
        summary.planned = [source.case for source in stale]
        return summary

    _prepare(summary.store, mine if slice_ else None, [source.case for source in stale])
    _convert(stale, known, summary, workers or usable_cores(), on_event)
    _finish(summary, everything, alone=slice_ is None, on_event=on_event)
    summary.seconds = time.monotonic() - begun
    return summary


def check_options(workers: int | None, slice_: tuple[int, int] | None, limit: int | None) -> None:
    """Raises UserError for numbers that make no sense."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    if slice_ is not None and not 1 <= slice_[0] <= slice_[1]:
        raise UserError(f"--slice {slice_[0]}/{slice_[1]}: slices count from 1/{slice_[1]} to {slice_[1]}/{slice_[1]}")


def parse_slice(text: str) -> tuple[int, int]:
    """(i, n) of "I/N"; raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found:
        raise UserError(f"--slice {text}: give I/N, such as 1/8 for the first of eight")
    numbers = int(found[1]), int(found[2])
    check_options(None, numbers, None)
    return numbers


def _unique(found: Sequence[Found]) -> list[Source]:
    """All cases by id. Raises UserError where two datasets have the same one."""
    by_case: dict[str, Source] = {}
    for source in (source for part in found for source in part.sources):
        if (other := by_case.setdefault(source.case, source)) is not source:
            raise UserError(f"case {source.case} is in {other.root} and in {source.root}; give one of them")
    return [by_case[case] for case in sorted(by_case)]


def _introduction(found: Sequence[Found], everything: list[Source], mine: list[Source]) -> Iterator[Event]:
    for part in found:
        masks = sum(len(source.masks) for source in part.sources)
        yield Event("found", f"{part.root}: {part.layout}, {len(part.sources):,} images, {masks:,} masks")
        yield from (Event("note", note) for note in part.notes)
    if len(mine) < len(everything):
        yield Event("note", f"this slice has {len(mine):,} of the {len(everything):,} cases")


def known_rows(store: Path) -> dict[str, dict[str, Any]]:
    """Case -> manifest row, from the manifest and the journals. Raises UserError where `store` is something else."""
    if store.exists() and not store.is_dir():
        raise UserError(f"store {store}: is a file; name a new folder, or one that an earlier conversion made")
    if not store.is_dir() or not any(store.iterdir()):
        return {}
    if not (store / "cases").is_dir():
        raise UserError(f"store {store}: the folder holds something that is no store; name a new folder")
    rows = {}
    if (store / "manifest.parquet").is_file():
        try:
            rows = {row["case"]: row for row in open_store(store).table.to_pylist()}
        except DamagedError:
            pass  # the cases' files know everything but the times of their sources
    return rows | read_rows(store)


def _check(
    mine: list[Source], known: dict[str, dict[str, Any]], summary: Summary, workers: int, on_event: Listener
) -> list[Source]:
    """Keep what is current; returns the other cases. Updates `known` with the rows of those kept."""
    folder = summary.store / "cases"
    earlier = [source for source in mine if (folder / f"{source.case}.ozx").is_file()]
    jobs: list[Job] = [(source, known.get(source.case)) for source in earlier]
    for (source, _), result in run_jobs(partial(_check_one, folder), jobs, min(workers, len(jobs))):
        if isinstance(result, _Result) and result.row is not None:
            known[source.case] = result.row
            summary.kept.append(source.case)
            done = len(summary.kept)
            on_event(Event("checked", f"{source.case}: done already", source.case, done, len(jobs)))
    kept = set(summary.kept)
    return [source for source in mine if source.case not in kept]


def _check_one(cases: Path, job: Job) -> _Result:
    row = current_row(job[0], cases, job[1])
    return _Result("kept", row) if row else _Result("stale")


def _prepare(store: Path, owned: list[Source] | None, stale: list[str]) -> None:
    """Folders made, leftovers of killed writers swept (of `owned` cases, or all), no manifest that is about to be wrong."""
    cases = store / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    patterns = [f".{source.case}.ozx.*.tmp" for source in owned] if owned is not None else [".*.tmp"]
    for leftover in [path for pattern in patterns for path in cases.glob(pattern)]:
        leftover.unlink(missing_ok=True)
    manifest = store / "manifest.parquet"
    if not manifest.is_file():
        return
    rows = known_rows(store)
    if any(case in rows for case in stale):
        writer = Writer(store, JOURNAL)
        for row in rows.values():
            writer.append({"row": row})
        writer.sync()
        manifest.unlink()
