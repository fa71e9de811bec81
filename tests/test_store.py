from pathlib import Path

import pytest
import zarr
from small import make_odd_store, make_store, write_small_case

from pants_dist.errors import DamagedError, UserError
from pants_dist.store import Store, open_store, row_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Cases smaller than a chunk, of whole chunks, uint16 codes, float HU."""
    return open_store(make_odd_store(tmp_path_factory.mktemp("shapes")))


def test_case_is_an_ome_zarr_zip_with_metadata_first(store: Store) -> None:
    """The zip is uncompressed, its zarr.json entries stand first, and OME-Zarr names axes z y x in millimeters."""
    import zipfile

    with zipfile.ZipFile(store.case_path("c0")) as archive:
        names = [info.filename for info in archive.infolist()]
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    documents = [name.endswith("zarr.json") for name in names]
    assert documents == sorted(documents, reverse=True) and names[0] == "zarr.json"
    multiscales = zarr.open_group(zarr.storage.ZipStore(store.case_path("c0")), mode="r").attrs["ome"]["multiscales"]
    assert [axis["name"] + " " + axis["unit"] for axis in multiscales[0]["axes"]] == [f"{a} millimeter" for a in "zyx"]


def test_a_truncated_or_missing_case_is_an_error(tmp_path: Path) -> None:
    """A case whose size differs from its manifest row is refused, as is one that is gone."""
    folder = make_store(tmp_path / "s", cases=2)
    path = folder / "cases" / "PanTS_00000001.ozx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="PanTS_00000001.*bytes"):
        open_store(folder).read_patch("PanTS_00000001", (0, 0, 0), (4, 4, 4))
    path.unlink()
    with pytest.raises(DamagedError, match="cannot be opened"):
        open_store(folder).read_patch("PanTS_00000001", (0, 0, 0), (4, 4, 4))


def test_the_file_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    """Writing the same case twice gives the same bytes, and its row can be had from the file alone."""
    rows = []
    for name in ("a", "b"):
        (tmp_path / name / "cases").mkdir(parents=True)
        rows.append(write_small_case(tmp_path / name, 1, "Center A", 36, 0))
    assert rows[0] == rows[1] == row_of(tmp_path / "a" / "cases" / "PanTS_00000002.ozx")


@pytest.mark.parametrize("make, message", [
    (lambda folder: None, "no such folder"),
    (lambda folder: folder.mkdir(), "this folder is no store"),
    (lambda folder: (folder / "cases").mkdir(parents=True), "the conversion is not finished"),
])  # fmt: skip
def test_what_is_no_store_is_refused_with_the_next_command(tmp_path: Path, make, message: str) -> None:
    """A missing, foreign or unfinished folder is named, with the command that makes it a store."""
    make(tmp_path / "s")
    with pytest.raises(UserError, match=f"{message}.*pants-dist convert"):
        open_store(tmp_path / "s")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    """A manifest of another version is refused by number."""
    import pyarrow.parquet as pq

    folder = make_store(tmp_path / "s", cases=1)
    table = pq.read_table(folder / "manifest.parquet")
    marks = {**table.schema.metadata, b"pants_dist.format_version": b"99"}
    pq.write_table(table.replace_schema_metadata(marks), folder / "manifest.parquet")
    with pytest.raises(UserError, match="format version 99"):
        open_store(folder)


def test_unknown_case_and_structure_are_named(tmp_path: Path) -> None:
    """Asking for what is not there says what is."""
    store = open_store(make_store(tmp_path / "s", cases=1))
    with pytest.raises(UserError, match="no case 'PanTS_9'"):
        store.read_patch("PanTS_9", (0, 0, 0), (1, 1, 1))
    with pytest.raises(UserError, match="no structure 'livr'"):
        store.lookup("PanTS_00000001", ("livr",))


def test_lookup_turns_codes_into_masks(tmp_path: Path) -> None:
    """A look-up table over the palette gives overlapping masks: the lesion lies in the pancreas, in the same voxels."""
    store = open_store(make_store(tmp_path / "s", cases=2))
    case = store.cases[1]
    _, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
    pancreas, lesion = store.lookup(case, ("pancreas", "pancreatic_lesion")).T.astype(bool)
    assert lesion[codes].sum() > 0 and (pancreas[codes] >= lesion[codes]).all()
    assert pancreas[codes].sum() == store.voxels(case)["pancreas"]
    coordinates = store.foreground(case)["pancreatic_lesion"]
    assert lesion[codes[tuple(coordinates.T)]].all()
