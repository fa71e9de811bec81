import gzip
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion import gz
from conversion.inflate import inflate
from conversion.merge import BLOCK
from conversion.sparse import Sparse, _crc32

STRATEGIES = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE]


def mostly_zero(seed: int, size: int, runs: int, values: int) -> np.ndarray:
    """Bytes with some runs of a few values."""
    rng = np.random.default_rng(seed)
    data = np.zeros(size, np.uint8)
    for begin in rng.integers(0, max(size, 1), runs if size else 0):
        data[begin : begin + int(rng.integers(1, 900))] = rng.integers(0, values + 1)
    return data


def deflated(data: bytes, level: int, strategy: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return packer.compress(data) + packer.flush()


@given(
    seed=st.integers(0, 10_000), size=st.integers(0, 200_000), runs=st.integers(0, 60), values=st.integers(1, 255),
    level=st.integers(0, 9), strategy=st.sampled_from(STRATEGIES),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_zlib_packed_comes_back(seed: int, size: int, runs: int, values: int, level: int, strategy: int) -> None:
    """Stored, fixed and dynamic blocks: the same bytes, the length of the stream, and every block that is not zero."""
    data = mostly_zero(seed, size, runs, values)
    packed = deflated(data.tobytes(), level, strategy)
    out, touched = np.zeros(size, np.uint8), np.zeros(size // BLOCK + 1, np.bool_)
    assert inflate(np.frombuffer(packed + b"behind", np.uint8), out, touched) == (len(packed), size)
    assert np.array_equal(out, data)
    assert all(touched[block] for block in np.flatnonzero(data) // BLOCK)
    assert _crc32(out, touched) == zlib.crc32(data)


@given(seed=st.integers(0, 10_000), cut=st.floats(0, 1), flips=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_damaged_data_are_never_taken_for_whole(seed: int, cut: float, flips: int) -> None:
    """Truncated or flipped anywhere: the buffer refuses as libdeflate does, or gives the very bytes that were packed."""
    rng = np.random.default_rng(seed)
    data = mostly_zero(seed, 150_000, 10, 3)
    packed = bytearray(gzip.compress(data.tobytes()))
    for bit in rng.integers(0, 8 * len(packed), flips):
        packed[bit // 8] ^= 1 << bit % 8
    packed = packed[: int(len(packed) * (0.5 + cut / 2))] if cut < 0.5 else packed
    try:
        room, count = Sparse().gunzip(bytes(packed), len(data))
        assert np.array_equal(room[:count], data)
    except gz.BadGzip:
        pass


def test_a_buffer_forgets_what_an_earlier_mask_left() -> None:
    """Sparse, dense, other sizes, in turn through one buffer: each comes back as it was, and `filled` is never wrong."""
    buffer, sparse = Sparse(), 0
    for seed, (size, runs) in enumerate([(300_000, 5), (300_000, 0), (200_000, 3), (400_000, 4000), (300_000, 7), (90, 1)]):
        data = mostly_zero(seed, size, runs, 1)
        room, count = buffer.gunzip(gzip.compress(data.tobytes()), size)
        assert count == size and np.array_equal(room, data)
        part = room[24:]
        filled = buffer.filled(part)
        assert filled is not None
        assert all(filled[block] for block in np.flatnonzero(part) // BLOCK)
        sparse += not filled.all()
    assert sparse >= 3
    assert buffer.filled(np.zeros(5, np.uint8)) is None


@pytest.mark.parametrize("size", [99_999, 100_001])
def test_another_length_is_left_to_the_strict_decoder(size: int) -> None:
    """Data longer or shorter than what was asked for are judged there."""
    packed = gzip.compress(bytes(100_000))
    if size < 100_000:
        with pytest.raises(gz.TooLong):
            Sparse().gunzip(packed, size)
    else:
        assert Sparse().gunzip(packed, size)[1] == 100_000
