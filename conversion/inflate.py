"""Deflate for data that are nearly all zero: zeros are passed over, not written, into a buffer that is zero already.

A mask's bytes are zeros but for a few organs' rows. libdeflate writes them all at the speed of memory; here a run of
zeros costs no more than its code. Only the compressed form is judged; whoever calls compares checksums. Compiled by
numba; where it is missing, nothing is decoded.
"""

import numpy as np

from conversion.merge import BLOCK, WORD
from pants_dist.shard import compiled

LITERALS, DISTANCES = 288, 32  # symbols of the two codes
LONGEST = 15  # bits of a code
END_OF_BLOCK = 256
FILL = 49  # bits held before a symbol: a length, its extra bits, a distance and its extra bits are 48 at most
_NEVER = [1 << 40] * 2  # the fixed codes have two symbols each that mean nothing: too long for any buffer
_LENGTH_EXTRA = np.array([0] * 8 + [n for n in range(1, 6) for _ in range(4)] + [0] * 3, np.int64)
_LENGTHS = np.concatenate([3 + np.append(0, np.cumsum(1 << _LENGTH_EXTRA[:27])), [258], _NEVER])
_DISTANCE_EXTRA = np.array([0, 0] + [n for n in range(14) for _ in range(2)] + [0] * 2, np.int64)
_DISTANCES = np.concatenate([1 + np.append(0, np.cumsum(1 << _DISTANCE_EXTRA[:29])), _NEVER])
_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])  # of the code lengths' code lengths
_POSITION, _BITS, _COUNT, _MADE, _EDGE = range(5)  # of the state: next byte, bits held, how many, bytes made, zero from


def _hold_loop(data: np.ndarray, state: np.ndarray, count: int) -> None:
    """Hold at least `count` bits (at most 56). Behind the end of the data are zeros."""
    while state[_COUNT] < count:
        if state[_POSITION] < len(data):
            state[_BITS] |= np.int64(data[state[_POSITION]]) << state[_COUNT]
        state[_POSITION] += 1
        state[_COUNT] += 8


def _take_loop(data: np.ndarray, state: np.ndarray, count: int) -> int:
    """The next `count` bits."""
    _hold(data, state, count)
    taken = state[_BITS] & ((1 << count) - 1)
    state[_BITS] >>= count
    state[_COUNT] -= count
    return taken


def _fill_table_loop(lengths: np.ndarray, table: np.ndarray) -> int:
    """Fill a table of symbol * 16 + bits by the next bits (0: no code); returns how many bits, 0 for an impossible code."""
    sizes = np.zeros(LONGEST + 1, np.int64)
    for length in lengths:
        sizes[length] += 1
    widest, code, room = 0, 0, 0
    starts = np.zeros(LONGEST + 1, np.int64)
    sizes[0] = 0
    for length in range(1, LONGEST + 1):
        code = (code + sizes[length - 1]) << 1
        starts[length] = code
        room += sizes[length] << (LONGEST - length)
        if sizes[length]:
            widest = length
    if room > 1 << LONGEST:
        return 0
    table[: 1 << widest] = 0
    for symbol in range(len(lengths)):
        length = lengths[symbol]
        if length:
            reverse = 0
            for bit in range(length):
                reverse |= (starts[length] >> bit & 1) << (length - 1 - bit)
            starts[length] += 1
            for index in range(reverse, 1 << widest, 1 << length):
                table[index] = symbol << 4 | length
    return widest


def _read_lengths_loop(data: np.ndarray, state: np.ndarray, table: np.ndarray, lengths: np.ndarray) -> bool:
    """Read the two codes of a block into `lengths` (the distances' from LITERALS on); False where they are damaged."""
    literals, distances, listed = _take(data, state, 5) + 257, _take(data, state, 5) + 1, _take(data, state, 4) + 4
    own = np.zeros(19, np.int64)
    for i in range(listed):
        own[_ORDER[i]] = _take(data, state, 3)
    widest = _fill_table(own, table)
    if widest == 0 or literals > LITERALS - 2 or distances > DISTANCES - 2:
        return False
    lengths[:] = 0
    done, last = 0, 0
    while done < literals + distances:
        _hold(data, state, LONGEST)
        entry = table[state[_BITS] & ((1 << widest) - 1)]
        if entry == 0:
            return False
        _take(data, state, entry & 15)
        symbol, repeat = entry >> 4, 1
        if symbol == 16:
            repeat = 3 + _take(data, state, 2)
        elif symbol == 17:
            last, repeat = 0, 3 + _take(data, state, 3)
        elif symbol == 18:
            last, repeat = 0, 11 + _take(data, state, 7)
        else:
            last = symbol
        if done + repeat > literals + distances:
            return False
        for i in range(done, done + repeat):
            lengths[i if i < literals else LITERALS + i - literals] = last
        done += repeat
    return True


def _symbols_loop(
    data: np.ndarray,
    state: np.ndarray,
    codes: np.ndarray,
    distances: np.ndarray,
    out: np.ndarray,
    touched: np.ndarray,
) -> bool:
    """Decode a block's symbols by its two tables, each as long as a power of 2; False where they are damaged."""
    position, bits, count, made, edge = state[0], state[1], state[2], state[3], state[4]
    while True:
        while count < FILL:
            if position < len(data):
                bits |= np.int64(data[position]) << count
            position += 1
            count += 8
        ahead, held = bits, count
        entry = codes[bits & (len(codes) - 1)]
        symbol = entry >> 4
        bits >>= entry & 15
        count -= entry & 15
        if symbol < END_OF_BLOCK:
            if entry == 0 or made == len(out):
                return False
            if symbol:
                out[made] = symbol
                touched[made // BLOCK] = True
                edge = made + 1
            made += 1
            continue
        if symbol == END_OF_BLOCK:
            state[0], state[1], state[2], state[3], state[4] = position, bits, count, made, edge
            return position <= len(data) + WORD
        extra = _LENGTH_EXTRA[symbol - END_OF_BLOCK - 1]
        run = _LENGTHS[symbol - END_OF_BLOCK - 1] + (bits & ((1 << extra) - 1))
        bits >>= extra
        count -= extra
        entry = distances[bits & (len(distances) - 1)]
        bits >>= entry & 15
        count -= entry & 15
        extra = _DISTANCE_EXTRA[entry >> 4]
        distance = _DISTANCES[entry >> 4] + (bits & ((1 << extra) - 1))
        bits >>= extra
        count -= extra
        if entry == 0 or distance > made or made + run > len(out):
            return False
        if made - distance < edge:  # what is copied may hold more than zeros
            edge = _copy(out, made, distance, run, edge)
            touched[made // BLOCK] = touched[(made + run - 1) // BLOCK] = True
            made += run
            continue
        made += run
        used = held - count
        same = (1 << used) - 1
        while (bits ^ ahead) & same == 0 and count >= used and made + run <= len(out):  # the same code again
            made += run
            bits >>= used
            count -= used


def _copy_loop(out: np.ndarray, made: int, distance: int, run: int, edge: int) -> int:
    """Copy bytes that may overlap themselves; returns behind which byte all is zero."""
    for i in range(made, made + run):
        value = out[i - distance]
        if value:
            out[i] = value
            edge = i + 1
    return edge


def _stored_loop(data: np.ndarray, state: np.ndarray, out: np.ndarray, touched: np.ndarray) -> bool:
    """Copy a block that is not compressed; False where it is damaged."""
    _take(data, state, state[_COUNT] & 7)
    size = _take(data, state, 16)
    if size ^ _take(data, state, 16) != 0xFFFF or state[_MADE] + size > len(out):
        return False
    for _ in range(size):
        value = _take(data, state, 8)
        if value:
            out[state[_MADE]] = value
            touched[state[_MADE] // BLOCK] = True
            state[_EDGE] = state[_MADE] + 1
        state[_MADE] += 1
    return state[_POSITION] <= len(data) + WORD


def _inflate_loop(data: np.ndarray, out: np.ndarray, touched: np.ndarray) -> tuple[int, int]:
    """Decode one deflate stream from `data` (uint8) into `out` (uint8), which is all zero; returns (its bytes, bytes made).

    touched[block] becomes True for every block of BLOCK bytes that was written to. (0, 0) where the stream is damaged,
    ends early or does not fit; `out` is zero then, too, where `touched` is False.
    """
    state = np.zeros(5, np.int64)
    codes, distances = np.zeros(1 << LONGEST, np.int64), np.zeros(1 << LONGEST, np.int64)
    lengths = np.zeros(LITERALS + DISTANCES, np.int64)
    last = 0
    while last == 0:
        last, kind = _take(data, state, 1), _take(data, state, 2)
        if kind == 0:
            if not _stored(data, state, out, touched):
                return 0, 0
            continue
        if kind == 1:
            lengths[:144], lengths[144:256], lengths[256:280], lengths[280:288], lengths[288:] = 8, 9, 7, 8, 5
        elif kind == 3 or not _read_lengths(data, state, codes, lengths):
            return 0, 0
        code_bits, distance_bits = _fill_table(lengths[:LITERALS], codes), _fill_table(lengths[LITERALS:], distances)
        if code_bits == 0:
            return 0, 0
        if not _symbols(data, state, codes[: 1 << code_bits], distances[: 1 << distance_bits], out, touched):
            return 0, 0
    return state[_POSITION] - state[_COUNT] // 8, state[_MADE]


def _inflate_plain(data: np.ndarray, out: np.ndarray, touched: np.ndarray) -> tuple[int, int]:
    return 0, 0


_hold = compiled(_hold_loop, _hold_loop)
_take = compiled(_take_loop, _take_loop)
_fill_table = compiled(_fill_table_loop, _fill_table_loop)
_read_lengths = compiled(_read_lengths_loop, _read_lengths_loop)
_copy = compiled(_copy_loop, _copy_loop)
_symbols = compiled(_symbols_loop, _symbols_loop)
_stored = compiled(_stored_loop, _stored_loop)
inflate = compiled(_inflate_loop, _inflate_plain)
