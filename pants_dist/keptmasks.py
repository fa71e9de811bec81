"""Predicted masks, kept beside an evaluation's rows so that a page can outline them: one file a writer, whatever the cases.

    records, one after the other: bytes of JSON (uint32), bytes of data (uint64), little-endian; JSON; data

The first record's JSON says what the masks are of, as in rows.py, and has no data. Each other one is a case: its name,
shape_zyx and structures; its data is a shard (shard.py) of uint8 in which bit n is structure n. Only what is outlined is kept
(pictures.outlined). A case of 512 x 512 x 200 takes some 50 kB; beyond FULL_BYTES a file takes only the worst cases so far.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pants_dist import shard
from pants_dist.decode import decode
from pants_dist.errors import DamagedError
from pants_dist.pictures import outlined
from pants_dist.rows import WHOLE, Row

FULL_BYTES = 256 * 2**20
SIZES = struct.Struct("<IQ")
MOST_JSON = 1 << 20  # bytes; more is no record of ours


class Kept(NamedTuple):
    """Where the predicted masks of a case lie."""

    path: Path
    offset: int
    size: int
    shape_zyx: tuple[int, int, int]
    structures: tuple[str, ...]


class KeptMasks:
    """What one writer adds to a folder: he who does slice (i, n) of the cases. A file of anything else is begun anew."""

    def __init__(self, folder: Path, head: Row, slice_: tuple[int, int] = WHOLE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = "predictions" if slice_ == WHOLE else f"predictions-{slice_[0]}-of-{slice_[1]}"
        self.path = folder / f"{name}.masks"
        whole = _end_of_whole(self.path) if head_of(self.path) == head else 0
        with open(self.path, "ab") as file:
            file.truncate(whole)  # without a torn last record
            if not whole:
                file.write(_record(head, b""))

    def add(self, case: str, masks: Mapping[str, np.ndarray], worst: bool) -> None:
        """Keep a case's masks, boolean (z, y, x); not where the file is full, unless it is among the `worst` so far."""
        if not worst and self.path.stat().st_size > FULL_BYTES:
            return
        structures = outlined(masks)
        codes = np.zeros(masks[structures[0]].shape, np.uint8)
        for bit, name in enumerate(structures):
            codes |= masks[name].view(np.uint8) << bit
        about = {"case": case, "shape_zyx": codes.shape, "structures": structures}
        with open(self.path, "ab") as file:
            file.write(_record(about, b"".join(shard.encode(codes, 0, "lz4hc", 1))))


def _record(about: Mapping[str, Any], data: bytes) -> bytes:
    text = json.dumps(about).encode()
    return SIZES.pack(len(text), len(data)) + text + data


def _records(path: Path) -> Iterator[tuple[Row, int, int]]:
    """(JSON, where its data begin, where they end) of each whole record; none where there is no such file."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            while (found := _next_record(file, length)) is not None:
                yield found
                file.seek(found[2])
    except OSError:
        return


def _next_record(file: BinaryIO, length: int) -> tuple[Row, int, int] | None:
    sizes = file.read(SIZES.size)
    if len(sizes) < SIZES.size:
        return None
    text_bytes, data_bytes = SIZES.unpack(sizes)
    begin = file.tell() + text_bytes
    if text_bytes > MOST_JSON or begin + data_bytes > length:
        return None
    try:
        return json.loads(file.read(text_bytes)), begin, begin + data_bytes
    except ValueError:
        return None


def _end_of_whole(path: Path) -> int:
    return max((end for _, _, end in _records(path)), default=0)


def head_of(path: Path) -> Row | None:
    """What a file's masks are of; None where there is no such file, or it is none of ours."""
    return next((about for about, _, _ in _records(path)), None)


def drop_others(folder: Path, head: Row) -> None:
    """Remove the files of a folder whose masks are of anything else, as of an older checkpoint."""
    for path in folder.glob("predictions*.masks"):
        if head_of(path) != head:
            path.unlink(missing_ok=True)


def kept_in(path: Path) -> dict[str, Kept]:
    """The masks in a file by case; of a case that was kept twice the later ones."""
    records = list(_records(path))[1:]
    return {
        about["case"]: Kept(path, begin, end - begin, tuple(about["shape_zyx"]), tuple(about["structures"]))
        for about, begin, end in records
    }  # fmt: skip


def read_kept(kept: Kept, corner_zyx: tuple[int, int, int], size_zyx: tuple[int, int, int]) -> np.ndarray:
    """The box of `size_zyx` from `corner_zyx` on, inside the case, as uint8 (z, y, x): bit n is structure n.

    Only the chunks that it touches are decoded. Raises DamagedError where they are not what was written, and OSError.
    """
    out = np.zeros(size_zyx, np.uint8)
    if not kept.size:  # nothing was predicted
        return out
    with open(kept.path, "rb") as file:
        file.seek(kept.offset)
        data = np.frombuffer(file.read(kept.size), np.uint8)
    try:
        index = shard.read_index(data[-shard.index_bytes(kept.shape_zyx) :].tobytes(), kept.shape_zyx)
    except (shard.BadChecksum, ValueError) as error:
        raise DamagedError(f"{kept.path}: the masks at byte {kept.offset} are damaged; evaluate again") from error
    chunks, offsets, sizes = shard.touched(index, kept.shape_zyx, corner_zyx, size_zyx)
    if decode(data, offsets, sizes, chunks, corner_zyx, out, kept.shape_zyx, 0) >= 0:
        raise DamagedError(f"{kept.path}: the masks at byte {kept.offset} are damaged; evaluate again")
    return out
