"""One case as one file: an uncompressed zip of an OME-Zarr group (RFC-9's `.ozx`), written whole, read by patch.

zarr.json                 OME-Zarr multiscales, and in `pants_dist` what the case says of itself (RECORD)
0/                        HU (z, y, x), canonical RAS, one shard
labels/structures/0/      palette codes on the same grid, one shard
foreground/               voxel coordinates (n, 3) z, y, x; attribute `ranges`: structure -> [start, stop)
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pants_dist import shard
from pants_dist.disk import replacing
from pants_dist.errors import DamagedError, UserError

FORMAT_VERSION = 2
AIR_HU = -1024
WRITE_BYTES = 1 << 20  # pieces are gathered to this much: zipfile takes longer for each than copying them does
DATA_KEYS = {"image": "0/c/0/0/0", "codes": "labels/structures/0/c/0/0/0", "foreground": "foreground/c/0/0"}
ZIP_COMMENT = {"ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}}

_text, _texts, _ints = pa.string(), pa.list_(pa.string()), pa.list_(pa.int64())
RECORD = pa.schema([  # what a case says of itself: kept in the case's zarr.json and in the manifest alike
    ("case", _text), ("dataset", _text), ("official_split", _text), ("center", _text), ("center_kind", _text),
    ("phase", _text), ("sex", _text), ("age", pa.float64()), ("manufacturer", _text), ("manufacturer_model", _text),
    ("study_type", _text), ("nationality", _text), ("study_year", _text),
    ("tumor_flag", pa.bool_()), ("metadata", _text),
    ("spacing_mm_zyx", pa.list_(pa.float64())), ("palette", _texts), ("structures", _texts), ("annotated", _texts),
    ("voxels", _text), ("foreground_hu", pa.list_(pa.float32())),
    ("source_shape_ijk", _ints), ("source_orientation", _text), ("source_affine", pa.list_(pa.float64())),
    ("source_dtype", _text), ("source_slope", pa.float64()), ("source_inter", pa.float64()),
    ("source_bytes", pa.int64()),
    ("sources", _text), ("audit", _text), ("notes", _texts), ("converter", _text),
])  # fmt: skip
LAYOUT = pa.schema([  # where things lie in the case's file: found by looking at the file
    ("shape_zyx", _ints), ("image_dtype", _text), ("codes_dtype", _text),
    ("file_bytes", pa.int64()), ("sha256", _text),
    ("image_offset", pa.int64()), ("image_bytes", pa.int64()), ("codes_offset", pa.int64()), ("codes_bytes", pa.int64()),
    ("foreground_offset", pa.int64()), ("foreground_bytes", pa.int64()), ("foreground_ranges", _text),
    ("image_crc32", pa.int64()), ("source_mtimes_ns", _text),
])  # fmt: skip


def write_case(
    path: Path,
    record: Mapping[str, Any],
    image_zyx: np.ndarray,
    codes_zyx: np.ndarray,
    foreground_zyx: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Write one case as one file, whole or not at all, and return its manifest row.

    Its name is on the disk for good once the manifest is: a file that a power failure takes away is made again.

    `record` has the fields of RECORD. `image_zyx` (z, y, x) is HU in canonical RAS order, any strides; `codes_zyx`
    uint8 or uint16 palette codes on the same grid; `foreground_zyx` maps a structure to (n, 3) voxel coordinates.
    Raises OSError when the disk refuses (the half-written file is removed).
    """
    if missing := set(RECORD.names) ^ set(record):
        raise ValueError(f"record of {record.get('case')}: fields {sorted(missing)} are missing or unknown")
    names = sorted(foreground_zyx)
    coordinates = np.concatenate([np.zeros((0, 3), np.uint16), *(foreground_zyx[n] for n in names)]).astype("<u2")
    ends = np.cumsum([len(foreground_zyx[n]) for n in names]).tolist()
    ranges = {n: [end - len(foreground_zyx[n]), end] for n, end in zip(names, ends, strict=True)}
    documents = _documents(record, image_zyx, codes_zyx, coordinates, ranges)
    payloads = {
        DATA_KEYS["image"]: shard.encode(image_zyx, AIR_HU, *_codec("image")),
        DATA_KEYS["codes"]: shard.encode(codes_zyx, 0, *_codec("codes")),
        DATA_KEYS["foreground"]: (part for part in [coordinates.tobytes()] if part),
    }
    sizes = {DATA_KEYS["image"]: image_zyx.nbytes, DATA_KEYS["codes"]: codes_zyx.nbytes}
    with replacing(path, buffering=1 << 20) as file:
        _write_zip(file, documents, payloads, sizes)
        file.flush()
        return row_of(Path(file.name))


def _codec(array: str) -> tuple[str, int]:
    """blosc's (compressor, level). lz4hc at 3 would make a case 1 % smaller and its conversion 7 % slower than at 1."""
    return ("lz4", 5) if array == "image" else ("lz4hc", 1)


def _write_zip(
    file: Any, documents: Mapping[str, dict], payloads: Mapping[str, Iterator[bytes]], sizes: Mapping[str, int]
) -> None:
    """Documents first, then each payload that has any piece; `sizes` are upper bounds in bytes, for the header's kind."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = json.dumps(ZIP_COMMENT).encode()
        for key in sorted(documents, key=lambda key: (key.count("/"), key)):
            archive.writestr(zipfile.ZipInfo(key), json.dumps(documents[key], sort_keys=True))
        for key, pieces in payloads.items():
            if (first := next(pieces, None)) is None:
                continue
            info = zipfile.ZipInfo(key)
            info.file_size = sizes.get(key, len(first))
            with archive.open(info, "w") as member, io.BufferedWriter(member, WRITE_BYTES) as buffered:
                buffered.write(first)
                buffered.writelines(pieces)


def _documents(
    record: Mapping[str, Any],
    image: np.ndarray,
    codes: np.ndarray,
    coordinates: np.ndarray,
    ranges: dict[str, list[int]],
) -> dict[str, dict]:
    """Every zarr.json of a case, by its path in the zip. Pure."""
    spacing = record["spacing_mm_zyx"]
    block = {**record, "format_version": FORMAT_VERSION}
    ome_image = {"version": "0.5", "multiscales": [_multiscales(record["case"], spacing)]}
    ome_labels = {"version": "0.5", "multiscales": [_multiscales("structures", spacing)], "image-label": {}}
    return {
        "zarr.json": _group({"ome": ome_image, "pants_dist": block}),
        "0/zarr.json": _sharded(image, AIR_HU, "image"),
        "labels/zarr.json": _group({"ome": {"version": "0.5", "labels": ["structures"]}}),
        "labels/structures/zarr.json": _group({"ome": ome_labels}),
        "labels/structures/0/zarr.json": _sharded(codes, 0, "codes"),
        "foreground/zarr.json": {**_array(coordinates, 0, [max(len(coordinates), 1), 3]), "codecs": [_BYTES],
                                 "dimension_names": ["voxel", "zyx"], "attributes": {"ranges": ranges}},
    }  # fmt: skip


_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}


def _group(attributes: dict) -> dict:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(array: np.ndarray, fill: int, chunk_shape: list[int]) -> dict:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill if array.dtype.kind in "iu" else float(fill),
    }


def _sharded(array: np.ndarray, fill: int, kind: str) -> dict:
    cname, level = _codec(kind)
    packed = {
        "typesize": array.dtype.itemsize,
        "cname": cname,
        "clevel": level,
        "shuffle": shard.shuffle_of(array.dtype),
        "blocksize": 0,
    }
    sharding = {
        "chunk_shape": list(shard.CHUNK_ZYX),
        "codecs": [_BYTES, {"name": "blosc", "configuration": packed}, _CRC32C],
        "index_codecs": [_BYTES, _CRC32C],
        "index_location": "end",
    }
    whole = [n * shard.CHUNK for n in shard.grid_of(array.shape)]
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {**_array(array, fill, whole), "codecs": codecs, "dimension_names": ["z", "y", "x"], "attributes": {}}


def _multiscales(name: str, spacing_mm_zyx: list[float]) -> dict:
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": list(spacing_mm_zyx)}]
    return {"name": name, "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}


def row_of(path: Path) -> dict[str, Any]:
    """The manifest row of a case's file, from the file alone. Raises DamagedError where it is no whole case."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            found = {key: _data_range(file, archive, key) for key in DATA_KEYS.values()}
            member = archive.NameToInfo.get(DATA_KEYS["image"])
            root, image, codes, foreground = (
                json.loads(archive.read(f"{group}zarr.json"))
                for group in ("", "0/", "labels/structures/0/", "foreground/")
            )
        block = root["attributes"]["pants_dist"]
        row = {name: block[name] for name in RECORD.names}
        version = block["format_version"]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DamagedError(f"{path}: not a whole case ({error}); delete it and run the conversion again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}; convert it again")
    for name, key in DATA_KEYS.items():
        row[f"{name}_offset"], row[f"{name}_bytes"] = found[key]
    row |= {"shape_zyx": image["shape"], "image_dtype": image["data_type"], "codes_dtype": codes["data_type"]}
    row["image_crc32"] = member.CRC if member else 0
    row |= {"foreground_ranges": json.dumps(foreground["attributes"]["ranges"]), "source_mtimes_ns": None}
    return row | {"file_bytes": path.stat().st_size, "sha256": file_digest(path)}


def read_record(path: Path) -> dict[str, Any]:
    """What a case's file says of itself: the fields of RECORD and its format version."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("zarr.json"))["attributes"]["pants_dist"]


def _data_range(file: Any, archive: zipfile.ZipFile, key: str) -> tuple[int, int]:
    """(offset, bytes) of a stored member's data in the file; (0, 0) where the case has none."""
    if key not in archive.NameToInfo:
        return 0, 0
    info = archive.getinfo(key)
    file.seek(info.header_offset + 26)
    name_length, extra_length = np.frombuffer(file.read(4), "<u2").tolist()
    return info.header_offset + 30 + name_length + extra_length, info.file_size


def file_digest(path: Path) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
