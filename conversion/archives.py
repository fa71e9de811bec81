"""PanTS as its downloaded archives, read in place: no unpacked copy of everything, and no million of files.

    PanTSMini_ImageTr_00000001_00001000.tar.gz    images of these ids, one after the other
    PanTSMini_Label.tar.gz                        every case's masks, train and test mixed

The label archive is read once: the masks of the cases that are to be converted go, packed as they are, into a few files
in STORE/staging. Then each image archive is read once; a case's files exist in a temporary folder while it is converted.
Members are found by their last names and written under names of our own: no member can lead out of these folders.
"""

import contextlib
import gzip
import json
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from conversion import pants
from conversion.mapping import renamed
from conversion.source import Archived, Found, Source, counted
from pants_dist.disk import replacing
from pants_dist.errors import UserError

IMAGES = re.compile(r"PanTS\w*_Image\w+_(\d{8})_(\d{8})\.tar\.gz")
LABELS = re.compile(r"PanTS\w*_Labels?\.tar\.gz")
IMAGE_MEMBER = re.compile(r"(?:.*/)?(PanTS_\d{8})/ct\.nii\.gz")
MASK_MEMBER = re.compile(r"(?:.*/)?(PanTS_\d{8})/segmentations/([A-Za-z0-9]\w*)\.nii\.gz")
STAGING, INDEX, ABSENT = "staging", "index.json", "absent"
PACK_BYTES = 4 << 30
TEMPORARY = "pants-archives-"


class Damaged(Exception):
    """An archive cannot be read to its end."""


@dataclass
class Unpacking:
    """What came to light while archives were read: cases that are in none, and why others could not be had."""

    absent: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    strange: int = 0  # members that are links or devices, left out


def recognises(root: Path) -> bool:
    """Whether archives of images lie in the folder."""
    return root.is_dir() and any(IMAGES.fullmatch(path.name) for path in root.iterdir())


def read(root: Path, metadata: Path | None) -> Found:
    """A case for each id of the image archives' names; which of them are there is known once an archive was read."""
    labels = [path for path in sorted(root.iterdir()) if LABELS.fullmatch(path.name)]
    if len(labels) != 1:
        raise UserError(f"source {root}: {len(labels)} label archives beside the images, not 1; get PanTSMini_Label.tar.gz")
    rows, sources = pants.pants_rows(root, metadata), dict[str, Source]()
    archives = [(path, found) for path in sorted(root.iterdir()) if (found := IMAGES.fullmatch(path.name))]
    total = sum(int(found[2]) - int(found[1]) + 1 for _, found in archives)
    for path, found in archives:
        numbers = range(int(found[1]), int(found[2]) + 1)
        shares = path.stat().st_size // len(numbers), labels[0].stat().st_size // total
        archived = Archived(labels[0], *shares, _stamp(path, labels[0]))
        for case in (f"PanTS_{number:08d}" for number in numbers):
            if case in sources:
                raise UserError(f"case {case} is both in {sources[case].image.name} and in {path.name}; keep one of them")
            about = pants.pants_about(case, rows.get(case))
            sources[case] = Source(case, "PanTS", root, path, {}, (), about, archived=archived)
    notes = [f"{len(archives):,} archives of images and {labels[0].name} are read in place; cases are those of their names"]
    notes += counted({"metadata row(s) have no image here: normal for a part download": len(set(rows) - set(sources))})
    return Found("archives", root, list(sources.values()), notes)


def _stamp(*paths: Path) -> str:
    return json.dumps([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths])


def present(sources: Sequence[Source], store: Path) -> list[Source]:
    """Those that no earlier reading of their archive, as it is now, has missed."""
    missed = {
        (path.stem, stamp): set(cases)
        for path in (store / ABSENT).glob("*.json")
        for stamp, cases in json.loads(path.read_text()).items()
    }
    return [s for s in sources if not s.archived or s.case not in missed.get((s.image.name, s.archived.stamp), ())]


def notes(report: Unpacking) -> list[str]:
    """What is worth saying after archives were read."""
    return counted(
        {
            "number(s) of the archives' names have no image in them": len(report.absent),
            "member(s) of archives are links or devices: left out": report.strange,
        }
    )


@contextlib.contextmanager
def unpacked(sources: Sequence[Source], store: Path, slice_name: str, report: Unpacking) -> Iterator[Iterator[Source]]:
    """Yields an iterator over the sources with their files in place: those of folders as they are, then the archives'.

    The files of an archived case lie in its `root` until the worker that had it removes that, at the latest until this
    context ends: stay in it until the last case is done. Staged labels of this slice are removed at the end; killed
    before, the next run finds them. `report` is filled while archives are read.
    """
    archived = [source for source in sources if source.archived]
    folders = iter([source for source in sources if not source.archived])
    if not archived:
        yield folders
        return
    staging = store / STAGING / slice_name
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{os.getpid()}-") as temporary:
        yield _chained(folders, archived, staging, Path(temporary), store, report)
    shutil.rmtree(staging, ignore_errors=True)
    with contextlib.suppress(OSError):  # other slices may be at work
        staging.parent.rmdir()


def _sweep() -> None:
    """Remove the temporary folders of conversions on this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        if not Path("/proc", folder.name.removeprefix(TEMPORARY).partition("-")[0]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _chained(
    folders: Iterator[Source], archived: list[Source], staging: Path, temporary: Path, store: Path, report: Unpacking
) -> Iterator[Source]:
    yield from folders
    for labels in sorted({source.archived.labels for source in archived if source.archived}):
        part = [source for source in archived if source.archived and source.archived.labels == labels]
        masks = _staged(labels, part, staging / labels.parent.name, report)
        for images in sorted({source.image for source in part}):
            wanted = {source.case: source for source in part if source.image == images}
            yield from _stream(images, wanted, masks, temporary, store, report)


def _stream(
    images: Path, wanted: dict[str, Source], masks: "Masks", temporary: Path, store: Path, report: Unpacking
) -> Iterator[Source]:
    """Cases of one archive of images, as they come by. Those that do not are absent, or refused where it is damaged."""
    left = {case: source for case, source in wanted.items() if case not in report.refused}
    if not left:
        return
    try:
        for name, data in _members(images, IMAGE_MEMBER, left, report):
            case = name[1]
            root = temporary / case
            image = root / _folder(name[0], 3, pants.IMAGES, "ImageTr") / case / "ct.nii.gz"
            with _checked(temporary, "set TMPDIR to a folder with more room"):
                image.parent.mkdir(parents=True)
                image.write_bytes(data)
                files = renamed(masks.write(case, root), root)
            yield replace(left.pop(case), root=root, image=image, masks=files, annotated=tuple(sorted(files)))
            if not left:
                return
    except Damaged as error:
        reason = f"{images.name} is damaged before the end of this case ({error}); download it again"
        report.refused |= dict.fromkeys(left, reason)
        return
    report.absent += left
    _remember(store, wanted[next(iter(wanted))], list(left))


@contextlib.contextmanager
def _checked(folder: Path, cure: str) -> Iterator[None]:
    """Raises UserError where the disk refuses what is written inside."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); {cure}, and run the same command again") from error


def _folder(member: str, place: int, known: re.Pattern[str], usual: str) -> str:
    """The folder that a member's case folder lies in, where it has one of PanTS's names."""
    parts = member.split("/")
    return parts[-place] if len(parts) >= place and known.fullmatch(parts[-place]) else usual


def _remember(store: Path, source: Source, absent: list[str]) -> None:
    """So that the next run need not read the archive again to find that it has no such cases."""
    assert source.archived
    path = store / ABSENT / f"{source.image.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()).get(source.archived.stamp, []) if path.is_file() else []
    with replacing(path) as file:
        file.write(json.dumps({source.archived.stamp: sorted({*before, *absent})}).encode())


def _members(
    archive: Path, names: re.Pattern[str], wanted: Mapping[str, Any], report: Unpacking
) -> Iterator[tuple[re.Match[str], bytes]]:
    """(name, contents) of an archive's plain files of wanted cases, in the archive's order. Raises Damaged."""
    try:
        with gzip.open(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 16) as members:
            for member in members:
                found = names.fullmatch(member.name)
                if not found or found[1] not in wanted:
                    continue
                if not member.isreg():
                    report.strange += 1
                elif contents := members.extractfile(member):
                    yield found, contents.read()
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise Damaged(str(error) or type(error).__name__) from error


@dataclass(frozen=True)
class Masks:
    """Masks in packed files: `places[case][name below the case's root]` is (pack, offset, bytes)."""

    folder: Path
    places: Mapping[str, Mapping[str, tuple[str, int, int]]]

    def write(self, case: str, root: Path) -> dict[str, Path]:
        """A case's masks as files below `root`; their paths by structure."""
        written = {}
        places = sorted((*place, root / name) for name, place in self.places.get(case, {}).items())
        for pack, group in groupby(places, key=itemgetter(0)):
            with open(self.folder / pack, "rb") as file:
                for _, offset, size, path in group:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file.seek(offset)
                    path.write_bytes(file.read(size))
                    written[path.name.removesuffix(".nii.gz")] = path
        return written


def _staged(labels: Path, sources: list[Source], folder: Path, report: Unpacking) -> Masks:
    """The masks of these cases, from an earlier run that was killed where it staged them all, else staged now."""
    wanted, index = {source.case: source for source in sources}, folder / INDEX
    stamp = _stamp(labels)
    if index.is_file():
        found = json.loads(index.read_text())
        if found["stamp"] == stamp and set(wanted) <= set(found["cases"]):
            return Masks(folder, found["places"])
    shutil.rmtree(folder, ignore_errors=True)
    places: dict[str, dict[str, tuple[str, int, int]]] = {}
    last = ""
    try:
        with _checked(folder, "free some room"):
            folder.mkdir(parents=True)
            for name, place in _packed(_members(labels, MASK_MEMBER, wanted, report), folder):
                last = name[1]
                path = f"{_folder(name[0], 4, pants.LABELS, 'LabelTr')}/{last}/segmentations/{name[2]}.nii.gz"
                places.setdefault(last, {})[path] = place
            with replacing(index) as file:
                file.write(json.dumps({"stamp": stamp, "cases": sorted(wanted), "places": places}).encode())
    except Damaged as error:
        reason = f"{labels.name} is damaged before the end of its masks ({error}); download it again"
        report.refused |= {case: reason for case in wanted if case == last or case not in places}
    return Masks(folder, places)


def _packed(
    members: Iterator[tuple[re.Match[str], bytes]], folder: Path
) -> Iterator[tuple[re.Match[str], tuple[str, int, int]]]:
    """Write members one behind the other; (name, (pack, offset, bytes)) of each."""
    number, offset = 0, PACK_BYTES
    pack: IO[bytes] | None = None
    try:
        for name, data in members:
            if offset >= PACK_BYTES or pack is None:
                if pack:
                    pack.close()
                number, offset = number + 1, 0
                pack = open(folder / f"labels-{number:03d}.pack", "wb")  # noqa: SIM115
            pack.write(data)
            yield name, (Path(pack.name).name, offset, len(data))
            offset += len(data)
    finally:
        if pack:
            pack.close()
