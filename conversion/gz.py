"""Gzip at the speed of libdeflate: many members, zero padding, faults told apart; zlib where there is no libdeflate.

The `deflate` package carries libdeflate. Its Python functions allocate a new buffer for every file and do not say where
a member ends, so the library inside the package (or the system's) is called directly, into a buffer of the caller's.
"""

import ctypes
import ctypes.util
import gzip
import importlib
import zlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

MAGIC = b"\x1f\x8b"
LARGEST_RATIO = 1032  # deflate cannot pack better than this
HEAD = 1 << 16  # compressed bytes that surely hold the first few hundred decoded ones
_SUCCESS, _INSUFFICIENT_SPACE = 0, 3
_GZIP_BITS = 31  # zlib's way to ask for one gzip member


class BadGzip(Exception):
    """The reason, in plain words, why bytes are no whole gzip file."""


class TooLong(BadGzip):
    """More decoded bytes than the caller has room for."""


@cache
def library() -> ctypes.CDLL | None:
    """libdeflate with its prototypes: from the `deflate` package, else the system's, else None."""
    for path in _library_paths():
        try:
            found = ctypes.CDLL(path)
            found.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
            found.libdeflate_free_decompressor.argtypes = [ctypes.c_void_p]
            found.libdeflate_gzip_decompress_ex.argtypes = [
                ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t),
            ]  # fmt: skip
            found.libdeflate_crc32.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]
            found.libdeflate_crc32.restype = ctypes.c_uint32
            return found
        except (OSError, AttributeError):  # not there, or built without these symbols
            continue
    return None


def _library_paths() -> list[str]:
    package = _module("deflate._deflate")
    inside = [str(package.__file__)] if package else []
    system = ctypes.util.find_library("deflate")
    return inside + ([system] if system else [])


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@cache
def _streaming() -> Any:
    """A module with zlib's interface: isal's, which is twice as fast, else zlib itself."""
    return _module("isal.isal_zlib") or zlib


def head(data: bytes, count: int) -> bytes:
    """The first `count` decoded bytes, fewer where the file holds fewer. Raises BadGzip."""
    rest, found = data[:HEAD], b""
    try:
        while rest[:2] == MAGIC and len(found) < count:
            stream = zlib.decompressobj(_GZIP_BITS)
            found += stream.decompress(rest, count - len(found))
            rest = stream.unused_data
    except zlib.error as error:
        raise BadGzip(f"damaged gzip data ({error})") from error
    return found


def plain_header(data: bytes) -> int:
    """Bytes of a gzip header that holds nothing but perhaps a name; 0 for any other."""
    if data[:3] != MAGIC + b"\x08" or data[3:4] not in (b"\0", b"\x08"):
        return 0
    return 10 if data[3] == 0 else data.find(b"\0", 10) + 1


def crc32(data: np.ndarray, value: int = 0) -> int:
    """crc32 of contiguous bytes that follow those with the crc32 `value`."""
    lib = library()
    return lib.libdeflate_crc32(value, data.ctypes.data, len(data)) if lib else zlib.crc32(data.data, value)


def gunzip_into(data: bytes, out: np.ndarray) -> int:
    """Decode every member of `data` into `out` (uint8, contiguous); returns the decoded bytes.

    Raises TooLong where `out` is too small, BadGzip where data are damaged, end early, or something other than zero
    padding follows the last member. Checksums of the members are compared.
    """
    position = done = 0
    member = _member_libdeflate if library() else _member_zlib
    while data[position : position + 2] == MAGIC:
        taken, made = member(data, position, out[done:])
        position, done = position + taken, done + made
    if data[position:].strip(b"\0"):
        raise BadGzip(f"{len(data) - position} bytes of garbage follow the gzip data")
    return done


def _member_libdeflate(data: bytes, position: int, out: np.ndarray) -> tuple[int, int]:
    """Decode the member at `position`; returns (its bytes, decoded bytes)."""
    lib = library()
    assert lib is not None
    taken, made = ctypes.c_size_t(), ctypes.c_size_t()
    source = np.frombuffer(data, np.uint8)[position:]
    handle = lib.libdeflate_alloc_decompressor()
    try:
        status = lib.libdeflate_gzip_decompress_ex(
            handle, source.ctypes.data, len(source), out.ctypes.data, len(out), ctypes.byref(taken), ctypes.byref(made)
        )
    finally:
        lib.libdeflate_free_decompressor(handle)
    if status == _INSUFFICIENT_SPACE:
        raise TooLong(f"more than {len(out)} bytes of voxels")
    if status != _SUCCESS:
        raise BadGzip(_fault(data[position:]))
    return taken.value, made.value


def _member_zlib(data: bytes, position: int, out: np.ndarray) -> tuple[int, int]:
    stream = _streaming().decompressobj(_GZIP_BITS)
    try:
        decoded = stream.decompress(memoryview(data)[position:], len(out) + 1)
    except Exception as error:  # zlib.error, or isal's own
        raise BadGzip(_fault(data[position:])) from error
    if len(decoded) > len(out):
        raise TooLong(f"more than {len(out)} bytes of voxels")
    if not stream.eof:
        raise BadGzip(_fault(data[position:]))
    out[: len(decoded)] = np.frombuffer(decoded, np.uint8)
    return len(data) - position - len(stream.unused_data), len(decoded)


def _fault(data: bytes) -> str:
    """Why a member does not decode; libdeflate says no more than that it does not, so zlib tells."""
    stream = zlib.decompressobj(_GZIP_BITS)
    try:
        while data and not stream.eof:
            stream.decompress(data, 1 << 24)
            data = stream.unconsumed_tail
    except zlib.error as error:
        return f"damaged gzip data ({str(error).split(': ')[-1]})"
    return "truncated: the gzip data end early"


def gzip_bytes(data: bytes | bytearray | memoryview, level: int = 6) -> bytes:
    """One gzip member, without time or name: the same data give the same bytes."""
    package = _module("deflate")
    return bytes(package.gzip_compress(data, level)) if package else gzip.compress(data, level, mtime=0)
