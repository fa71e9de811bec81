import io
import os
import shutil
import signal
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from sources import convert_in_a_process, files_of, write_pants

from conversion import nifti
from conversion.choice import parse_slice
from conversion.journal import quarantined
from conversion.layouts import recognise
from conversion.run import convert
from conversion.space import need
from conversion.verify import verify
from pants_dist.errors import UserError
from pants_dist.store import open_store

FIRST, SECOND, LABELS = (f"PanTSMini_{name}.tar.gz" for name in (
    "ImageTr_00000001_00000003", "ImageTe_00009001_00009002", "Label"))  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pants(tmp_path_factory.mktemp("unpacked") / "PanTS", [1, 2, 9001, 9002], (24, 20, 16))


def pack(folders: Path, out: Path) -> Path:
    """The same dataset as its archives: PanTS_00000003 has no image, and a strange file lies beside the masks."""
    out.mkdir()
    shutil.copy(folders / "metadata.csv", out)
    for name, folder in ((FIRST, "ImageTr"), (SECOND, "ImageTe")):
        with tarfile.open(out / name, "w:gz") as archive:
            archive.add(folders / folder, f"./{folder}")
    with tarfile.open(out / LABELS, "w:gz") as archive:
        for folder in ("LabelTr", "LabelTe"):
            archive.add(folders / folder, f"PanTSMini_Label/{folder}")
        member = tarfile.TarInfo("PanTSMini_Label/LabelTr/PanTS_00000001/combined_labels.nii.gz")
        archive.addfile(member, io.BytesIO())
    return out


@pytest.fixture(scope="module")
def archives(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(folders, tmp_path_factory.mktemp("packed") / "PanTS")


@pytest.fixture(scope="module")
def unpacked_store(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "folders"
    assert convert([folders], folder, workers=1).exit_code == 0
    return folder


def test_archives_give_the_files_that_folders_give(archives: Path, unpacked_store: Path, tmp_path: Path) -> None:
    """Byte for byte; nothing is left of staging; the number without an image is a note, and known the next time."""
    store = tmp_path / "store"
    summary = convert([archives], store, workers=2)
    assert summary.exit_code == 0 and len(summary.converted) == 4
    assert "1 number(s) of the archives' names have no image in them" in summary.notes
    assert files_of(store) == files_of(unpacked_store)
    assert sorted(path.name for path in store.iterdir()) == ["absent", "cases", "manifest.parquet"]
    before, digest = os.stat(store / "cases" / "PanTS_00000001.ozx").st_ino, open_store(store).digest
    os.chmod(archives / FIRST, 0)
    shutil.move(archives / SECOND, tmp_path / "away")
    (archives / SECOND).symlink_to(tmp_path / "away")
    again = convert([archives], store, workers=1)
    assert (again.converted, len(again.kept), open_store(store).digest) == ([], 4, digest)
    assert os.stat(store / "cases" / "PanTS_00000001.ozx").st_ino == before
    (archives / SECOND).unlink()
    shutil.move(tmp_path / "away", archives / SECOND)
    os.chmod(archives / FIRST, 0o644)


def test_archives_that_were_touched_are_read_again_and_nothing_is_rewritten(
    folders: Path, unpacked_store: Path, tmp_path: Path
) -> None:
    """A new time on an archive costs its reading; its cases are kept, since their bytes are the same."""
    source, store = pack(folders, tmp_path / "PanTS"), tmp_path / "store"
    convert([source], store, workers=1)
    os.utime(source / FIRST, (1, 1))
    summary = convert([source], store, workers=1)
    assert (summary.converted, len(summary.kept)) == ([], 4)
    assert files_of(store) == files_of(unpacked_store) and not (store / "staging").exists()


def test_a_store_is_proven_equal_to_archives(
    folders: Path, archives: Path, unpacked_store: Path, tmp_path: Path
) -> None:
    """Every voxel against the archives' own; a mask that differs there is named, and a case that is not in them."""
    assert verify(unpacked_store, archives, workers=2) == []
    changed = Path(shutil.copytree(folders, tmp_path / "changed"))
    mask = changed / "LabelTr" / "PanTS_00000002" / "segmentations" / "liver.nii.gz"
    volume = nifti.read(mask)
    nifti.write(mask, 1 - volume.array_ijk, volume.affine)
    shutil.rmtree(changed / "ImageTe" / "PanTS_00009001")
    other = pack(changed, tmp_path / "PanTS")
    differs, missing = verify(unpacked_store, other, workers=1)
    assert differs.startswith("PanTS_00000002: ") and "voxels of liver differ from" in differs
    assert missing == f"PanTS_00009001: in the store, not in {other}"


def test_slices_do_not_divide_archives(archives: Path, unpacked_store: Path, tmp_path: Path) -> None:
    """Two slices take an archive each, and together make the same store."""
    store = tmp_path / "store"
    first = convert([archives], store, workers=1, slice_=parse_slice("1/2"))
    assert first.converted == ["PanTS_00000001", "PanTS_00000002"] and first.digest is None
    second = convert([archives], store, workers=1, slice_=parse_slice("2/2"))
    assert second.converted == ["PanTS_00009001", "PanTS_00009002"] and second.digest
    assert files_of(store) == files_of(unpacked_store)


def test_a_killed_conversion_goes_on(archives: Path, unpacked_store: Path, tmp_path: Path) -> None:
    """kill -9 once the first case is there: the same command again makes the rest, from the labels that were staged."""
    store = tmp_path / "store"
    process = convert_in_a_process(archives, store, workers=1)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("converted"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.5)  # its worker ends with it
    assert list(Path(tempfile.gettempdir()).glob(f"pants-archives-{process.pid}-*"))
    there = len(files_of(store))
    staged = sorted(path.stat().st_mtime_ns for path in store.rglob("*.pack"))
    assert 1 <= there < 4 and staged
    seen: list[list[int]] = []
    summary = convert([archives], store, workers=1, on_event=lambda event: seen.append(
        sorted(path.stat().st_mtime_ns for path in store.rglob("*.pack"))))  # fmt: skip
    assert len(summary.converted) <= 4 - there + 1 and staged in seen
    assert files_of(store) == files_of(unpacked_store) and not (store / "staging").exists()
    assert not list(Path(tempfile.gettempdir()).glob(f"pants-archives-{process.pid}-*"))


def test_members_cannot_lead_out(folders: Path, tmp_path: Path) -> None:
    """Absolute names, "..", links: none is followed, nothing is written outside the store; the good cases are converted."""
    source, store = pack(folders, tmp_path / "PanTS"), tmp_path / "deep" / "store"
    image = (folders / "ImageTr" / "PanTS_00000001" / "ct.nii.gz").read_bytes()
    with tarfile.open(source / FIRST, "w:gz") as archive:
        for name in ("/abs/PanTS_00000001/ct.nii.gz", "../../../evil/../PanTS_00000002/ct.nii.gz", "../../PanTS_..%/ct.nii.gz"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
        link = tarfile.TarInfo("ImageTr/PanTS_00000003/ct.nii.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    summary = convert([source], store, workers=1)
    assert "1 member(s) of archives are links or devices: left out" in summary.notes
    assert summary.converted == ["PanTS_00000001", "PanTS_00000002", "PanTS_00009001", "PanTS_00009002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PanTS", "deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["store"]


@pytest.mark.parametrize(("name", "kept"), [(FIRST, 0.6), (FIRST, 0.9), (LABELS, 0.6)])
def test_a_truncated_archive_costs_what_is_behind_the_cut(name: str, kept: float, tmp_path: Path) -> None:
    """What came before is converted, the rest is refused with the archive's name, none is lost without a word; with the
    archive whole again the rest is made. The cuts are inside an image and inside a mask."""
    folders = write_pants(tmp_path / "unpacked", [1, 2, 9001, 9002], (64, 64, 40))
    source, store = pack(folders, tmp_path / "PanTS"), tmp_path / "store"
    whole = (source / name).read_bytes()
    (source / name).write_bytes(whole[: int(len(whole) * kept)])
    summary = convert([source], store, workers=1)
    assert summary.exit_code == 1 and summary.refused and summary.converted and summary.elsewhere == 0
    assert {*summary.refused, *summary.converted} >= {f"PanTS_{number:08d}" for number in (1, 2, 9001, 9002)}
    assert all(f"{name} is damaged before" in reason and "download it again" in reason for reason in summary.refused.values())
    assert set(quarantined(store)) == set(summary.refused) and summary.digest
    (source / name).write_bytes(whole)
    convert([source], store, workers=1)
    assert len(open_store(store)) == 4 and not quarantined(store)


@pytest.mark.parametrize("limit", [3_000, 20_000])
def test_a_full_disk_is_not_a_damaged_archive(limit: int, archives: Path, tmp_path: Path) -> None:
    """Where staging or the temporary folder cannot be written, the run ends with a line on that; nothing is refused."""
    before = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    _, errors = convert_in_a_process(archives, tmp_path / "store", before, workers=1).communicate(timeout=120)
    assert "UserError" in errors and "File too large" in errors and "damaged" not in errors
    assert not quarantined(tmp_path / "store")


def test_limit_dry_run_and_preflight(archives: Path, tmp_path: Path) -> None:
    """A dry run reads no archive; the labels that will be staged count; --limit takes the first cases."""
    assert convert([archives], tmp_path / "s", limit=2, dry_run=True).planned == ["PanTS_00000001", "PanTS_00000002"]
    assert not (tmp_path / "s").exists()
    sources = recognise(archives).sources
    assert need(sources, tmp_path).bytes > (archives / LABELS).stat().st_size
    assert convert([archives], tmp_path / "s", workers=1, limit=1).converted == ["PanTS_00000001"]
    assert open_store(tmp_path / "s").cases == ["PanTS_00000001"]


def test_archives_without_labels_are_refused(archives: Path, tmp_path: Path) -> None:
    shutil.copy(archives / FIRST, tmp_path)
    with pytest.raises(UserError, match="0 label archives beside the images, not 1; get PanTSMini_Label.tar.gz"):
        convert([tmp_path], tmp_path / "store")
