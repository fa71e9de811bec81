"""Prove a store whole, and equal to its source."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion import archives
from conversion.export import case_volumes, inside_of
from conversion.layouts import recognise
from conversion.nifti import BadImage
from conversion.pool import run_jobs
from conversion.reading import Digests, read_image, read_masks
from conversion.source import Source
from pants_dist.casefile import row_of
from pants_dist.cluster import Died, usable_cores
from pants_dist.errors import DamagedError
from pants_dist.store import Store, manifest_digest, open_store

NOT_IN_THE_FILE = {"source_mtimes_ns"}  # of the manifest's columns

Job = tuple[Path, dict[str, Any], Source | None]


def verify(
    store: Path,
    against: Path | None = None,
    *,
    layout: str = "auto",
    workers: int | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Damage to a store, one line a damaged case; an empty list is a store that is whole.

    Every case's file is read to its last byte and compared with its sha256 in the manifest, what it says of itself with
    its manifest row; the manifest is compared with its own digest; files that the manifest does not know are named.
    With `against`, a dataset's folder (its `layout` is found out unless named, as in `convert`), every voxel of image
    and masks is compared with the sources there as well. `on_case(done, total)` is called after each case.

    Raises UserError where there is no finished store, or no dataset, to look at.
    """
    try:
        opened = open_store(store)
        table = opened.table
    except DamagedError as error:
        return [str(error)]
    if manifest_digest(table) != opened.digest:
        return [f"{opened.path / 'manifest.parquet'}: its rows are not what was written; run the conversion again"]
    sources = {source.case: source for source in recognise(Path(against), layout).sources} if against else {}
    rows = {row["case"]: row for row in table.to_pylist()}
    archived = [source for case, source in sources.items() if source.archived and case in rows]
    in_place = [case for case in rows if case not in sources or not sources[case].archived]
    found: dict[str, str | Died] = {}
    with (
        tempfile.TemporaryDirectory(prefix="pants-verify-") as scratch,
        archives.unpacked(archived, Path(scratch), "verify", archives.Unpacking()) as unpacked,
    ):
        pairs = itertools.chain(((case, sources.get(case)) for case in in_place), ((s.case, s) for s in unpacked))
        jobs = ((opened.case_path(case), rows[case], source) for case, source in pairs)
        for number, (job, result) in enumerate(run_jobs(_look, jobs, workers or usable_cores()), 1):
            found[job[1]["case"]] = result
            on_case(number, len(opened))
    sources = {case: source for case, source in sources.items() if not source.archived or case in found}
    damage = [f"{case}: {_words(found[case])}" for case in sorted(found) if found[case]]
    damage += [f"{name}: not in the manifest" for name in _strangers(opened)]
    if against:
        damage += [f"{case}: in the store, not in {against}" for case in opened.cases if case not in sources]
        damage += [f"{case}: in {against}, not in the store" for case in sorted(set(sources) - set(opened.cases))]
    return damage


def _words(result: str | Died) -> str:
    return result.reason if isinstance(result, Died) else result


def _strangers(store: Store) -> list[str]:
    """Files in cases/ that no row of the manifest stands for."""
    expected = {f"{case}.ozx" for case in store.cases}
    return sorted(f"cases/{path.name}" for path in (store.path / "cases").iterdir() if path.name not in expected)


def _look(job: Job) -> str:
    """What is wrong with a case, in words; empty where nothing is."""
    path, row, source = job
    try:
        return _damage(path, row, source)
    finally:
        if source and source.archived:
            shutil.rmtree(source.root, ignore_errors=True)


def _damage(path: Path, row: dict[str, Any], source: Source | None) -> str:
    try:
        return next(_file_damage(path, row), "") or (next(_differences(path, row, source), "") if source else "")
    except DamagedError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def _file_damage(path: Path, row: dict[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing"
        return
    if (size := path.stat().st_size) != row["file_bytes"]:
        yield f"{path} has {size} bytes, the manifest says {row['file_bytes']}"
        return
    present = row_of(path)
    if present["sha256"] != row["sha256"]:
        yield f"{path} is not what was written: sha256 differs" + _swapped(present, row)
        return
    for name in sorted(row.keys() - NOT_IN_THE_FILE):
        if not _same(present[name], row[name]):
            yield f"{path} says {name} is {present[name]!r}, the manifest says {row[name]!r}"


def _swapped(present: dict[str, Any], row: dict[str, Any]) -> str:
    return f" (it holds {present['case']})" if present["case"] != row["case"] else ""


def _same(left: Any, right: Any) -> bool:
    """Equal, floats as the manifest's float32 columns hold them."""
    if isinstance(left, list) and left and isinstance(left[0], float):
        return np.array_equal(np.array(left, np.float32), np.array(right, np.float32))
    return bool(left == right)


def _differences(path: Path, row: dict[str, Any], source: Source) -> Iterator[str]:
    """Where the stored voxels are not the source's: shape and affine, HU, then structure by structure."""
    try:
        digests = Digests()
        volume = read_image(source, digests)
        image, codes = case_volumes(path, row)
        if image.shape != volume.array_ijk.shape or not np.array_equal(volume.affine.ravel(), row["source_affine"]):
            yield "shape or affine differs from the source's image"
            return
        if wrong := int((image != volume.array_ijk).sum()):
            yield f"{wrong} voxels of the image differ from {source.image}"
        flat, tables = codes.reshape(-1, order="F"), inside_of(row)
        nothing = np.zeros(len(row["palette"]), np.uint8)
        for name, mask, on, *_ in read_masks(source, sorted(source.masks), image.shape, digests):
            if wrong := int((tables.get(name, nothing)[flat] != on[mask]).sum()):
                yield f"{wrong} voxels of {name} differ from {source.masks[name]}"
    except BadImage as error:
        yield f"its source is refused now: {error}"
