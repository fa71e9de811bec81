"""Patches straight from the file: equal to zarr-python's, never wrong, from any process, by both ways to fetch."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from small import ODD_SHAPES, make_odd_store, make_store

from pants_dist import decode, store
from pants_dist.errors import DamagedError
from pants_dist.fetch import Read
from pants_dist.store import Store, open_store

WAYS = ("mmap", "pread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases smaller than a chunk, of whole chunks, uint16 codes, float HU, and one of nothing but air."""
    return make_odd_store(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(params=["compiled", "plain"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to decode: the second is what serves where numba or the C functions are missing."""
    if request.param == "plain":
        monkeypatch.setattr(decode, "_loop", lambda: (decode.decode_plain, ()))
    return request.param


def test_the_compiled_loop_is_there() -> None:
    """What `pip install` brought holds the C functions: else the tests of the compiled loop would be of the plain one."""
    assert len(decode._loop()[1]) == 3 and all(decode._loop()[1])


@pytest.mark.parametrize("way", WAYS)
def test_patches_equal_zarr_python(folder: Path, way: str, loop: str) -> None:
    """10,000 random patches, overhanging every side, are zarr-python's voxels to the byte, and air and code 0 outside."""
    opened, rng, pad = open_store(folder, way), np.random.default_rng(1), 40
    for case, shape in zip(opened.cases, ODD_SHAPES, strict=True):
        group = opened.open_zarr(case)
        image = np.pad(np.asarray(group["0"]), pad, constant_values=-1024)
        codes = np.pad(np.asarray(group["labels/structures/0"]), pad)
        for _ in range(900 if loop == "compiled" else 100):
            corner = rng.integers(-pad, np.array(shape) + pad)
            size = np.minimum(rng.integers(1, 60, 3), np.array(shape) + pad - corner)
            got_image, got_codes = opened.read_patch(case, tuple(corner.tolist()), tuple(size.tolist()))
            where = tuple(slice(c + pad, c + pad + n) for c, n in zip(corner, size, strict=True))
            assert got_image.dtype == image.dtype and got_codes.dtype == codes.dtype
            assert np.array_equal(got_image, image[where]) and np.array_equal(got_codes, codes[where])


def test_both_loops_give_the_same_bytes_and_find_the_same_damage(folder: Path) -> None:
    """On whole, flipped and cut bytes alike: the same voxels, the same first wrong chunk."""
    opened = open_store(folder)
    file, rng = opened.open_case("c0"), np.random.default_rng(5)
    content = np.frombuffer(opened.case_path("c0").read_bytes(), np.uint8)
    place, shape = file.layout.image, file.layout.shape_zyx
    from pants_dist import shard

    chunks, offsets, sizes = shard.touched(file._index("image", place), shape, (0, 0, 0), shape)
    found = set()
    for damage in range(60):
        data = content.copy()
        if damage:
            data[place.offset + rng.integers(place.size)] ^= 1 << int(rng.integers(8))
        data = data[: len(data) if damage < 50 else place.offset + int(rng.integers(place.size))]
        results = []
        for one in (decode._loop(), (decode.decode_plain, ())):
            out = np.zeros(shape, "<u2")
            arguments = (np.zeros(3, np.int64), out, np.array(shape), np.uint16(0), np.empty((32, 32, 32), "<u2"), one[1])
            results.append((one[0](data, offsets + place.offset, sizes, chunks, *arguments), out.tobytes()))
        assert results[0] == results[1]
        found.add(results[0][0])
    assert -1 in found and len(found) > 3


@pytest.mark.parametrize("way", WAYS)
def test_every_flipped_bit_of_the_voxels_is_an_error(folder: Path, tmp_path: Path, way: str, loop: str) -> None:
    """A flipped bit anywhere in the voxels' bytes raises an error that names case, array and chunk, never wrong voxels."""
    whole = open_store(folder)
    content, row = whole.case_path("c0").read_bytes(), whole.manifest.loc["c0"]
    copy = copy_of(folder, tmp_path / "s")
    rng = np.random.default_rng(2)
    for name in ("image", "codes"):
        for position in rng.integers(row[f"{name}_offset"], row[f"{name}_offset"] + row[f"{name}_bytes"], 40):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(rng.integers(8))
            (copy / "cases" / "c0.ozx").write_bytes(damaged)
            with pytest.raises(DamagedError, match=rf"case c0, array {name}, (chunk \(\d, \d, \d\)|the chunk index): checksum"):
                open_store(copy, way).read_patch("c0", (0, 0, 0), ODD_SHAPES[0])


def copy_of(folder: Path, copy: Path) -> Path:
    (copy / "cases").mkdir(parents=True)
    for path in (folder / "manifest.parquet", *(folder / "cases").iterdir()):
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("way", WAYS)
def test_a_file_cut_while_it_is_open_is_an_error(folder: Path, tmp_path: Path, way: str) -> None:
    """Truncation behind an open handle is said as such; a map is not touched where the file ends before it (SIGBUS)."""
    copy = copy_of(folder, tmp_path / "s")
    opened = open_store(copy, way)
    opened.read_patch("c0", (0, 0, 0), (4, 4, 4))
    os.truncate(copy / "cases" / "c0.ozx", 4096)
    with pytest.raises(DamagedError, match="case c0, array image: .*c0.ozx is truncated"):
        opened.read_patch("c0", (0, 0, 0), ODD_SHAPES[0])


def test_an_input_output_error_is_said_as_such(folder: Path) -> None:
    """The kernel's error comes with case, array and file: reading an address that is not there is a real EIO."""
    opened = open_store(folder, "pread").open_case("c0")
    opened._fetch = Read(os.open("/proc/self/mem", os.O_RDONLY))
    with pytest.raises(DamagedError, match=r"case c0, array image: .*c0.ozx cannot be read \(Input/output error\)"):
        opened.read_into("image", (0, 0, 0), np.empty((9, 9, 9), np.int16))


def patch_sum(opened: Store) -> int:
    return int(opened.read_patch("c0", (3, 3, 3), (30, 60, 30))[0].sum(dtype=np.int64))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_other_processes_read_the_same(folder: Path, method: str, way: str) -> None:
    """Children by every start method read what their parent has open, while a thread of the parent holds the lock."""
    opened = open_store(folder, way)
    expected = patch_sum(opened)
    with opened._lock, multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(patch_sum, [opened] * 4).get(50) == [expected] * 4


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more handles stay open than OPEN_CASES, the last used ones."""
    monkeypatch.setattr(store, "OPEN_CASES", 3)
    for way in WAYS:
        opened = open_store(make_store(tmp_path / way, cases=6), way)
        for case in opened.cases:
            opened.read_patch(case, (0, 0, 0), (4, 4, 4))
        handles = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        ours = sorted(name for name in handles if name.startswith(str(tmp_path / way)) and name.endswith(".ozx"))
        assert ours == [str(opened.case_path(case)) for case in opened.cases[3:]]
