"""Room on the disk: said beforehand, refused where it cannot do, and counted where a disk fills up half-way."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import write_pants

from conversion.run import Event, convert
from conversion.space import RATIO, Need, check
from pants_dist.errors import UserError


@pytest.fixture(scope="module")
def pants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pants(tmp_path_factory.mktemp("pants"), [1, 2, 3], shape_ijk=(64, 64, 48))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("this CI cannot mount a tmpfs: run it as root")
        pytest.skip("mounting a tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_is_refused_before_anything_is_written(pants: Path, small_disk: Path) -> None:
    """One line says what is needed, what is free and what is missing; the disk stays as it was."""
    with pytest.raises(UserError, match=r"needed, 0\.5 MB .*free; free \d.* MB more") as error:
        convert([pants], small_disk / "store", workers=1)
    assert "\n" not in str(error.value) and list(small_disk.iterdir()) == []


def test_a_dry_run_says_what_is_needed(pants: Path, small_disk: Path) -> None:
    """Also where the disk could not take it, since nothing is written."""
    events: list[Event] = []
    convert([pants], small_disk / "store", workers=1, dry_run=True, on_event=events.append)
    total = sum(path.stat().st_size for path in pants.rglob("*.nii.gz"))
    assert f"about {RATIO * total / 1e6:,.1f} MB in 11 files needed, 0.5 MB" in events[-1].text


def test_a_disk_that_fills_up_half_way(pants: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says how much is missing for the cases that are left, and nothing half-written stays."""
    monkeypatch.setattr("conversion.space.check", lambda needed, store: None)  # as if others had filled the disk since
    with pytest.raises(UserError, match=r"No space left.*MB are missing\); .*same command again"):
        convert([pants], small_disk / "store", workers=1)
    assert all(path.name.endswith(".ozx") for path in (small_disk / "store" / "cases").iterdir())


def test_inodes_count_where_the_disk_counts_them(tmp_path: Path) -> None:
    """Too few are refused with how many are missing; a disk that does not count them takes any number."""
    with pytest.raises(UserError, match=r"free 3 more files \(inodes\)"):
        check(Need(bytes=10, files=8, free_bytes=100, free_files=5), tmp_path)
    check(Need(bytes=10, files=8, free_bytes=100, free_files=None), tmp_path)
