import gzip
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion import gz, sparse
from conversion.inflate import inflate
from conversion.merge import BLOCK
from conversion.sparse import Sparse

pytest.importorskip("numba")
STRATEGIES = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE]


def runs(seed: int, size: int, noise: bool = False) -> np.ndarray:
    """Zeros with a few runs of other bytes, of ones alone or of anything."""
    rng = np.random.default_rng(seed)
    content = np.zeros(size, np.uint8)
    for begin in rng.integers(0, size, 12):
        run = content[begin : begin + rng.integers(1, 3000)]
        run[:] = rng.integers(0, 256, len(run)) if noise else 1
    return content


def untouched_are_zero(content: np.ndarray, touched: np.ndarray) -> bool:
    return not content[~np.repeat(touched, BLOCK)[: len(content)]].any()


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 100_000),
    level=st.integers(0, 9),
    strategy=st.sampled_from(STRATEGIES),
    noise=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_inflate_equals_zlib(seed: int, size: int, level: int, strategy: int, noise: bool) -> None:
    """Stored, fixed and dynamic blocks, one behind the other: the same bytes, and what is not touched is zero."""
    content = runs(seed, size, noise)
    stream = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    first = stream.compress(content[: size // 2].tobytes()) + stream.flush(zlib.Z_SYNC_FLUSH)
    data = first + stream.compress(content[size // 2 :].tobytes()) + stream.flush()
    out, touched = np.zeros(size, np.uint8), np.zeros(size // BLOCK + 1, np.bool_)
    assert inflate(np.frombuffer(data + b"behind", np.uint8), out, touched) == (len(data), size)
    assert np.array_equal(out, content) and untouched_are_zero(out, touched)


@pytest.mark.parametrize("first", [None, 0b011, 0b101], ids=["zlib's", "fixed code", "dynamic code"])
@given(seed=st.integers(0, 10_000), keep=st.floats(0, 1), flips=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_damaged_streams_write_nowhere_else(first: int | None, seed: int, keep: float, flips: int) -> None:
    """Flipped bits, early ends and noise that begins like a block.

    Never is a byte written beyond the buffer's end or in a block that is said to be untouched.
    """
    rng = np.random.default_rng(seed)
    data = np.frombuffer(zlib.compress(runs(seed, 50_000, noise=bool(seed % 2)).tobytes())[2:], np.uint8).copy()
    if first is not None:
        data[:] = rng.integers(0, 256, len(data))
        data[0] = data[0] & 0b11111000 | first
    for at in rng.integers(0, len(data), flips):
        data[at] ^= 1 << rng.integers(0, 8)
    room, touched = np.zeros(60_000, np.uint8), np.zeros(50_000 // BLOCK + 1, np.bool_)
    inflate(data[: int(keep * len(data))], room[:50_000], touched)
    assert not room[50_000:].any() and untouched_are_zero(room[:50_000], touched)


@pytest.mark.parametrize("bits", ["11000110", "11000111", "000000111110", "000000111111"])
def test_symbols_without_meaning_are_refused(bits: str) -> None:
    """The fixed codes have lengths 286 and 287 and distances 30 and 31, which no stream may use."""
    number = int(("110" + "00110000" + bits + "0" * 40)[::-1], 2)  # last block, fixed code, a literal 0
    data = np.frombuffer(number.to_bytes(10, "little"), np.uint8)
    assert inflate(data, np.zeros(1000, np.uint8), np.zeros(3, np.bool_)) == (0, 0)


def test_a_buffer_is_clean_for_the_next() -> None:
    """Contents of all sizes and kinds in one buffer, one after the other: each is whole and knows where it is filled."""
    scratch = Sparse()
    for seed, size in enumerate((60_000, 100_000, 40_000, 99_999, 100_000)):
        content = runs(seed, size, noise=size == 40_000)
        room, count = scratch.gunzip(gz.gzip_bytes(content.tobytes()), size)
        assert count == size and np.array_equal(room, content)
        filled = scratch.filled(room[352:])
        assert filled is not None and len(filled) == -(-(size - 352) // BLOCK)
        assert untouched_are_zero(room[352:], filled)
        scratch.room(30_000)[:] = 7


def test_sparse_data_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """libdeflate is not asked for a mask, and empty blocks are known; elsewhere nothing is known of them."""
    content = np.zeros(1_000_000, np.uint8)
    content[500_000:500_100] = 1
    data = gz.gzip_bytes(content.tobytes())
    monkeypatch.setattr(gz, "gunzip_into", lambda *_: pytest.fail("the long way"))
    scratch = Sparse()
    room, _ = scratch.gunzip(data, len(content))
    filled = scratch.filled(room)
    assert filled is not None and 1 <= filled.sum() <= 3
    assert scratch.filled(content) is None


@pytest.mark.parametrize("fault", ["checksum", "size", "early", "garbage"])
def test_faults_are_found(fault: str) -> None:
    """A wrong checksum or size, an early end and garbage behind are refused as libdeflate refuses them."""
    data = bytearray(gz.gzip_bytes(runs(1, 1_000_000).tobytes()))
    if fault == "early":
        del data[-10:]
    elif fault == "garbage":
        data += b"x"
    else:
        data[-8 if fault == "checksum" else -4] ^= 1
    with pytest.raises(gz.BadGzip) as expected:
        gz.gunzip_into(bytes(data), np.empty(1_000_000, np.uint8))
    with pytest.raises(gz.BadGzip) as found:
        Sparse().gunzip(bytes(data), 1_000_000)
    assert str(found.value) == str(expected.value)


def test_unusual_members() -> None:
    """A name in the header, several members and zero padding are read; a longer or shorter one is told."""
    content = runs(2, 1_000_000).tobytes()
    named = gzip.compress(content)
    named = named[:3] + b"\x08" + named[4:10] + b"mask.nii\0" + named[10:]
    halves = gzip.compress(content[:500_000]) + gzip.compress(content[500_000:]) + bytes(512)
    for data in (named, halves):
        assert Sparse().gunzip(data, len(content))[0].tobytes() == content
    with pytest.raises(gz.TooLong):
        Sparse().gunzip(named, len(content) - 1)
    assert Sparse().gunzip(named, len(content) + 1)[1] == len(content)


@given(head=st.binary(max_size=40), zeros=st.integers(0, 1 << 20))
@settings(deadline=None)
def test_checksum_passes_over_zeros(head: bytes, zeros: int) -> None:
    """crc32 of bytes with zeros behind them, from the crc32 of the bytes alone."""
    assert sparse._past_zeros(zlib.crc32(head), zeros, sparse._POWERS) == zlib.crc32(head + bytes(zeros))
