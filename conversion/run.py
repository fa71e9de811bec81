"""All cases of some dataset folders into one store. `convert` is the story; kill it at any line and run it again.

What is finished is known from the disk: a case's file appears whole, by a rename; its manifest row is then journaled;
the manifest is written when every case of the sources is either done or refused.
"""

import shutil
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from conversion import archives, space
from conversion.choice import check_options, chosen, sliced, unique
from conversion.journal import JOURNAL, QUARANTINE, Writer, clear, gather, quarantined, read_rows
from conversion.layouts import Found, Source, recognise
from conversion.nifti import BadImage
from conversion.pool import run_jobs
from conversion.reading import Memory
from conversion.repack import convert_case
from conversion.resume import current_row, current_row_of_archived
from pants_dist.cluster import Died, run_on_nodes, usable_cores
from pants_dist.errors import UserError
from pants_dist.store import SCHEMA, open_store, write_manifest


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

    @property
    def exit_code(self) -> int:
        """0 where every case was converted or kept, 1 where some were refused."""
        return 1 if self.refused else 0


@dataclass(frozen=True)
class _Result:
    status: Literal["converted", "kept", "refused", "stop"]
    row: dict[str, Any] | None = None
    reason: str = ""
    trace: str = ""


Rows = dict[str, dict[str, Any]]  # case -> manifest row
Job = tuple[Source, dict[str, Any] | None]  # a case, and the row that is known of it
Listener = Callable[[Event], None]
Run = Callable[..., Generator[tuple[Any, Any], None, None]]  # run(function, jobs) yields (job, function(job))


def convert(
    sources: Sequence[Path],
    store: Path,
    *,
    layout: str = "auto",
    metadata: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    slice_: tuple[int, int] | None = None,
    limit: int | None = None,
    cases: Sequence[str] | None = None,
    dry_run: bool = False,
    on_event: Listener = lambda event: None,
) -> Summary:
    """Repack the datasets in `sources` (folders) into the folder `store`; the same call again goes on where it stopped.

    `layout` names a reader of conversion.layouts.LAYOUTS or is "auto"; `metadata` is the dataset's table where it does
    not lie beside it. `workers` processes (None: one a core) convert case by case: on this machine or, with the address
    `ray`, on the nodes of that Ray cluster, which must see the same folders. `slice_` (i, n), from 1, takes every n-th
    case, so that n jobs can share a store; `cases` takes those alone, `limit` the first cases by id; `dry_run` only says
    what there is to do. `on_event` hears of everything as it happens, in this process.

    A refused case is quarantined and stops nothing; what an earlier conversion made of it stays. Raises UserError for
    sources that are missing, empty or like no layout, for a store that is something else, and where the disk is full.
    """
    check_options(workers, slice_, limit)
    place = Path.absolute if ray else Path  # other nodes work in other folders
    found = [recognise(place(Path(source)), layout, metadata) for source in sources]
    everything = archives.present(chosen(unique(found), cases), Path(store))[:limit]
    mine = sliced(everything, slice_) if slice_ else everything
    if ray and any(source.archived for source in mine):
        raise UserError("--ray: archives are read by one machine for each; use --slice I/N, or unpack them")
    for event in _introduction(found, everything, mine):
        on_event(event)
    run = partial(run_on_nodes, address=ray, most=workers) if ray else partial(run_jobs, workers=workers or usable_cores())
    summary = Summary(place(Path(store)), [note for part in found for note in part.notes])
    known = known_rows(summary.store)
    kept = _check(mine, known, summary, run, on_event)
    stale = [source for source in mine if source.case not in kept]
    needed = space.need(stale, summary.store)
    room = f"; {needed.text}" if stale else ""
    on_event(Event("plan", f"{len(stale):,} cases to convert, {len(kept):,} are done already{room}"))
    if dry_run:
        summary.planned = [source.case for source in stale]
        return summary

    space.check(needed, summary.store)
    journal = _prepare(summary.store, mine if slice_ else None, known, kept, stale)
    if stale:
        journal.append({"cases": len(everything)})
    _convert(stale, journal, summary, run, "{}-of-{}".format(*slice_ or (1, 1)), on_event)
    everything = archives.present(everything, summary.store)
    _finish(summary, everything, slice_ is None, limit is None and cases is None, on_event)
    return summary


def _introduction(found: Sequence[Found], everything: list[Source], mine: list[Source]) -> Iterator[Event]:
    for part in found:
        masks = sum(len(source.masks) for source in part.sources)
        counts = f"{len(part.sources):,} images, {masks:,} masks" if masks else f"{len(part.sources):,} images"
        yield Event("found", f"{part.root}: {part.layout}, {counts}")
        yield from (Event("note", note) for note in part.notes)
    if len(mine) < len(everything):
        yield Event("note", f"this slice has {len(mine):,} of the {len(everything):,} cases")


def known_rows(store: Path) -> Rows:
    """Case -> manifest row, from the manifest and the journals. Raises UserError where `store` is something else."""
    if store.exists() and not store.is_dir():
        raise UserError(f"store {store}: is a file; name a new folder, or one that an earlier conversion made")
    if not store.is_dir() or not any(store.iterdir()):
        return {}
    if not (store / "cases").is_dir():
        raise UserError(f"store {store}: the folder holds something that is no store; name a new folder")
    rows: Rows = {}
    if (store / "manifest.parquet").is_file():
        try:
            rows = {row["case"]: row for row in open_store(store).table.to_pylist()}
        except UserError:  # damaged, or of another format version
            pass  # the cases' files know everything but the times of their sources
    return rows | {case: row for case, row in read_rows(store).items() if set(row) == set(SCHEMA.names)}


def _check(mine: list[Source], known: Rows, summary: Summary, run: Run, on_event: Listener) -> Rows:
    """The rows of those cases that are done already and still what their sources would give."""
    folder = summary.store / "cases"
    jobs: list[Job] = [(s, known.get(s.case)) for s in mine if (folder / f"{s.case}.ozx").is_file()]
    kept: Rows = {}
    with closing(run(partial(_check_one, folder), jobs)) as results:
        for number, ((source, _), row) in enumerate(results, 1):
            if isinstance(row, dict):
                kept[source.case] = row
            on_event(Event("checked", source.case, source.case, number, len(jobs)))
    summary.kept = sorted(kept)
    return kept


def _check_one(cases: Path, job: Job) -> dict[str, Any] | None:
    source, row = job
    return (current_row_of_archived if source.archived else current_row)(source, cases, row)


def _prepare(store: Path, owned: list[Source] | None, known: Rows, kept: Rows, stale: list[Source]) -> Writer:
    """Folders made, leftovers of killed writers swept, and no manifest left that is about to be wrong.

    Leftovers are those of `owned` cases, or all with None. Returns the journal, which knows all that the manifest knew.
    """
    cases = store / "cases"
    try:
        cases.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"store {store}: cannot be made ({error.strerror}); name another folder") from error
    names = None if owned is None else {source.case for source in owned}
    for leftover in cases.glob(".*.tmp"):
        if names is None or leftover.name[1:].partition(".ozx.")[0] in names:
            leftover.unlink(missing_ok=True)
    journal = Writer(store, JOURNAL)
    manifest = store / "manifest.parquet"
    outdated = manifest.is_file() and any(source.case in known for source in stale)
    for case, row in {**(known if outdated else {}), **kept}.items():
        if outdated or known.get(case) != row:
            journal.append({"row": row})
    if outdated:
        journal.sync()
        manifest.unlink()
    return journal


def _convert(
    stale: list[Source], journal: Writer, summary: Summary, run: Run, slice_name: str, on_event: Listener
) -> None:
    """Convert case by case; every result is on record before the next one is looked at."""
    refusals, before = Writer(summary.store, QUARANTINE), quarantined(summary.store)
    listed, report = {source.case: source for source in stale}, archives.Unpacking()
    with (
        archives.unpacked(stale, summary.store, slice_name, report) as jobs,
        closing(run(partial(_convert_one, summary.store / "cases"), jobs)) as results,
    ):
        for number, (job, result) in enumerate(results, 1):
            source = listed[job.case]
            if isinstance(result, Died):
                result = _Result("refused", reason=result.reason)
            if result.status == "stop":
                raise UserError(_stopped(summary, result.reason, stale))
            if result.row is not None:
                journal.append({"row": result.row})
                (summary.kept if result.status == "kept" else summary.converted).append(source.case)
            else:
                summary.refused[source.case] = result.reason
            if result.row is None or source.case in before:
                refusals.append(_quarantine_line(source, result))
            text = f"{source.case}: {result.reason or 'converted'}"
            size = result.row["source_bytes"] if result.row else 0
            kind: Any = "checked" if result.status == "kept" else result.status
            on_event(Event(kind, text, source.case, number, len(stale), size))
    for case, reason in report.refused.items():
        summary.refused[case] = reason
        refusals.append(_quarantine_line(listed[case], _Result("refused", reason=reason)))
        on_event(Event("refused", f"{case}: {reason}", case))
    summary.notes += (notes := archives.notes(report))
    for note in notes:
        on_event(Event("note", note))
    summary.converted.sort()
    summary.kept.sort()


def _quarantine_line(source: Source, result: _Result) -> dict[str, str]:
    """An empty reason lifts an earlier refusal."""
    line = {"case": source.case, "root": str(source.root), "path": str(source.image), "reason": result.reason}
    return {**line, "trace": result.trace} if result.trace else line


@cache
def _memory() -> Memory:
    """This worker's."""
    return Memory()


def _convert_one(cases: Path, source: Source) -> _Result:
    if source.archived is None:
        return _attempt(cases, source)
    try:
        if (row := current_row(source, cases, None)) is not None:
            result = _Result("kept", row)
        else:
            result = _attempt(cases, source)
    finally:
        shutil.rmtree(source.root, ignore_errors=True)
    return replace(result, row=result.row | {"source_mtimes_ns": source.archived.stamp}) if result.row else result


def _attempt(cases: Path, source: Source) -> _Result:
    try:
        return _Result("converted", convert_case(source, cases, _memory()))
    except BadImage as error:
        return _Result("refused", reason=str(error))
    except OSError as error:  # sources that cannot be read are bad images: this is the store
        return _Result("stop", reason=error.strerror or str(error))
    except MemoryError:
        return _Result("refused", reason="not enough memory for this volume; try fewer --workers")
    except Exception as error:  # a fault of ours costs one case, not the run
        return _Result("refused", reason=f"unexpected {type(error).__name__}: {error}", trace=traceback.format_exc())


def _stopped(summary: Summary, reason: str, stale: list[Source]) -> str:
    done = {*summary.converted, *summary.refused}
    left = [source for source in stale if source.case not in done]
    needed = space.need(left, summary.store)
    missing = f"; {space.size(needed.missing_bytes)} are missing" if needed.missing_bytes else ""
    return (
        f"store {summary.store}: cannot be written: {reason} ({len(left):,} cases to go; {needed.text}{missing}); "
        "mend that and run the same command again, it goes on where it stopped"
    )


def _finish(summary: Summary, everything: list[Source], alone: bool, unlimited: bool, on_event: Listener) -> None:
    """Write the manifest if every case is either done or refused.

    Where no other process works on the store (`alone`), what journals and quarantine had to say is gathered up;
    refusals of cases that are no longer in their dataset are forgotten.
    """
    store = summary.store
    rows = {case: row for case, row in known_rows(store).items() if _is_there(store, row)}
    refused = quarantined(store)
    summary.elsewhere = sum(source.case not in rows and source.case not in refused for source in everything)
    if rows and not summary.elsewhere:
        summary.digest = write_manifest(store, list(rows.values()))
        on_event(Event("manifest", f"{len(rows):,} cases in the manifest"))
    if alone and summary.digest:
        clear(store, JOURNAL)
        cases, roots = {source.case for source in everything}, {str(source.root) for source in everything}
        gone = {case for case in refused if unlimited and case not in cases and refused[case]["root"] in roots}
        gather(store, [line for case, line in refused.items() if case not in gone])


def _is_there(store: Path, row: dict[str, Any]) -> bool:
    try:
        return (store / "cases" / f"{row['case']}.ozx").stat().st_size == row["file_bytes"]
    except OSError:
        return False
