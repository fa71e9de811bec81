import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import ROOT, SHARED, convert_in_a_process, files_of, need, write_pants, write_pants_case

import pants_dist.store
from conversion import nifti, repack
from conversion.choice import parse_slice
from conversion.journal import JOURNAL, Writer, quarantined, read_rows
from conversion.layouts import recognise
from conversion.pool import run_jobs
from conversion.run import Event, convert
from pants_dist import casefile
from pants_dist.cluster import Died
from pants_dist.errors import UserError
from pants_dist.store import open_store, write_manifest


@pytest.fixture(scope="module")
def pants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pants(tmp_path_factory.mktemp("source") / "PanTS", [1, 2, 3, 4, 9001])


@pytest.fixture(scope="module")
def store(pants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted conversion by one worker."""
    folder = tmp_path_factory.mktemp("stores") / "one"
    assert convert([pants], folder, workers=1).exit_code == 0
    return folder


def inodes_of(store: Path) -> dict[str, int]:
    """Which files these are: a rewritten file is another one."""
    return {path.name: path.stat().st_ino for path in sorted((store / "cases").iterdir())}


def test_a_store_holds_every_case_and_nothing_else(pants: Path, store: Path) -> None:
    """A finished conversion leaves a manifest and one file a case: no journal, quarantine or temporary file."""
    assert sorted(path.name for path in store.iterdir()) == ["cases", "manifest.parquet"]
    opened = open_store(store)
    assert opened.cases == [f"PanTS_{n:08d}" for n in (1, 2, 3, 4, 9001)]
    assert sorted(files_of(store)) == [f"{case}.ozx" for case in opened.cases]
    row = opened.manifest.loc["PanTS_00000002"]
    assert (row["center"], row["official_split"], row["dataset"], row["age"]) == ("Hospital C", "train", "PanTS", 42)
    assert list(row["spacing_mm_zyx"]) == pytest.approx([2.5, 0.7, 0.8])


def test_files_do_not_depend_on_workers_or_slices(pants: Path, store: Path, tmp_path: Path) -> None:
    """One worker, two workers and two slices write the same bytes, manifest rows included."""
    convert([pants], tmp_path / "two", workers=2)
    first = convert([pants], tmp_path / "slices", workers=1, slice_=parse_slice("1/2"))
    assert (len(first.converted), first.elsewhere, first.digest) == (3, 2, None)
    with pytest.raises(UserError, match="the conversion is not finished; run"):
        open_store(tmp_path / "slices")
    convert([pants], tmp_path / "slices", workers=1, slice_=parse_slice("2/2"))
    for other in (tmp_path / "two", tmp_path / "slices"):
        assert files_of(other) == files_of(store)
        assert open_store(other).digest == open_store(store).digest


def test_files_do_not_depend_on_the_nodes_of_a_ray_cluster(pants: Path, store: Path, tmp_path: Path) -> None:
    """Workers on two nodes of a Ray cluster write the same bytes."""
    program = f"""
from ray.cluster_utils import Cluster
from conversion.run import convert
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
try:
    cluster.add_node(num_cpus=1)
    summary = convert([{str(pants)!r}], {str(tmp_path / "ray")!r}, ray=cluster.address)
    print(len(summary.converted), summary.refused)
finally:
    cluster.shutdown()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.stdout.splitlines()[-1:] == ["5 {}"], done.stderr
    assert files_of(tmp_path / "ray") == files_of(store)
    assert open_store(tmp_path / "ray").digest == open_store(store).digest


def test_running_again_redoes_nothing(pants: Path, store: Path) -> None:
    """A finished store is kept as it is, file by file, and its manifest says the same."""
    before, digest = inodes_of(store), open_store(store).digest
    summary = convert([pants], store, workers=1)
    assert (summary.converted, len(summary.kept), summary.exit_code) == ([], 5, 0)
    assert inodes_of(store) == before and open_store(store).digest == digest


def test_only_what_changed_is_converted_again(pants: Path, store: Path, tmp_path: Path) -> None:
    """A new case touches one file, a changed mask or metadata row one, and a new time on equal bytes none."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    assert convert([root], folder, workers=1).converted == []
    before = inodes_of(folder)

    write_pants_case(root, "PanTS_00000007", (20, 24, 16), np.random.default_rng(7))
    os.utime(root / "ImageTr" / "PanTS_00000001" / "ct.nii.gz", (1, 1))
    mask = root / "LabelTr" / "PanTS_00000003" / "segmentations" / "liver.nii.gz"
    volume = nifti.read(mask)
    nifti.write(mask, 1 - volume.array_ijk, volume.affine)
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("PanTS_00000004,1 Site", "PanTS_00000004,NA"))

    summary = convert([root], folder, workers=2)
    assert summary.converted == ["PanTS_00000003", "PanTS_00000004", "PanTS_00000007"]
    after = inodes_of(folder)
    assert {name for name in before if before[name] != after[name]} == {"PanTS_00000003.ozx", "PanTS_00000004.ozx"}
    assert open_store(folder).manifest.at["PanTS_00000004", "center"] == "unknown"


def test_a_case_removed_from_the_store_comes_back(pants: Path, store: Path, tmp_path: Path) -> None:
    """A lost and a truncated file are made again, with the bytes they had; a lost manifest costs no conversion."""
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    (folder / "cases" / "PanTS_00000002.ozx").unlink()
    os.truncate(folder / "cases" / "PanTS_00000003.ozx", 1000)
    assert convert([pants], folder, workers=1).converted == ["PanTS_00000002", "PanTS_00000003"]
    assert files_of(folder) == files_of(store)
    (folder / "manifest.parquet").unlink()
    assert convert([pants], folder, workers=1).converted == []
    assert open_store(folder).digest == open_store(store).digest


def test_a_store_of_an_older_format_is_refused_and_made_anew(
    pants: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading version 1 names the command that mends it; that command converts every case, whatever the journal says."""
    folder = tmp_path / "store"
    (folder / "cases").mkdir(parents=True)
    with monkeypatch.context() as older:
        for module in (casefile, pants_dist.store):
            older.setattr(module, "FORMAT_VERSION", 1)
        older.setattr(repack, "CONVERTER", "pants-dist conversion 1")
        rows = [repack.convert_case(source, folder / "cases") for source in recognise(pants).sources]
        write_manifest(folder, rows)
        Writer(folder, JOURNAL).append({"row": {"case": rows[0]["case"], "converter": "pants-dist conversion 1"}})
    with pytest.raises(UserError, match='format version 1, this program reads 2; run "pants-dist convert SRC '):
        open_store(folder)
    assert len(convert([pants], folder, workers=1).converted) == 5
    assert files_of(folder) == files_of(store) and open_store(folder).digest == open_store(store).digest


def kill_in_the_middle(source: Path, store: Path, finished: int, delay_seconds: float) -> None:
    """kill -9 a conversion some time after it reported so many finished cases."""
    process = convert_in_a_process(source, store)
    assert process.stdout
    while finished >= 0:
        finished -= process.stdout.readline().strip() in ("plan", "converted")
    time.sleep(delay_seconds)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("finished", [0, 2])
def test_kill_9_and_the_same_command_again(finished: int, pants: Path, store: Path, tmp_path: Path) -> None:
    """Killed in the middle, then run again: the files of an uninterrupted run; none that was whole is rewritten."""
    kill_in_the_middle(pants, tmp_path / "store", finished, random.uniform(0, 0.02))
    check_resumes(pants, tmp_path / "store", store)


@pytest.mark.long
def test_kill_9_twenty_times(pants: Path, store: Path, tmp_path: Path) -> None:
    """The same at twenty random moments, on one store that is started over whenever it was finished."""
    for attempt in range(20):
        kill_in_the_middle(pants, tmp_path / str(attempt), random.randint(0, 4), random.uniform(0, 0.05))
        check_resumes(pants, tmp_path / str(attempt), store)


def check_resumes(source: Path, folder: Path, expected: Path) -> None:
    """Run a killed conversion again and compare it, file by file, with one that was not."""
    time.sleep(0.2)  # for the kernel to end the workers
    if not (folder / "manifest.parquet").is_file():
        with pytest.raises(UserError, match="run .*convert"):
            open_store(folder)
    before = inodes_of(folder) if (folder / "cases").is_dir() else {}
    whole = {name: inode for name, inode in before.items() if not name.startswith(".")}
    summary = convert([source], folder, workers=2)
    assert sorted(f"{case}.ozx" for case in summary.kept) == sorted(whole)
    assert whole.items() <= inodes_of(folder).items()
    assert files_of(folder) == files_of(expected)
    assert open_store(folder).digest == open_store(expected).digest


def test_a_file_that_the_journal_does_not_know_is_asked_itself(pants: Path, store: Path, tmp_path: Path) -> None:
    """Killed between a case's file and its line in the journal, or in the middle of the line: the file is kept."""
    folder = tmp_path / "store"
    shutil.copytree(store / "cases", folder / "cases")
    (folder / "cases" / ".PanTS_00000001.ozx.123.tmp").write_bytes(b"half a case")
    journal = Writer(folder, JOURNAL)
    for row in open_store(store).table.to_pylist()[:2]:
        journal.append({"row": row})
    journal.path.write_text(journal.path.read_text()[:-40])
    assert len(read_rows(folder)) == 1
    assert convert([pants], folder, workers=1).converted == []
    assert files_of(folder) == files_of(store) and open_store(folder).digest == open_store(store).digest


REASONS = {  # by the number that make_bad_cases.py gives each fault
    8901: "ct.nii.gz: truncated", 8902: "ct.nii.gz: empty file", 8903: "ct.nii.gz: 280 bytes of garbage",
    8904: "ct.nii.gz: damaged gzip data", 8905: "ct.nii.gz: not a NIfTI", 8906: "ct.nii.gz: 1 voxels are NaN",
    8907: "ct.nii.gz: 4 dimensions", 8908: "liver.nii.gz: shape (17, 24, 16) is not the image's (20, 24, 16)",
    8909: "liver.nii.gz: a mask with more than two values, 0, 1, 2", 8910: "liver.nii.gz: truncated",
    8911: "ct.nii.gz: absurd voxel size 5000 x 1 x 1 mm", 8912: "ct.nii.gz: cannot be read (No such file",
    8913: "no masks", 8914: "ct.nii.gz: cannot be read (Is a directory)",
}  # fmt: skip


def test_every_fault_is_quarantined_and_stops_nothing(pants: Path, tmp_path: Path) -> None:
    """Each kind of broken case is refused in words, with its path; the rest converts; mended cases convert later."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    subprocess.run([sys.executable, need(SHARED / "tools" / "make_bad_cases.py"), root], check=True, capture_output=True)
    folder = tmp_path / "store"
    summary = convert([root], folder, workers=2)
    assert summary.exit_code == 1 and len(summary.converted) == 5
    listed = quarantined(folder)
    assert {case: line["reason"] for case, line in listed.items()} == summary.refused
    assert set(listed) == {f"PanTS_{number:08d}" for number in REASONS}
    for number, reason in REASONS.items():
        assert listed[f"PanTS_{number:08d}"]["reason"].startswith(reason)
        assert listed[f"PanTS_{number:08d}"]["path"] == str(root / "ImageTr" / f"PanTS_{number:08d}" / "ct.nii.gz")
    assert len(open_store(folder)) == 5

    good = root / "ImageTr" / "PanTS_00000001" / "ct.nii.gz"
    shutil.copy(good, root / "ImageTr" / "PanTS_00008901" / "ct.nii.gz")
    shutil.rmtree(root / "ImageTr" / "PanTS_00008902")
    again = convert([root], folder, workers=2)
    assert again.converted == ["PanTS_00008901"] and len(again.kept) == 5 and len(again.refused) == 12
    assert set(quarantined(folder)) == set(again.refused)


def test_a_refused_case_keeps_its_earlier_conversion(pants: Path, store: Path, tmp_path: Path) -> None:
    """A source that went bad is reported, and what was made of it while it was good stays."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    (root / "ImageTr" / "PanTS_00000001" / "ct.nii.gz").write_bytes(b"")
    summary = convert([root], folder, workers=1)
    assert list(summary.refused) == ["PanTS_00000001"] and summary.exit_code == 1
    assert files_of(folder) == files_of(store) and len(open_store(folder)) == 5


def test_a_name_that_is_no_case_id_is_refused(pants: Path, tmp_path: Path) -> None:
    """A folder whose name could lead out of the store, or that no file system likes, is quarantined."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    for name in ("a..b", "two words"):
        shutil.copytree(root / "ImageTr" / "PanTS_00000001", root / "ImageTr" / name)
    assert set(convert([root], tmp_path / "store", workers=1).refused) == {"a..b", "two words"}


def dies_on_three(job: int) -> int:
    """A worker's function for the next test."""
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def test_a_dead_worker_costs_its_one_case() -> None:
    """A worker that is killed loses the job it had; all others are done, by a new worker if need be."""
    results = dict(run_jobs(dies_on_three, [1, 2, 3, 4, 5], workers=2))
    assert isinstance(results.pop(3), Died) and results == {1: 1, 2: 4, 4: 16, 5: 25}


def test_a_full_disk_stops_with_one_line(pants: Path, store: Path, tmp_path: Path) -> None:
    """A write that the disk refuses ends the run, says how to go on, and leaves no half-written case."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    process = convert_in_a_process(pants, tmp_path / "store", limit)
    _, errors = process.communicate(timeout=60)
    assert "UserError" in errors and "File too large" in errors and "run the same command again" in errors
    assert files_of(tmp_path / "store") == {}
    convert([pants], tmp_path / "store", workers=1)
    assert files_of(tmp_path / "store") == files_of(store)


def test_limit_and_dry_run(pants: Path, tmp_path: Path) -> None:
    """A dry run names what it would convert and writes nothing; --limit makes a whole store of the first cases."""
    summary = convert([pants], tmp_path / "store", workers=1, limit=2, dry_run=True)
    assert summary.planned == ["PanTS_00000001", "PanTS_00000002"] and not (tmp_path / "store").exists()
    convert([pants], tmp_path / "store", workers=1, limit=2)
    assert open_store(tmp_path / "store").cases == summary.planned
    assert len(convert([pants], tmp_path / "store", workers=1).kept) == 2
    convert([pants], tmp_path / "store", workers=1, limit=2)
    assert len(open_store(tmp_path / "store")) == 5


def test_events_tell_what_is_going_on(pants: Path, tmp_path: Path) -> None:
    """What was recognised, what is to do, one event a case, then the manifest: enough for a progress bar."""
    events: list[Event] = []
    convert([pants], tmp_path / "store", workers=1, on_event=events.append)
    assert [event.kind for event in events] == ["found", "plan", *["converted"] * 5, "manifest"]
    assert events[0].text == f"{pants}: pants, 5 images, 140 masks"
    assert [(event.done, event.total) for event in events[2:7]] == [(n, 5) for n in range(1, 6)]
    assert all(event.source_bytes > 10_000 for event in events[2:7])


def test_bad_input_is_refused_in_one_line(pants: Path, store: Path, tmp_path: Path) -> None:
    """Stores that are something else and numbers without sense are refused before anything is done."""
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"store": tmp_path / "file"}, "is a file; name a new folder"),
        ({"store": tmp_path / "file" / "inside"}, "cannot be made"),
        ({"store": tmp_path / "photos"}, "holds something that is no store"),
        ({"store": store, "workers": 0}, "--workers 0: must be at least 1"),
        ({"store": store, "limit": 0}, "--limit 0: must be at least 1"),
        ({"store": store, "slice_": (3, 2)}, "--slice 3/2: slices count from 1/2 to 2/2"),
        ({"store": store, "sources": [pants, Path(shutil.copytree(pants, tmp_path / "twice"))]}, "give one of them"),
    ]
    for arguments, message in refusals:
        with pytest.raises(UserError, match=message):
            convert(**{"sources": [pants], **arguments})
    with pytest.raises(UserError, match="--slice two: give I/N"):
        parse_slice("two")
