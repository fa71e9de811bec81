"""Reading patches, beside the ways in which others do.

    python benchmarks/read.py STORE [--patches 40] [--rounds 5] [--peers NAME ...]

Takes up to six cases of STORE, writes the same voxels in every peer's layout beside it (about 0.5 GB a full-size case,
removed at the end), and reads image and codes of the same random unaligned boxes with each, in turns. Every peer has a
process of its own; "two" are two processes at once. Warm reads find all in the page cache; before each cold one the
files are put out of it (posix_fadvise) and handles are closed. A peer whose package is missing is left out.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}

import numpy as np

from pants_dist import fetch
from pants_dist.store import Store, open_store

PATCHES_ZYX = ((96, 96, 96), (128, 128, 128), (64, 160, 160))
CASES = 6
SLOW = {"zarr-python": 10, "zarrs": 4, "MONAI PersistentDataset": 10, ".nii.gz and crop": 10}  # so many times fewer patches
COLD = 6  # patches of a round that are read cold
Box = tuple[slice, slice, slice]
Read = Callable[[str, Box], tuple[Any, Any]]


def ours(way: str) -> Callable[[Path, Path, tuple], tuple[Read, Callable[[], None]]]:
    def peer(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
        opened = open_store(store, way)

        def read(case: str, box: Box) -> tuple[Any, Any]:
            return opened.read_patch(case, tuple(part.start for part in box), tuple(part.stop - part.start for part in box))

        return read, opened._forget_handles

    return peer


def memmap(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
    def read(case: str, box: Box) -> tuple[Any, Any]:
        return tuple(np.array(np.load(folder / f"{case}.{name}.npy", mmap_mode="r")[box]) for name in ("image", "codes"))

    return read, lambda: None


def nnunet(kept: bool) -> Callable[[Path, Path, tuple], tuple[Read, Callable[[], None]]]:
    def peer(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        dataset = nnUNetDatasetBlosc2(str(folder / "nnunet" / "_".join(map(str, patch))))
        opened: dict[str, Any] = {}

        def read(case: str, box: Box) -> tuple[Any, Any]:
            data, labels, *_ = opened.get(case) or dataset.load_case(case)
            if kept:
                opened[case] = data, labels
            return data[(slice(None), *box)][0], labels[(slice(None), *box)][0]

        return read, opened.clear

    return peer


def tensorstore(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
    import tensorstore as ts

    opened: dict[str, Any] = {}
    context = ts.Context({"data_copy_concurrency": {"limit": 1}, "cache_pool": {"total_bytes_limit": 0}})

    def array(case: str, name: str) -> Any:
        if (case, name) not in opened:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "zarr" / case / name)}}
            opened[case, name] = ts.open(spec, read=True, context=context).result()
        return opened[case, name]

    def read(case: str, box: Box) -> tuple[Any, Any]:
        both = [array(case, name)[box].read() for name in ("image", "codes")]
        return both[0].result(), both[1].result()

    return read, opened.clear


def zarr_python(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
    import zarr

    opened: dict[str, Any] = {}

    def read(case: str, box: Box) -> tuple[Any, Any]:
        if case not in opened:
            group = zarr.open_group(folder / "zarr" / case, mode="r")
            opened[case] = group["image"], group["codes"]
        image, codes = opened[case]
        return image[box], codes[box]

    return read, opened.clear


def zarrs(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1})
    return zarr_python(store, folder, patch)


def monai(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
    from monai.data import PersistentDataset

    names = sorted({path.name.partition(".")[0] for path in folder.glob("*.image.npy")})

    def load(case: str) -> dict[str, np.ndarray]:
        return {name: np.load(folder / f"{case}.{name}.npy") for name in ("image", "codes")}

    dataset = PersistentDataset(names, transform=load, cache_dir=folder / "monai")

    def read(case: str, box: Box) -> tuple[Any, Any]:
        volumes = dataset[names.index(case)]
        return np.array(volumes["image"][box]), np.array(volumes["codes"][box])

    return read, lambda: None


def nifti(store: Path, folder: Path, patch: tuple) -> tuple[Read, Callable[[], None]]:
    import nibabel

    def read(case: str, box: Box) -> tuple[Any, Any]:
        volumes: list[Any] = [nibabel.load(folder / f"{case}.{name}.nii.gz") for name in ("image", "codes")]
        return tuple(np.asarray(volume.dataobj).T[box] for volume in volumes)

    return read, lambda: None


PEERS = {
    "pants-dist, mmap": ours("mmap"), "pants-dist, pread": ours("pread"), "numpy memmap, uncompressed": memmap,
    "nnU-Net v2 blosc2, opened for each patch": nnunet(False), "nnU-Net v2 blosc2, handle kept": nnunet(True),
    "tensorstore": tensorstore, "zarrs": zarrs, "zarr-python": zarr_python, "MONAI PersistentDataset": monai,
    ".nii.gz and crop": nifti,
}  # fmt: skip
PACKAGES = {"nnU-Net": "nnunetv2", "tensorstore": "tensorstore", "zarrs": "zarrs", "MONAI": "monai"}
BASE = "nnU-Net v2 blosc2, opened for each patch"


def write_layouts(store: Store, cases: list[str], folder: Path) -> None:
    """The same voxels in the layout of every peer."""
    import nibabel
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    for case in cases:
        image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
        group = zarr.open_group(folder / "zarr" / case, mode="w")
        for name, array, cname in (("image", image, "lz4"), ("codes", codes, "lz4hc")):
            np.save(folder / f"{case}.{name}.npy", array)
            nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), folder / f"{case}.{name}.nii.gz")
            shuffle = "noshuffle" if array.itemsize == 1 else "bitshuffle"
            codec = BloscCodec(cname=cname, clevel=5 if name == "image" else 1, shuffle=shuffle)
            shard = tuple(-(-n // 32) * 32 for n in array.shape)
            made: Any = group.create_array(
                name, shape=array.shape, dtype=array.dtype, chunks=(32, 32, 32), shards=shard,
                compressors=[codec, Crc32cCodec()], fill_value=-1024 if name == "image" else 0,
            )  # fmt: skip
            made[...] = array
        if importlib.util.find_spec("nnunetv2"):
            write_nnunet(case, image[None], codes[None], store.foreground(case), folder / "nnunet")


def write_nnunet(case: str, image: np.ndarray, codes: np.ndarray, foreground: dict[str, np.ndarray], folder: Path) -> None:
    """nnU-Net's files as its preprocessing writes them, but for the dtypes, for each patch size."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    voxels = enumerate(foreground.values(), 1)
    places = {number: np.insert(found, 0, 0, axis=1) for number, found in voxels}  # channel, z, y, x
    for patch in PATCHES_ZYX:
        out = folder / "_".join(map(str, patch))
        out.mkdir(parents=True, exist_ok=True)
        blocks, chunks = comp_blosc2_params(image.shape, patch, image.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(codes.shape, patch, codes.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image, codes, {"class_locations": places}, str(out / case), chunks=chunks, blocks=blocks,
            chunks_seg=chunks_seg, blocks_seg=blocks_seg,
        )  # fmt: skip


def serve(peer: str, store: Path, folder: Path) -> None:
    """In a process of its own: each line on stdin is (patch, boxes, cold); answers with milliseconds a box and a check.

    Warm boxes are read once before they are timed. No boxes: all handles are closed, since a mapped file stays in memory.
    """
    warnings.simplefilter("ignore")
    readers: dict[tuple, Any] = {}
    files = [path for root in (folder, store / "cases") for path in root.rglob("*") if path.is_file()]
    for line in sys.stdin:
        patch, boxes, cold = json.loads(line)
        patch = tuple(patch)
        if patch not in readers:
            readers[patch] = PEERS[peer](store, folder, patch)
        read, forget = readers[patch]
        boxes = [(case, tuple(slice(c, c + n) for c, n in zip(corner, patch, strict=True))) for case, corner in boxes]
        for case, box in [] if cold else boxes:
            read(case, box)
        seconds, check = [0.0], 0
        for case, box in boxes:
            if cold:
                forget()
                for path in files:
                    fetch.forget(path)
            begun = time.perf_counter()
            image, codes = read(case, box)
            seconds.append(time.perf_counter() - begun)
            if cold:
                check += int(np.asarray(image).sum(dtype=np.int64)) + int(np.asarray(codes).sum(dtype=np.int64))
        if not boxes:
            forget()
        print(json.dumps([sum(seconds) / max(len(boxes), 1) * 1e3, check]), flush=True)


class Process:
    """A peer at work."""

    def __init__(self, peer: str, store: Path, folder: Path) -> None:
        command = [sys.executable, __file__, str(store), "--serve", peer, "--folder", str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(processes: list[Process], patch: tuple, boxes: list, cold: bool = False) -> tuple[float, int]:
    """(milliseconds a box of the slowest, check of the first) of processes that read the same boxes at the same time."""
    for one in processes:
        print(json.dumps([patch, boxes, cold]), file=one.process.stdin, flush=True)
    answers = [json.loads(one.process.stdout.readline()) for one in processes if one.process.stdout]
    return max(answer[0] for answer in answers), answers[0][1]


def boxes_of(store: Store, cases: list[str], patch: tuple, count: int, rng: np.random.Generator) -> list:
    found = []
    for number in range(count):
        case = cases[number % len(cases)]
        room = [max(1, length - size + 1) for length, size in zip(store.shape_zyx(case), patch, strict=True)]
        found.append((case, [int(rng.integers(n)) for n in room]))
    return found


def measure(store: Store, cases: list[str], folder: Path, names: list[str], patches: int, rounds: int) -> dict:
    """(peer, patch, "warm" | "cold" | "two") -> milliseconds a patch, the median of the rounds; "two": of two processes."""
    first, second = ({name: Process(name, store.path, folder) for name in names} for _ in range(2))
    rng, found = np.random.default_rng(0), {}
    for turn in range(rounds + 1):
        for patch in PATCHES_ZYX:
            boxes = boxes_of(store, cases, patch, patches, rng)
            checks = set()
            for name in names:
                some = boxes[: max(2, len(boxes) // SLOW.get(name, 1))]
                both = [first[name], second[name]]
                timed = {"warm": ask(both[:1], patch, some), "two": ask(both, patch, some)}
                ask(both, patch, [])
                timed["cold"] = ask(both[:1], patch, boxes[:COLD], cold=True)
                ask(both, patch, [])
                checks.add(timed["cold"][1])
                for kind, (milliseconds, _) in timed.items() if turn else ():
                    found.setdefault((name, patch, kind), []).append(milliseconds)
            if len(checks) != 1:
                raise SystemExit(f"peers read different voxels: {checks}")
        print(f"round {turn} of {rounds}", file=sys.stderr)
    return {key: median(values) for key, values in found.items()}


def print_table(found: dict, names: list[str]) -> None:
    head = [f"{' x '.join(map(str, patch))} warm / cold, ms" for patch in PATCHES_ZYX]
    print(f"| reader | {' | '.join(head)} | warm, against nnU-Net | cold | two processes |")
    print("|---|" + "---|" * (len(PATCHES_ZYX) + 3))
    for name in names:
        cells = [f"{found[name, patch, 'warm']:.2f} / {found[name, patch, 'cold']:.1f}" for patch in PATCHES_ZYX]
        ratios = ["", ""]
        if BASE in names:
            ratios = [
                f"{geometric_mean(found[BASE, patch, kind] / found[name, patch, kind] for patch in PATCHES_ZYX):.2f}"
                for kind in ("warm", "cold")
            ]
        both = geometric_mean(2 * found[name, patch, "warm"] / found[name, patch, "two"] for patch in PATCHES_ZYX)
        print(f"| {name} | {' | '.join(cells)} | {ratios[0]} | {ratios[1]} | {both:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("store", type=Path)
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--serve", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.store, given.folder)
    store = open_store(given.store)
    cases = store.cases[:CASES]
    missing = {kind for kind, package in PACKAGES.items() if not importlib.util.find_spec(package)}
    names = [name for name in given.peers if not any(name.startswith(kind) for kind in missing)]
    folder = Path(tempfile.mkdtemp(dir=given.store.absolute().parent, prefix="read-"))
    try:
        write_layouts(store, cases, folder)
        os.sync()
        found = measure(store, cases, folder, names, given.patches, given.rounds)
    finally:
        shutil.rmtree(folder)
    device = os.stat(given.store).st_dev
    ahead = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    shape = " x ".join(map(str, store.shape_zyx(cases[0])))
    print(f"`python {' '.join(sys.argv)}`: {len(cases)} cases, the first of {shape} voxels; {os.cpu_count()} cores, load")
    kib = ahead.read_text().strip() if ahead.exists() else "?"
    print(f"{os.getloadavg()[0]:.1f} when it ended; read-ahead of the disk {kib} KiB;")
    print(f"Python {platform.python_version()}. Left out: {', '.join(sorted(missing)) or 'none'}.\n")
    print_table(found, names)


if __name__ == "__main__":
    main()
