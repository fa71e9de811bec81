import os
from pathlib import Path

import numpy as np
import pytest
from small import make_store

from pants_dist.errors import DamagedError
from pants_dist.stage import STALE_S, Stage
from pants_dist.store import Store, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_store(tmp_path / "s", cases=4)


def read_all(opened: Store) -> list[bytes]:
    return [b"".join(a.tobytes() for a in opened.read_patch(case, (0, 0, 0), (40, 40, 40))) for case in opened.cases]


def test_cases_are_read_from_copies(tmp_path: Path, folder: Path) -> None:
    """The first read of a case copies it; later ones, by any process, need the store no more."""
    expected = read_all(open_store(folder))
    stage = Stage(tmp_path / "node", 1 << 30)
    assert read_all(open_store(folder, stage=stage)) == expected
    assert len(list((tmp_path / "node").iterdir())) == 4
    for path in (folder / "cases").iterdir():
        path.unlink()
    assert read_all(open_store(folder, stage=Stage(tmp_path / "node", 1 << 30))) == expected


def test_the_limit_holds(tmp_path: Path, folder: Path) -> None:
    """Copies stop below the limit, and the rest is read from the store."""
    sizes = sorted(path.stat().st_size for path in (folder / "cases").iterdir())
    limit = sizes[-1] * 2 + 10
    assert read_all(open_store(folder, stage=Stage(tmp_path / "node", limit))) == read_all(open_store(folder))
    copies = [path.stat().st_size for path in (tmp_path / "node").iterdir()]
    assert len(copies) == 2 and sum(copies) <= limit


def test_a_copy_of_wrong_bytes_is_never_taken(tmp_path: Path, folder: Path) -> None:
    """A case that is damaged in the store gets no copy, and reading it is the error that it is without a stage."""
    opened = open_store(folder, stage=Stage(tmp_path / "node", 1 << 30))
    path = opened.case_path(opened.cases[0])
    content = bytearray(path.read_bytes())
    content[opened.layout(opened.cases[0]).image.offset + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"{opened.cases[0]}, array image.*{path}"):
        opened.read_patch(opened.cases[0], (0, 0, 0), (40, 40, 40))
    assert not list((tmp_path / "node").iterdir())


def test_another_process_may_be_at_the_same_copy(tmp_path: Path, folder: Path) -> None:
    """An unfinished copy is left to who makes it, unless it has not grown for long: its process is gone."""
    opened = open_store(folder)
    case = opened.cases[0]
    source, size, sha256 = opened.case_path(case), opened.layout(case).file_bytes, opened.value(case, "sha256")
    stage = Stage(tmp_path / "node", 1 << 30)
    stage.folder.mkdir()
    unfinished = stage.folder / f"{sha256}.tmp"
    unfinished.write_bytes(b"half")
    assert stage.path_of(source, size, sha256) == source
    long_ago = unfinished.stat().st_mtime - STALE_S - 1
    os.utime(unfinished, (long_ago, long_ago))
    copy = stage.path_of(source, size, sha256)
    assert copy.parent == stage.folder and np.array_equal(np.fromfile(copy, np.uint8), np.fromfile(source, np.uint8))


def test_a_stage_that_cannot_be_written_is_done_without(tmp_path: Path, folder: Path) -> None:
    """A folder that cannot be made is said once, and all is read from the store."""
    (tmp_path / "file").write_text("")
    opened = open_store(folder, stage=Stage(tmp_path / "file" / "node", 1 << 30))
    with pytest.warns(UserWarning, match="data.stage .*read from the store") as warnings:
        assert read_all(opened) == read_all(open_store(folder))
    assert len(warnings) == 1
