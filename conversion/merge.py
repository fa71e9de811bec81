"""Merge overlapping masks into palette codes: one pass a mask, which writes only where the mask is set.

A volume of small codes says for every voxel which combination of structures it carries. Adding a mask moves its voxels
from code c to the code of "c and this structure", allocated when it first occurs; a code without voxels is used again.
Volumes are one-dimensional here, in the order of their memory. Loops are compiled by numba; where it is missing, numpy
makes the same arrays more slowly.
"""

import numpy as np

from pants_dist.shard import compiled

BLOCK = 512  # set voxels are counted in blocks of this many, so that the n-th one is found without a search
WORD = 8  # bytes looked at together: nearly all are zero
ONES = np.uint64(0x0101010101010101)
CODES_DTYPES = (np.uint8, np.uint16)
_DONE, _FULL, _SEVERAL = 0, 1, 2


class TooManyValues(ValueError):
    """A mask with more than one value besides 0, or a case with more combinations than uint16 can number."""


class Combinations:
    """The code volume of one case while masks are added to it.

    `codes` (voxels,) is uint8, or uint16 once more than 256 combinations are in use at a time; `bitmasks[code]` is the
    combination that a code stands for, `counts[code]` how many voxels carry it.
    """

    def __init__(self, voxels: int, room: np.ndarray | None = None) -> None:
        """`room` (voxels,) uint8 is memory to use, whatever it holds."""
        self.codes: np.ndarray = np.empty(voxels, np.uint8) if room is None else room
        self.codes.fill(0)
        self.bitmasks = [0]
        self.counts = np.zeros(1 << 16, np.int64)
        self.counts[0] = voxels

    def add(self, mask: np.ndarray, bit: int, on: np.ndarray, filled: np.ndarray | None = None) -> np.ndarray:
        """Set bit `bit` in the voxels of `mask`; returns how many are set in each block of BLOCK voxels (int32).

        `mask` (voxels,) is uint8, aligned to 8 bytes; on[value] says which values are set, on[0] is False.
        filled[block] is False where a block is known to hold only zeros. Raises TooManyValues.
        """
        blocks = np.zeros(-(-len(mask) // BLOCK), np.int32)
        successor = np.full(len(self.counts), -1, np.int32)
        seen = np.zeros(1, np.uint8)
        filled = np.ones(len(blocks), np.bool_) if filled is None else filled
        words = _words(mask)
        status, block = _FULL, 0
        while status == _FULL:
            free = self._free()
            origin = np.full(len(free), -1, np.int32)
            code_words = _words(self.codes) if self.codes.dtype == np.uint8 else words[:0]
            status, block, used = _add(
                mask, words, on, self.codes, code_words, successor, free, origin, self.counts, blocks, filled, block, seen
            )
            self._allocate(free[:used], origin[:used], bit)
            if status == _SEVERAL or (status == _FULL and self.codes.dtype == CODES_DTYPES[-1]):
                raise TooManyValues
            if status == _FULL:
                self.codes = self.codes.astype(CODES_DTYPES[-1])
        return blocks

    def _free(self) -> np.ndarray:
        """Codes that no voxel carries and that the dtype can hold."""
        limit = np.iinfo(self.codes.dtype).max + 1
        return np.flatnonzero(self.counts[1:limit] == 0).astype(np.int32) + 1

    def _allocate(self, codes: np.ndarray, origins: np.ndarray, bit: int) -> None:
        for code, origin in zip(codes.tolist(), origins.tolist(), strict=True):
            self.bitmasks += [0] * (code + 1 - len(self.bitmasks))
            self.bitmasks[code] = self.bitmasks[origin] | 1 << bit

    def palette(self) -> tuple[np.ndarray, list[int], list[int], np.ndarray]:
        """Renumber by bitmask, the empty one first. The object is used up.

        Returns codes (voxels,), the bitmask of each code, its voxels, and the non-empty voxels in each block.
        """
        used = [code for code in range(len(self.bitmasks)) if self.counts[code] or code == 0]
        order = sorted(used, key=lambda code: self.bitmasks[code])
        dtype = CODES_DTYPES[0] if len(order) <= 256 else CODES_DTYPES[1]
        renumbered = np.zeros(len(self.bitmasks), dtype)
        renumbered[order] = np.arange(len(order), dtype=dtype)
        out = self.codes if self.codes.dtype == dtype else np.zeros(len(self.codes), dtype)
        blocks = np.zeros(-(-len(out) // BLOCK), np.int32)
        _renumber(self.codes, _words(self.codes), out, _words(out), renumbered, blocks)
        return out, [self.bitmasks[code] for code in order], self.counts[order].tolist(), blocks


def _words(volume: np.ndarray) -> np.ndarray:
    """The same memory 8 bytes at a time, without what is left over at its end."""
    return volume.view(np.uint8)[: volume.nbytes // WORD * WORD].view(np.uint64)


def locate(volume: np.ndarray, blocks: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Position (int64) of the ranks[n]-th non-zero voxel of `volume`; `blocks` counts them, `ranks` ascend from 0."""
    return _locate(volume, _words(volume), np.cumsum(blocks, dtype=np.int64), ranks.astype(np.int64))


# numba compiles these three as they stand; every scalar below is an integer of 64 bits to it


def _add_loop(
    mask: np.ndarray,
    words: np.ndarray,
    on: np.ndarray,
    codes: np.ndarray,
    code_words: np.ndarray,
    successor: np.ndarray,
    free: np.ndarray,
    origin: np.ndarray,
    counts: np.ndarray,
    blocks: np.ndarray,
    filled: np.ndarray,
    first: int,
    seen: np.ndarray,
) -> tuple[int, int, int]:
    """Add from block `first` on; returns (status, block to go on from, entries of `free` that were taken).

    Voxels are looked at in words of 8 where all 8 are alike, which inside organs they are.
    """
    used, alike = 0, len(code_words) > 0
    for block in range(len(blocks)):
        if block < first or not filled[block] or _is_empty(words, block):
            continue
        i, stop = block * BLOCK, min(block * BLOCK + BLOCK, len(mask))
        before, after, run, found = -1, -1, 0, 0
        while i < stop:
            if i & 7 == 0 and i + WORD <= stop:
                word = words[i >> 3]
                if word == 0:
                    i += WORD
                    continue
                if run and alike and word == seen[0] * ONES and code_words[i >> 3] == np.uint64(before) * ONES:
                    code_words[i >> 3] = np.uint64(after) * ONES
                    run += WORD
                    found += WORD
                    i += WORD
                    continue
            value = mask[i]
            if value != 0:
                if value != seen[0]:
                    if seen[0] != 0:
                        return _SEVERAL, block, used
                    seen[0] = value
                if on[value]:
                    code = int(codes[i])
                    if code != before:
                        counts[before] -= run  # before the first run this subtracts 0
                        counts[after] += run
                        before, run, after = code, 0, successor[code]
                        if after < 0:
                            if used == len(free):
                                return _FULL, block, used
                            after = free[used]
                            origin[used] = code
                            used += 1
                            successor[code] = after
                            successor[after] = after  # so that going on from this block changes nothing twice
                    codes[i] = after
                    run += 1
                    found += 1
            i += 1
        counts[before] -= run
        counts[after] += run
        blocks[block] = found
    return _DONE, len(blocks), used


def _is_empty_loop(words: np.ndarray, block: int) -> bool:
    """Whether a whole block of a mask is 0; False for what is left over behind the last whole block."""
    if block * (BLOCK // WORD) + BLOCK // WORD > len(words):
        return False
    anything = np.uint64(0)
    for word in range(block * (BLOCK // WORD), block * (BLOCK // WORD) + BLOCK // WORD):
        anything |= words[word]
    return bool(anything == 0)


def _renumber_loop(
    codes: np.ndarray,
    code_words: np.ndarray,
    out: np.ndarray,
    out_words: np.ndarray,
    renumbered: np.ndarray,
    blocks: np.ndarray,
) -> None:
    """Write renumbered[codes] to `out`, which may be `codes`, where a code is not 0; count those in `blocks`.

    A word that equals the last one, as it does inside organs, is written as that one was.
    """
    step, same_width = WORD // codes.itemsize, codes.itemsize == out.itemsize
    last, written, found = np.uint64(0), np.uint64(0), 0
    for word in range((len(codes) + step - 1) // step):
        whole = word < len(code_words)
        if whole and code_words[word] == 0:
            continue
        if whole and same_width and code_words[word] == last:
            out_words[word] = written
        else:
            last = code_words[word] if whole else np.uint64(0)
            found = 0
            for i in range(word * step, min(word * step + step, len(codes))):
                if codes[i] != 0:
                    out[i] = renumbered[codes[i]]
                    found += 1
            written = out_words[word] if whole and same_width else np.uint64(0)
        blocks[word * step >> 9] += found


def _locate_loop(volume: np.ndarray, words: np.ndarray, ends: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Blocks, then words of nothing, are passed over; so are words of one value before the voxel that is looked for."""
    step = WORD // volume.itemsize
    positions = np.empty(len(ranks), np.int64)
    block, i, passed = 0, 0, 0  # `passed` non-zero voxels lie before i
    for n in range(len(ranks)):
        while ends[block] <= ranks[n]:
            passed = ends[block]
            block += 1
            i = block * BLOCK
        while volume[i] == 0 or passed < ranks[n]:
            if i % step == 0 and i // step < len(words):
                word = words[i // step]
                if word == 0 or (step == WORD and word == np.uint64(volume[i]) * ONES and passed + WORD <= ranks[n]):
                    passed += WORD if word else 0
                    i += step
                    continue
            passed += volume[i] != 0
            i += 1
        positions[n] = i
    return positions


# the same with numpy


def _add_plain(
    mask: np.ndarray,
    words: np.ndarray,
    on: np.ndarray,
    codes: np.ndarray,
    code_words: np.ndarray,
    successor: np.ndarray,
    free: np.ndarray,
    origin: np.ndarray,
    counts: np.ndarray,
    blocks: np.ndarray,
    filled: np.ndarray,
    first: int,
    seen: np.ndarray,
) -> tuple[int, int, int]:
    where = np.flatnonzero(mask)
    if len(where) and (mask[where] != mask[where[0]]).any():
        return _SEVERAL, 0, 0
    if not len(where) or not on[mask[where[0]]]:
        return _DONE, len(blocks), 0
    before = codes[where]
    kinds, first_seen, sizes = np.unique(before, return_index=True, return_counts=True)
    if len(kinds) > len(free):
        return _FULL, 0, 0
    order = np.argsort(first_seen)
    origin[: len(kinds)] = kinds[order]
    successor[kinds[order]] = free[: len(kinds)]
    codes[where] = successor[before]
    counts[kinds] -= sizes
    counts[free[: len(kinds)]] += sizes[order]
    blocks[:] = np.bincount(where // BLOCK, minlength=len(blocks))
    return _DONE, len(blocks), len(kinds)


def _renumber_plain(
    codes: np.ndarray,
    code_words: np.ndarray,
    out: np.ndarray,
    out_words: np.ndarray,
    renumbered: np.ndarray,
    blocks: np.ndarray,
) -> None:
    where = np.flatnonzero(codes)
    out[where] = renumbered[codes[where]]
    blocks[:] = np.bincount(where // BLOCK, minlength=len(blocks))


def _locate_plain(volume: np.ndarray, words: np.ndarray, ends: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    return np.flatnonzero(volume)[ranks]


_is_empty = compiled(_is_empty_loop, _is_empty_loop)
_add = compiled(_add_loop, _add_plain)
_renumber = compiled(_renumber_loop, _renumber_plain)
_locate = compiled(_locate_loop, _locate_plain)
