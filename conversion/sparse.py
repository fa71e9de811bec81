"""A buffer for masks: what is zero in it stays untouched, so that neither decoding nor merging pays for it."""

from collections.abc import Iterator

import numpy as np

from conversion import gz
from conversion.inflate import inflate
from conversion.merge import BLOCK
from conversion.nifti import Scratch
from pants_dist.shard import compiled

SPARSE = 32  # times smaller when packed: less sparse data libdeflate decodes faster
_CRC32 = 0xEDB88320


class Sparse(Scratch):
    """A scratch buffer that knows in which of its blocks of BLOCK bytes anything was written."""

    def __init__(self) -> None:
        super().__init__()
        self._touched = np.zeros(0, np.bool_)

    def room(self, count: int) -> np.ndarray:
        """`count` bytes for anything; what an earlier call returned is overwritten."""
        room = super().room(count)
        self._touched = np.ones(len(self._buffer) // BLOCK + 1, np.bool_)
        return room

    def gunzip(self, data: bytes, count: int) -> tuple[np.ndarray, int]:
        """As Scratch's; sparse data are decoded without touching what is zero."""
        if count < SPARSE * len(data):
            return super().gunzip(data, count)
        room = self._buffer[:count] if count <= len(self._buffer) else self.room(count)
        for begin, end in _stretches(self._touched):
            self._buffer[begin:end] = 0
        self._touched.fill(False)
        if _gunzip_sparse(data, room, self._touched):
            return room, count
        return super().gunzip(data, count)

    def filled(self, part: np.ndarray) -> np.ndarray | None:
        """Which blocks of BLOCK bytes of `part` (bytes,) may hold more than zeros; None where it lies elsewhere."""
        if not np.may_share_memory(part, self._buffer):
            return None
        first = (part.ctypes.data - self._buffer.ctypes.data) // BLOCK
        blocks = -(-len(part) // BLOCK)
        either = self._touched[:-1] | self._touched[1:]  # a block of `part` lies in two of the buffer's
        return np.append(either, self._touched[-1])[first : first + blocks]


def _gunzip_sparse(data: bytes, out: np.ndarray, touched: np.ndarray) -> bool:
    """Decode exactly one gzip member of exactly `out`'s bytes; False for all else, which gz.gunzip_into shall judge."""
    begin = gz.plain_header(data)
    taken, made = inflate(np.frombuffer(data, np.uint8)[begin:], out, touched)
    checksum, size = (int.from_bytes(data[begin + taken :][at : at + 4], "little") for at in (0, 4))
    whole = begin > 0 and taken > 0 and begin + taken + 8 == len(data) and made == len(out) and size == made & 0xFFFFFFFF
    return whole and _crc32(out, touched) == checksum


def _crc32(content: np.ndarray, touched: np.ndarray) -> int:
    """crc32 of `content` (bytes,), which is zero where its block was not touched."""
    value = at = 0
    for begin, end in _stretches(touched):
        value = gz.crc32(content[begin:end], _past_zeros(value, begin - at, _POWERS))
        at = min(end, len(content))
    return int(_past_zeros(value, len(content) - at, _POWERS))


def _stretches(touched: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first byte, byte behind the last) of the touched blocks that lie in a row."""
    edges = np.flatnonzero(np.diff(touched, prepend=False, append=False)) * BLOCK
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _times_loop(a: int, b: int) -> int:
    """Product of two polynomials modulo crc32's; the highest bit stands for 1."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_CRC32 if b & 1 else 0)
    return product


def _past_zeros_loop(value: int, count: int, powers: np.ndarray) -> int:
    """crc32 of what has the crc32 `value` and `count` zero bytes behind it."""
    state = value ^ 0xFFFFFFFF
    for n in range(len(powers)):
        if count >> n & 1:
            state = _times(powers[n], state)
    return state ^ 0xFFFFFFFF


_times = compiled(_times_loop, _times_loop)
_past_zeros = compiled(_past_zeros_loop, _past_zeros_loop)
_POWERS = np.full(40, 1 << 23, np.int64)  # what 2^n zero bytes multiply by: x^8, squared again and again
for _n in range(1, len(_POWERS)):
    _POWERS[_n] = _times_loop(int(_POWERS[_n - 1]), int(_POWERS[_n - 1]))
