import os
import random
import shutil
from pathlib import Path

import pytest
from sources import REAL_CT, need, write_pants

from conversion import nifti
from conversion.run import convert
from conversion.verify import verify
from pants_dist.errors import UserError
from pants_dist.store import manifest_digest, open_store

CASES = [f"PanTS_{number:08d}" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def pants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pants(tmp_path_factory.mktemp("source") / "PanTS", [1, 2, 3])


@pytest.fixture(scope="module")
def whole(pants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "store"
    convert([pants], folder, workers=1)
    return folder


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A store of this test's own, to damage."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_whole_store_has_no_damage(pants: Path, whole: Path) -> None:
    """Nothing is reported of a store as it was written, neither alone nor against its source."""
    assert verify(whole, workers=1) == []
    assert verify(whole, against=pants, workers=2) == []


def test_every_flipped_bit_is_found(store: Path) -> None:
    """A single bit flipped anywhere in a case's file, the zip's own headers too, is damage to that case."""
    path = store / "cases" / f"{CASES[1]}.ozx"
    bits = 8 * path.stat().st_size
    rng = random.Random(0)
    for bit in [0, 100, bits - 1, bits - 300, *(rng.randrange(bits) for _ in range(20))]:
        flip(path, bit)
        (line,) = verify(store, workers=1)
        assert line.startswith(f"{CASES[1]}: "), bit
        flip(path, bit)
    assert verify(store, workers=1) == []


def test_missing_truncated_swapped_stale_and_strange_files_are_found(pants: Path, store: Path, tmp_path: Path) -> None:
    """One line a damaged case, naming what is wrong."""
    first, second, third = (store / "cases" / f"{case}.ozx" for case in CASES)
    first.unlink()
    os.truncate(second, 5000)
    (store / "cases" / "PanTS_00000099.ozx").write_bytes(third.read_bytes())
    (store / "cases" / ".half.ozx.1.tmp").touch()
    lines = verify(store, workers=1)
    assert [line.split(":")[0] for line in lines] == [*CASES[:2], "cases/.half.ozx.1.tmp", "cases/PanTS_00000099.ozx"]
    assert "is missing" in lines[0] and "has 5000 bytes" in lines[1] and "not in the manifest" in lines[2]
    shutil.copy(third, second)
    assert f"(it holds {CASES[2]})" in verify(store, workers=1)[1] or "bytes, the manifest says" in verify(store)[1]


def test_a_changed_manifest_is_found(store: Path) -> None:
    """A bit flipped in manifest.parquet is damage, or changes nothing that is read; without one there is no store."""
    manifest, rows = store / "manifest.parquet", open_store(store).table.to_pylist()
    bits, rng, found = 8 * manifest.stat().st_size, random.Random(0), 0
    for bit in (rng.randrange(64, bits - 64) for _ in range(60)):
        flip(manifest, bit)
        try:
            damaged = manifest_is_damaged(store)
            assert damaged or open_store(store).table.to_pylist() == rows
            found += damaged
        finally:
            flip(manifest, bit)
    assert found > 10
    flip(manifest, 8 * 200)
    assert "manifest.parquet" in verify(store, workers=1)[0]
    manifest.unlink()
    with pytest.raises(UserError, match="manifest.parquet is missing"):
        verify(store)


def manifest_is_damaged(store: Path) -> bool:
    """Whether opening the store, or the digest of its manifest, shows damage."""
    try:
        opened = open_store(store)
        return manifest_digest(opened.table) != opened.digest
    except UserError:
        return True


def test_against_compares_every_voxel(pants: Path, whole: Path, tmp_path: Path) -> None:
    """One changed HU, one changed mask voxel, an added and a removed case: each is a line."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    changed = f"ImageTr/{CASES[0]}/ct.nii.gz", f"LabelTr/{CASES[1]}/segmentations/liver.nii.gz"
    for path in (root / name for name in changed):
        volume = nifti.read(path)
        volume.array_ijk[3, 4, 5] ^= 1
        nifti.write(path, volume.array_ijk, volume.affine)
    (root / "ImageTr" / CASES[2]).rename(root / "ImageTr" / "PanTS_00000009")
    lines = verify(whole, against=root, workers=1)
    assert [line.split(":")[0] for line in lines] == [CASES[0], CASES[1], CASES[2], "PanTS_00000009"]
    assert "1 voxels of the image differ" in lines[0] and "1 voxels of liver differ" in lines[1]
    assert "in the store, not in" in lines[2] and "not in the store" in lines[3]


def test_the_real_scan_is_proven_equal(tmp_path: Path) -> None:
    """A store of the real scan, against its source."""
    convert([need(REAL_CT)], tmp_path / "store", workers=1)
    assert verify(tmp_path / "store", against=REAL_CT, workers=1) == []
