"""Conversion of full-size cases beside its floor and its peers, in one run.

    python benchmarks/convert.py FOLDER [--runs 5] [--without-peers] [--also FOLDER]

FOLDER is in PanTS's layout. The floor decompresses the same files with libdeflate, into one buffer, and does nothing
else. All take turns, and medians count; times are wall-clock seconds a case. All but the whole command are held on one
core; the two slow peers take the first three cases only. Peak memory is that of a fresh process with FOLDER's cases, and
of one with a case of 240 million voxels, the first one's slices repeated. --also names cases whose size in the store is
printed beside. nnU-Net takes part where its package nnunetv2 is installed.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("BLOSC_NTHREADS", "1")

import nibabel
import nnunet
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from conversion import gz, nifti
from conversion.layouts import recognise
from conversion.reading import Memory
from conversion.repack import convert_case
from conversion.run import convert
from conversion.source import Source

CHUNKS_ZYX = (32, 32, 32)
LARGEST_VOXELS = 240_000_000  # of the largest scan of PanTS
SLOW_CASES = 3  # the slow peers take so many
FLOOR, OURS, ZARR = "floor: libdeflate, nothing else", "pants-dist, one process", "nibabel + zarr-python"
NNUNET = "nnU-Net v2's preprocessing, without resampling"
ONE, TWO = "pants-dist convert, 1 worker", "pants-dist convert, 2 workers"
Peer = Callable[[Sequence[Source], Path], None]


def floor(buffer: np.ndarray) -> Peer:
    def decompress(sources: Sequence[Source], folder: Path) -> None:
        for path in (path for source in sources for path in source.files):
            gz.gunzip_into(path.read_bytes(), buffer)

    return decompress


def one_process(memory: Memory) -> Peer:
    def ours(sources: Sequence[Source], folder: Path) -> None:
        for source in sources:
            convert_case(source, folder, memory)

    return ours


def with_zarr(sources: Sequence[Source], folder: Path) -> None:
    """nibabel reads, numpy merges into a bitmask a voxel, zarr-python writes it and the CT as one shard each."""
    for source in sources:
        image = np.asarray(nibabel.load(source.image).dataobj).T  # type: ignore[attr-defined]
        bits = np.zeros(image.shape, np.uint32)
        for bit, path in enumerate(source.masks.values()):
            bits |= (np.asarray(nibabel.load(path).dataobj).T > 0.5).astype(np.uint32) << bit  # type: ignore[attr-defined]
        palette, codes = np.unique(bits, return_inverse=True)
        codes = codes.reshape(image.shape).astype(np.uint8 if len(palette) <= 256 else np.uint16)
        root = zarr.open_group(folder / f"{source.case}.zarr", mode="w")
        for name, array, cname, level in (("image", image, "lz4", 5), ("codes", codes, "lz4hc", 1)):
            shuffle = "bitshuffle" if array.itemsize > 1 else "noshuffle"
            shards = tuple(-(-n // 32) * 32 for n in array.shape)
            root.create_array(
                name, shape=array.shape, dtype=array.dtype, chunks=CHUNKS_ZYX, shards=shards,
                compressors=BloscCodec(cname=cname, clevel=level, shuffle=shuffle),
            )[...] = array  # fmt: skip


def workers(count: int) -> Peer:
    """The whole command: starting processes, checks, journal and manifest included."""

    def run(sources: Sequence[Source], folder: Path) -> None:
        root = sources[0].root
        convert([root], folder / "store", workers=count)

    return run


def measured(peers: dict[str, Peer], sources: Sequence[Source], runs: int) -> dict[str, float]:
    """Median seconds a case; every peer has one turn before that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    cores = sorted(os.sched_getaffinity(0))
    for run in range(runs + 1):
        for name, peer in peers.items():
            chosen = sources[:SLOW_CASES] if name in (ZARR, NNUNET) else sources
            os.sched_setaffinity(0, cores if name in (ONE, TWO) else cores[-1:])
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                peer(chosen, Path(folder))
                if run:
                    seconds[name].append((time.perf_counter() - begun) / len(chosen))
    os.sched_setaffinity(0, cores)
    return {name: median(found) for name, found in seconds.items()}


def peak_bytes(root: Path) -> int:
    """Peak memory of a fresh process that converts every case, libraries included."""
    found = subprocess.run([sys.executable, __file__, str(root), "--peak"], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def enlarged(source: Source, root: Path) -> Path:
    """The same case with LARGEST_VOXELS voxels: its slices over and over."""
    for path, name in zip(source.files, source.names, strict=True):
        volume = nifti.read(path, scaled=False)
        i, j, k = volume.array_ijk.shape
        repeated = np.take(volume.array_ijk, np.arange(-(-LARGEST_VOXELS // (i * j))) % k, axis=2)
        nifti.write(root / name, repeated, volume.affine, volume.slope, volume.inter, level=1)
    return root


def print_peak(sources: Sequence[Source]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one_process(Memory())(sources, Path(folder))
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had when it forked
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)


def largest_bytes(sources: Sequence[Source]) -> int:
    """Decoded bytes of the largest file, by the last four bytes of its gzip."""
    return max(int.from_bytes(path.read_bytes()[-4:], "little") for source in sources for path in source.files)


def ratio(sources: Sequence[Source]) -> float:
    """Bytes in the store over bytes of the sources' files."""
    with tempfile.TemporaryDirectory() as folder:
        one_process(Memory())(sources, Path(folder))
        stored = sum(path.stat().st_size for path in Path(folder).glob("*.ozx"))
    return stored / sum(path.stat().st_size for source in sources for path in source.files)


def print_table(seconds: dict[str, float], sources: Sequence[Source]) -> None:
    packages = ["numpy", "numcodecs", "zarr", "nibabel", *(["nnunetv2"] if NNUNET in seconds else [])]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"`python {' '.join(sys.argv)}`: {len(sources)} cases; {cpu_name()}, {os.cpu_count()} cores; load when it ended")
    print(f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}\n")
    print("| what | seconds a case | floor / it | it / pants-dist |\n|---|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {found:.3f} | {seconds[FLOOR] / found:.2f} | {found / seconds[OURS]:.2f} |")
    if NNUNET not in seconds:
        print(f"| {NNUNET} | not measured: {'left out' if nnunet.installed() else 'nnunetv2 is not installed'} | | |")
    print(f"\n2 workers are {seconds[ONE] / seconds[TWO]:.2f} times as fast as 1.")


def print_sizes(sources: Sequence[Source], root: Path, also: Path | None) -> None:
    print(f"Files are {ratio(sources):.3f} of the source's bytes", end="")
    print(f", those of {also} {ratio(recognise(also).sources):.3f}." if also else ".")
    with tempfile.TemporaryDirectory() as folder:
        large = recognise(enlarged(sources[0], Path(folder))).sources
        for found, at in ((sources, root), (large, Path(folder))):
            decoded, peak = largest_bytes(found), peak_bytes(at)
            print(f"Peak memory: {peak / 1e6:.0f} MB where the uncompressed CT has {decoded / 1e6:.0f} MB", end="")
            print(f" (3 times that and 500 MB: {(3 * decoded + 500e6) / 1e6:.0f}).")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="cases in PanTS's layout")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--without-peers", action="store_true", help="leave out zarr-python and nnU-Net, which are slow")
    parser.add_argument("--also", type=Path, help="other cases, such as a real one, to print the size of")
    parser.add_argument("--peak", action="store_true", help="only convert, and print the peak memory in bytes")
    given = parser.parse_args()
    sources = recognise(given.folder).sources
    if given.peak:
        return print_peak(sources)
    peers = {FLOOR: floor(np.ones(largest_bytes(sources), np.uint8)), OURS: one_process(Memory())}
    peers |= {ONE: workers(1), TWO: workers(2)}
    with tempfile.TemporaryDirectory() as labels:
        if not given.without_peers:
            peers[ZARR] = with_zarr
            if nnunet.installed():
                peers[NNUNET] = nnunet.preprocessing(nnunet.label_maps(sources[:SLOW_CASES], Path(labels)))
        seconds = measured(peers, sources, given.runs)
    print_table(seconds, sources)
    print_sizes(sources, given.folder, given.also)


if __name__ == "__main__":
    main()
