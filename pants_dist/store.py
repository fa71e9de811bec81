"""The store: a folder of one-file cases and a manifest. The format contract; in words: docs/store-format.md.

    STORE/manifest.parquet          one row a case, written last: while it is missing the store is incomplete
    STORE/cases/<case>.ozx          a zipped OME-Zarr: HU, palette codes, foreground coordinates

Reading a patch costs one `open` a case (held under an LRU) and one read for each run of neighbouring chunks; where the
arrays lie inside the file is known from the manifest.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from pants_dist.casefile import FORMAT_VERSION, LAYOUT, RECORD, read_record, row_of, write_case
from pants_dist.disk import replacing, sync_folder
from pants_dist.errors import DamagedError, UserError
from pants_dist.opencase import Layout, OpenCase
from pants_dist.stage import Stage

if TYPE_CHECKING:
    import pandas as pd
    import zarr

__all__ = ["RECORD", "SCHEMA", "Store", "open_store", "row_of", "write_case", "write_manifest"]

SCHEMA = pa.unify_schemas([RECORD, LAYOUT])
NUMBERS = tuple(name for name in LAYOUT.names if name.endswith(("_offset", "_bytes")))
OPEN_CASES = 128  # file handles that a process keeps


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Write STORE/manifest.parquet, rows sorted by case, atomically; returns the manifest's digest. Written last."""
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["case"]), SCHEMA)
    digest = manifest_digest(table)
    sync_folder(folder / "cases")
    marks = {"pants_dist.format_version": str(FORMAT_VERSION), "pants_dist.digest": digest}
    with replacing(folder / "manifest.parquet") as file:
        pq.write_table(table.replace_schema_metadata(marks), file, compression="zstd", write_page_checksum=True)
    sync_folder(folder)
    return digest


def manifest_digest(table: pa.Table) -> str:
    """sha256 over the manifest's columns as JSON: the same rows give the same digest whatever wrote the parquet."""
    digest = hashlib.sha256()
    for name in SCHEMA.names:
        digest.update(json.dumps([name, table.column(name).to_pylist()], separators=(",", ":")).encode())
    return digest.hexdigest()


def open_store(path: str | os.PathLike, io: str = "pread", stage: Stage | None = None) -> "Store":
    """Open a converted dataset for reading. Raises UserError where it is missing, incomplete or of another version.

    `io` is how bytes are fetched: "pread" or "mmap" (fetch.py). With `stage`, cases are read from copies on the node's own
    disk.
    """
    folder = Path(path)
    manifest = folder / "manifest.parquet"
    if not folder.is_dir():
        raise UserError(f'store {folder}: no such folder; make one with "pants-dist convert SRC {folder}"')
    if not manifest.is_file():
        what = "the conversion is not finished" if (folder / "cases").is_dir() else "this folder is no store"
        raise UserError(f'store {folder}: manifest.parquet is missing, {what}; run "pants-dist convert SRC {folder}"')
    with _whole(manifest):
        file = pq.ParquetFile(manifest, page_checksum_verification=True)
        marks = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
    version = marks.get("pants_dist.format_version")
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"store {folder}: format version {version}, this program reads {FORMAT_VERSION}; "
            f'run "pants-dist convert SRC {folder}", which makes its cases anew in place'
        )
    if not file.schema_arrow.equals(SCHEMA) or "pants_dist.digest" not in marks:
        raise DamagedError(f"{manifest}: damaged (not the columns of version {version}); run the conversion again")
    return Store(folder, file, marks["pants_dist.digest"], io, stage)


@contextlib.contextmanager
def _whole(manifest: Path) -> Iterator[None]:
    """Raises DamagedError where the manifest's bytes are not what was written."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedError(f"{manifest}: damaged ({str(error).splitlines()[0]}); run the conversion again") from error


class Store:
    """A converted dataset: its catalog, and patches of its cases. Threads, forks and other processes may share it.

    `path`, `digest` (of the manifest) and `cases` (ids, sorted) are plain attributes; arrays are (z, y, x), RAS. Columns
    of the manifest are read when they are first asked for: all of them, for 36,390 cases, would take a second each time.
    """

    def __init__(self, path: Path, manifest: pq.ParquetFile, digest: str, io: str, stage: Stage | None) -> None:
        self.path, self.digest, self.io, self.stage, self._file = path, digest, io, stage, manifest
        self._columns: dict[str, pa.Array] = {}
        self.cases: list[str] = self._column("case").to_pylist()
        self._number = {case: number for number, case in enumerate(self.cases)}
        self._forget_handles()

    def _forget_handles(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[str, OpenCase] = OrderedDict()

    def __reduce__(self) -> tuple:
        return open_store, (self.path, self.io, self.stage)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def table(self) -> pa.Table:
        """The whole manifest."""
        return pa.table([self._column(name) for name in SCHEMA.names], SCHEMA)

    @property
    def manifest(self) -> "pd.DataFrame":
        """The whole manifest, one row a case, indexed by case id."""
        return self.frame(*SCHEMA.names)

    def frame(self, *columns: str) -> "pd.DataFrame":
        """Some columns of the manifest, one row a case, indexed by case id. Raises UserError for one that it lacks."""
        if unknown := [name for name in columns if name not in SCHEMA.names]:
            raise UserError(f"store {self.path}: no column {unknown[0]!r} in the manifest; it has {', '.join(SCHEMA.names)}")
        self._read(columns)
        table = pa.table({name: self._column(name) for name in dict.fromkeys(("case", *columns))})
        return table.to_pandas().set_index("case", drop="case" not in columns)

    def holding(self, *structures: str) -> "pd.DataFrame":
        """Whether each case (rows) has a voxel of each structure (columns)."""
        import pandas as pd

        texts, parts = pc.fill_null(self._column("voxels"), "{}"), []
        for at in range(0, len(texts), 2048):  # not all at once: that would take 60 MB
            some = texts.slice(at, 2048)
            lines = pc.binary_join(pa.ListArray.from_arrays([0, len(some)], some), "\n")[0]
            counts = pa.json.read_json(pa.BufferReader(lines.as_buffer()))  # Python's parser takes thrice as long
            known = [name for name in structures if name in counts.column_names]
            columns = {name: pc.fill_null(pc.greater(counts.column(name), 0), False).to_numpy() for name in known}
            parts.append(np.column_stack([columns.get(name, np.zeros(len(some), bool)) for name in structures]))
        pa.default_memory_pool().release_unused()
        return pd.DataFrame(np.concatenate(parts), self.cases, structures)

    def annotated(self) -> set[str]:
        """Every structure that is annotated in some case."""
        return set(pc.unique(self._column("annotated").flatten()).to_pylist())

    def value(self, case: str, column: str) -> Any:
        """One cell of the manifest; raises UserError for a case that the store does not have."""
        return self._column(column)[self._row(case)].as_py()

    def _column(self, name: str) -> pa.Array:
        self._read([name])
        return self._columns[name]

    def _read(self, names: Sequence[str]) -> None:
        """Have these columns in memory, those that are missing read at once."""
        if missing := [name for name in names if name not in self._columns]:
            with _whole(self.path / "manifest.parquet"):
                table = self._file.read(missing)
                if len(table) != self._file.metadata.num_rows:
                    raise pa.ArrowInvalid(f"{len(table)} cells in columns {', '.join(missing)}")
            self._columns |= {name: table.column(name).combine_chunks() for name in missing}
            del table
            pa.default_memory_pool().release_unused()  # else what reading took stays with this process

    def _row(self, case: str) -> int:
        if case not in self._number:
            raise UserError(
                f'store {self.path}: no case {case!r} among its {len(self)}; see "pants-dist info {self.path}"'
            )
        return self._number[case]

    def shape_zyx(self, case: str) -> tuple[int, int, int]:
        """Voxels of a case along z, y, x."""
        z, y, x = self._layouts[0][self._row(case)].tolist()
        return z, y, x

    def layout(self, case: str) -> Layout:
        """Where the case's arrays lie in its file, and what they are."""
        row, (shapes, numbers) = self._row(case), self._layouts
        texts = {name: self._column(name)[row].as_py() for name in ("image_dtype", "codes_dtype", "foreground_ranges")}
        return Layout.of(
            {"shape_zyx": shapes[row].tolist(), **dict(zip(NUMBERS, numbers[row].tolist(), strict=True)), **texts}
        )

    def spacing_mm_zyx(self, case: str) -> tuple[float, float, float]:
        """Millimetres between the case's voxels along z, y, x."""
        z, y, x = self._spacings[self._row(case)].tolist()
        return z, y, x

    @cached_property
    def _spacings(self) -> np.ndarray:
        return self._column("spacing_mm_zyx").flatten().to_numpy().reshape(-1, 3)

    @cached_property
    def _layouts(self) -> tuple[np.ndarray, np.ndarray]:
        """Shapes (n, 3) and NUMBERS (n, 7): a list in an Arrow column takes long to become Python's."""
        shapes = self._column("shape_zyx").flatten().to_numpy().reshape(-1, 3)
        return shapes, np.column_stack([self._column(name).to_numpy() for name in NUMBERS])

    def voxels(self, case: str) -> dict[str, int]:
        """Voxels of each structure in the case; one that is not named has none."""
        return json.loads(self.value(case, "voxels"))

    def read_patch(
        self, case: str, corner_zyx: tuple[int, int, int], size_zyx: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """HU and palette codes of the box [corner, corner + size), both (z, y, x).

        The box may overhang the case on any side: there the image is air (-1024) and the code 0. The image is int16
        unless the case needed a wider dtype. Raises DamagedError, naming case, array and chunk, where bytes are wrong.
        """
        layout = self.open_case(case).layout
        image_zyx, codes_zyx = np.empty(size_zyx, layout.image_dtype), np.empty(size_zyx, layout.codes_dtype)
        self.read_into(case, corner_zyx, image_zyx, codes_zyx)
        return image_zyx, codes_zyx

    def read_into(
        self, case: str, corner_zyx: tuple[int, int, int], image_zyx: np.ndarray, codes_zyx: np.ndarray
    ) -> None:
        """The same, into C-contiguous arrays of the case's dtypes (`layout`)."""
        file = self.open_case(case)
        file.read_into("image", corner_zyx, image_zyx)
        file.read_into("codes", corner_zyx, codes_zyx)

    def palette(self, case: str) -> list[int]:
        """The combination of structures that each code stands for, as a bitmask; bit i is `structures(case)[i]`."""
        return [int(mask, 16) for mask in self.value(case, "palette")]

    def structures(self, case: str) -> tuple[str, ...]:
        """Names by bit: the 28 of PanTS, then the dataset's own."""
        return tuple(self.value(case, "structures"))

    def lookup(self, case: str, names: tuple[str, ...]) -> np.ndarray:
        """Look-up table (codes, names) of 0 and 1, uint8: `lookup(...)[codes]` are the masks of `names`, last axis."""
        bits = {name: bit for bit, name in enumerate(self.structures(case))}
        if unknown := [name for name in names if name not in bits]:
            raise UserError(f"store {self.path}, case {case}: no structure {unknown[0]!r}; it has {', '.join(bits)}")
        return np.array([[mask >> bits[name] & 1 for name in names] for mask in self.palette(case)], np.uint8)

    def foreground(self, case: str) -> dict[str, np.ndarray]:
        """Voxel coordinates (n, 3) z, y, x, up to a few thousand a structure that occurs in the case."""
        return self.open_case(case).foreground()

    def attributes(self, case: str) -> dict[str, Any]:
        """What the case's file says of itself: the manifest's row as the converter wrote it."""
        return read_record(self.case_path(case))

    def case_path(self, case: str) -> Path:
        """Where the case's one file lies."""
        return self.path / "cases" / f"{self.cases[self._row(case)]}.ozx"

    def open_zarr(self, case: str) -> "zarr.Group":
        """The case as zarr-python sees it: for exploring, and the oracle of the tests. Slower than read_patch."""
        import zarr

        return zarr.open_group(zarr.storage.ZipStore(self.case_path(case), mode="r"), mode="r")

    def open_case(self, case: str) -> OpenCase:
        """The case, open for reading: one of the last OPEN_CASES, or opened now."""
        if self._process != os.getpid():  # after a fork: another thread of the parent may have held the lock
            self._forget_handles()
        with self._lock:
            if case in self._open:
                self._open.move_to_end(case)
                return self._open[case]
        layout, path = self.layout(case), self.case_path(case)
        if self.stage:
            path = self.stage.path_of(path, layout.file_bytes, self.value(case, "sha256"))
        file = OpenCase(path, case, layout, self.io)
        with self._lock:
            self._open[case] = file
            while len(self._open) > OPEN_CASES:
                self._open.popitem(last=False)  # closed when the last reader lets go of it
        return file
