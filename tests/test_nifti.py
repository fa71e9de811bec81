import gzip
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import REAL_CT, need

from conversion import gz, nifti
from conversion.nifti import BadImage

Order = Literal["<", ">"]
AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])
HEADERS = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}
CT = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)


def image_bytes(
    array: np.ndarray,
    affine: np.ndarray = AFFINE,
    version: int = 1,
    order: Literal["<", ">"] = "<",
    gap: int = 4,
    **fields: Any,
) -> bytes:
    """A single-file NIfTI, header fields set as they are given, whether or not they make sense."""
    header = HEADERS[version](endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=1)
    header["vox_offset"] = header.sizeof_hdr + gap
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + bytes(gap) + array.astype(array.dtype.newbyteorder(order)).tobytes("F")


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3), dtype=st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"]),
    seed=st.integers(0, 999), slope=st.sampled_from([1.0, 2.0, 0.5, 0.1, -1.0, 1.0000001, 0.0, np.nan]),
    inter=st.sampled_from([0.0, -1024.0, 0.25]), version=st.sampled_from([1, 2]), order=st.sampled_from("<>"),
    gap=st.sampled_from([4, 5, 36]), packed=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_values_and_affine_are_nibabels(
    shape: tuple,
    dtype: str,
    seed: int,
    slope: float,
    inter: float,
    version: int,
    order: Literal["<", ">"],
    gap: int,
    packed: bool,
) -> None:
    """Any dtype, byte order, slope, NIfTI version, gz or not: voxel values and affine are what nibabel reads."""
    rng = np.random.default_rng(seed)
    array = (rng.normal(0, 40, shape) if dtype[0] == "f" else rng.integers(0, 100, shape)).astype(dtype)
    affine = np.eye(4) + np.pad(rng.normal(0, 0.2, (3, 4)), ((0, 1), (0, 0)))
    content = image_bytes(array, affine, version, order, gap, scl_slope=slope, scl_inter=inter)
    volume = nifti.decode(gzip.compress(content, 1) if packed else content)
    expected = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version].from_bytes(content)
    assert np.array_equal(nifti.values(volume), expected.get_fdata())
    assert np.array_equal(volume.affine, expected.affine)
    assert volume.dtype == np.dtype(dtype) and np.array_equal(volume.array_ijk, array)


def test_values_take_the_smallest_exact_dtype() -> None:
    """Whole numbers become int16, int32 or int64; fractions float32, or float64 where float32 would round."""
    cases = [
        (1.0, 0.0, "int16"),
        (1000.0, 0.0, "int32"),
        (0.5, 0.0, "float32"),
        (0.1, 0.0, "float64"),
        (2.0, -1024.0, "int16"),
    ]
    for slope, inter, dtype in cases:
        volume = nifti.decode(gzip.compress(image_bytes(CT, version=2, scl_slope=slope, scl_inter=inter)))
        assert nifti.values(volume).dtype == dtype
    assert nifti.values(nifti.decode(image_bytes(CT.astype("f4") * 2.0**40))).dtype == "int64"
    assert nifti.values(nifti.decode(image_bytes(CT.astype("u2")))).dtype == "int32"


DATA = gzip.compress(image_bytes(np.random.default_rng(0).integers(-99, 99, (30, 30, 30)).astype("i2")))
FLAT = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # i and j run the same way


def dim(*shape: int) -> list[int]:
    """The header's field for a shape that the data do not have."""
    return [3, *shape, 1, 1, 1, 1]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "empty file"),
    "truncated gz": (lambda: DATA[:-2000], "truncated"),
    "truncated in the header": (lambda: DATA[:40], "truncated"),
    "truncated trailer": (lambda: DATA[:-3], "truncated"),
    "trailing garbage": (lambda: DATA + b"garbage" * 40, "280 bytes of garbage"),
    "flipped bit": (lambda: DATA[:20_000] + bytes([DATA[20_000] ^ 16]) + DATA[20_001:], "damaged gzip data"),
    "wrong checksum": (lambda: DATA[:-5] + bytes([DATA[-5] ^ 1]) + DATA[-4:], "damaged gzip data"),
    "not a NIfTI": (lambda: gzip.compress(b"not an image" * 200), "not a NIfTI"),
    "text": (lambda: b"not an image" * 200, "not a NIfTI"),
    "wrong magic": (lambda: image_bytes(CT, magic=b"abc"), "wrong magic"),
    "a pair's header": (lambda: image_bytes(CT, magic=b"ni1"), "pair"),
    "4D": (lambda: gzip.compress(image_bytes(np.stack([CT, CT], -1))), "4 dimensions (4, 5, 6, 2)"),
    "2D": (lambda: gzip.compress(image_bytes(CT[0])), "2 dimensions"),
    "unknown datatype": (lambda: image_bytes(CT, datatype=77), "datatype code 77"),
    "complex": (lambda: image_bytes(CT.astype("c8")), "datatype complex64"),
    "NaN": (lambda: gzip.compress(image_bytes(np.where(CT == 3, np.nan, CT))), "1 voxels are NaN"),
    "infinite": (lambda: image_bytes(np.where(CT == 3, np.inf, CT).astype("f4")), "infinite"),
    "overflowing slope": (lambda: image_bytes(CT * 1e300, version=2, scl_slope=1e300), "float64"),
    "spacing of 5000 mm": (lambda: image_bytes(CT, np.diag([5000, 1, 1, 1])), "absurd voxel size 5000 x 1 x 1 mm"),
    "spacing of a micron": (lambda: image_bytes(CT, np.diag([1, 1, 0.001, 1])), "absurd voxel size"),
    "singular affine": (lambda: image_bytes(CT, FLAT), "affine"),
    "affine of NaN": (lambda: image_bytes(CT, srow_x=np.nan), "affine with NaN"),
    "negative dimension": (lambda: image_bytes(CT, dim=dim(-4, 5, 6)), "impossible shape"),
    "more voxels than bytes": (lambda: gzip.compress(image_bytes(CT, dim=dim(4, 5, 7))), "truncated"),
    "absurdly many voxels": (lambda: gzip.compress(image_bytes(CT, dim=dim(32767, 32767, 32767))), "cannot hold"),
    "fewer voxels than bytes": (lambda: gzip.compress(image_bytes(CT, dim=dim(4, 5, 5))), "longer than its header"),
    "fewer, not packed": (lambda: image_bytes(CT, dim=dim(4, 5, 5)), "longer than its header"),
    "offset inside the header": (lambda: image_bytes(CT, vox_offset=10), "vox_offset"),
}  # fmt: skip


@pytest.mark.parametrize("library", ["libdeflate", "zlib"])
@pytest.mark.parametrize("fault", REFUSED)
def test_faults_are_refused_in_words(fault: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken image is refused with its reason and the file's name, whichever library decodes it."""
    if library == "zlib":
        monkeypatch.setattr(gz, "library", lambda: None)
    content, reason = REFUSED[fault]
    (tmp_path / "ct.nii.gz").write_bytes(content())
    with pytest.raises(BadImage, match="ct.nii.gz") as caught:
        nifti.values(nifti.read(tmp_path / "ct.nii.gz"))
    assert reason in caught.value.reason


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A missing file and a folder in its place are bad images, not crashes."""
    with pytest.raises(BadImage, match="No such file"):
        nifti.read(tmp_path / "ct.nii.gz")
    with pytest.raises(BadImage, match="directory"):
        nifti.read(tmp_path)


@pytest.mark.parametrize("library", ["libdeflate", "zlib"])
def test_members_and_zero_padding_are_legal(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gz of several members, with an empty one among them and zeros behind, is the concatenation of its members."""
    if library == "zlib":
        monkeypatch.setattr(gz, "library", lambda: None)
    content = image_bytes(CT)
    data = b"".join(gzip.compress(part) for part in (content[:100], content[100:400], b"", content[400:])) + bytes(512)
    assert np.array_equal(nifti.decode(data).array_ijk, CT)


def test_a_scratch_is_shared() -> None:
    """Two images decoded into one scratch share its memory; without one each has its own."""
    scratch = nifti.Scratch()
    first, second = nifti.decode(image_bytes(CT), scratch), nifti.decode(image_bytes(CT + 1), scratch)
    assert np.shares_memory(first.array_ijk, second.array_ijk)
    assert not np.shares_memory(first.array_ijk, nifti.decode(image_bytes(CT)).array_ijk)


def test_trailing_singleton_axes_are_dropped() -> None:
    """A 4D header with one volume is a 3D image."""
    assert nifti.decode(image_bytes(CT[..., None])).array_ijk.shape == CT.shape


def test_written_files_are_whole_equal_and_the_same_twice(tmp_path: Path) -> None:
    """nibabel reads back voxels, affine and slope; writing again gives the same bytes and leaves nothing else."""
    affine = nibabel.affines.from_matvec(np.array([[0, -0.7, 0.1], [0.8, 0, 0], [0, 0.1, 2.5]]), [1, 2, 3])
    nifti.write(tmp_path / "a.nii.gz", CT, affine, slope=2.0, inter=-5.0)
    first = (tmp_path / "a.nii.gz").read_bytes()
    nifti.write(tmp_path / "a.nii.gz", CT, affine, slope=2.0, inter=-5.0)
    assert (tmp_path / "a.nii.gz").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert stat.S_IMODE((tmp_path / "a.nii.gz").stat().st_mode) & 0o444
    image = nibabel.nifti1.load(tmp_path / "a.nii.gz")
    assert np.array_equal(image.get_fdata(), CT * 2.0 - 5)
    assert np.allclose(image.affine, affine, atol=1e-6)
    assert nifti.read(tmp_path / "a.nii.gz").orientation == "ALS"


@given(order=st.permutations("xyz"), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3), tilt=st.floats(-0.3, 0.3))
@settings(max_examples=60, deadline=None)
def test_canonical_is_ras_and_undone_by_original(order: list[str], signs: tuple[int, ...], tilt: float) -> None:
    """In all 48 orientations, oblique ones too, `canonical` is nibabel's closest RAS as (z, y, x), and a view."""
    matrix = np.zeros((3, 3))
    for axis, (name, sign) in enumerate(zip(order, signs, strict=True)):
        matrix["xyz".index(name), axis] = sign * (axis + 1)
    matrix[0] += tilt * matrix[1]
    affine = nibabel.affines.from_matvec(matrix, [5, 6, 7])
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(CT, affine))
    np.testing.assert_allclose(nifti.canonical_affine(CT.shape, affine), expected.affine[:, [2, 1, 0, 3]], atol=1e-9)
    view = nifti.canonical(CT, affine)
    assert np.array_equal(view, np.asanyarray(expected.dataobj).T) and np.shares_memory(view, CT)
    assert np.array_equal(nifti.original(view, affine), CT)
    indices = np.argwhere(CT % 7 == 0)
    at = nifti.canonical_indices(indices, CT.shape, affine)
    assert np.array_equal(view[tuple(at.T)], CT[tuple(indices.T)])


def test_the_real_scan_is_read_as_nibabel_reads_it() -> None:
    """CT and masks of a real scan: every voxel and the affine."""
    for path in sorted(need(REAL_CT).rglob("*.nii.gz")):
        volume, expected = nifti.read(path), nibabel.nifti1.load(path)
        assert np.array_equal(volume.array_ijk, expected.get_fdata())
        assert np.array_equal(volume.affine, expected.affine)
