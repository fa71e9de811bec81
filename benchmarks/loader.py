"""Loaders beside one another: patches a second, and how long a rank waits for them.

    python benchmarks/loader.py STORE [--ranks 1 2 4] [--seconds 8] [--rounds 3] [--loaders NAME ...]

All read patches of 96 x 96 x 96 voxels, image and codes, two a step and rank, of up to six cases of STORE, with two
reading processes (four for four ranks). Each rank is a process whose training step is a timed sleep. First the step
takes no time: that is the loader's rate. Then it takes so long that all ranks together need 1 / 1.25 of the rate of `local`
in the same round, as measured, and the share of time spent waiting is taken. nnU-Net and MONAI take part where they are
installed, with their augmentation off and on; "on" only for the rate.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}

import numpy as np
from read import CASES, write_layouts

from pants_dist import cluster
from pants_dist.geometry import Geometry
from pants_dist.loader import Loader, Reader, make_source
from pants_dist.plan import Plan
from pants_dist.store import Store, open_store

PATCH_ZYX = (96, 96, 96)
BATCH = 2  # patches of a step, a rank
AHEAD = 8
SPARE = 1.25
OURS = ("local", "ray")
LOADERS = (*OURS, "nnU-Net", "nnU-Net, augmenting", "MONAI", "MONAI, augmenting")


def ours(kind: str, store: Store, rank: int, ranks: int, readers: int) -> Iterator[Any]:
    cases = tuple(store.cases[:CASES])
    present = {case: tuple(name for name, count in store.voxels(case).items() if count) for case in cases}
    plan = Plan(0, BATCH * ranks, cases, present, 0.5)
    source = make_source(kind, Reader(store, Geometry(PATCH_ZYX)), readers, AHEAD)
    return iter(Loader(plan, source, rank, ranks, 0, 1 << 30, BATCH))


def nnunet(folder: Path, rank: int, readers: int, augment: bool) -> Iterator[Any]:
    """nnU-Net v2's own data loader under the multi-process augmenter that its trainer uses."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    transforms, asked = None, PATCH_ZYX
    if augment:
        asked = (136, 136, 136)  # what its trainer reads so that a turned patch of 96 is filled
        angle = (-30 / 360 * 2 * np.pi, 30 / 360 * 2 * np.pi)
        transforms = nnUNetTrainer.get_training_transforms(PATCH_ZYX, angle, None, (0, 1, 2), False)
    dataset = nnUNetDatasetBlosc2(str(folder / "nnunet" / "_".join(map(str, PATCH_ZYX))))
    labels = SimpleNamespace(all_labels=[1], has_ignore_label=False)
    loader = nnUNetDataLoader(dataset, BATCH, asked, PATCH_ZYX, labels, 0.5, transforms=transforms)
    return iter(NonDetMultiThreadedAugmenter(loader, None, readers, AHEAD, seeds=[rank * 100 + n for n in range(readers)]))


def monai(folder: Path, rank: int, readers: int, augment: bool) -> Iterator[Any]:
    """MONAI's PersistentDataset of whole cases, a random crop around foreground, and its data loader."""
    import monai.transforms as T
    from monai.data import DataLoader, PersistentDataset

    keys = ["image", "codes"]

    def load(case: str) -> dict[str, np.ndarray]:
        return {name: np.load(folder / f"{case}.{name}.npy")[None] for name in keys}

    steps: list[Any] = [load, T.RandCropByPosNegLabeld(keys, "codes", PATCH_ZYX, num_samples=1)]
    if augment:
        steps += [
            T.RandAffined(keys, prob=0.3, rotate_range=0.5, scale_range=0.3, mode=["bilinear", "nearest"]),
            T.RandFlipd(keys, 0.5), T.RandGaussianNoised("image", 0.1), T.RandGaussianSmoothd("image", prob=0.1),
            T.RandScaleIntensityd("image", 0.25, prob=0.15), T.RandAdjustContrastd("image", prob=0.3),
        ]  # fmt: skip
    names = sorted({path.name.partition(".")[0] for path in folder.glob("*.image.npy")}) * 200
    dataset = PersistentDataset(names, T.Compose(steps), cache_dir=folder / "monai")
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=readers, prefetch_factor=AHEAD // readers)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def consume(name: str, store: Path, folder: Path, rank: int, ranks: int, readers: int) -> None:
    """In a process of its own, one rank: each line is (seconds, step); answers with steps done and the share waited."""
    warnings.simplefilter("ignore")
    kind, _, augment = name.partition(", ")
    if kind in OURS:
        items = ours(kind, open_store(store), rank, ranks, readers)
    else:
        items = (nnunet if kind == "nnU-Net" else monai)(folder, rank, readers, bool(augment))
    for _ in range(2 * AHEAD):
        next(items)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, step = json.loads(line)
        begun, waited, steps = time.perf_counter(), 0.0, 0
        while (elapsed := time.perf_counter() - begun) < seconds:
            asked = time.perf_counter()
            next(items)
            waited += time.perf_counter() - asked
            time.sleep(step)
            steps += 1
        print(json.dumps([steps / elapsed, waited / elapsed]), flush=True)
    os._exit(0)  # the peers' worker processes need not be asked


def rate(name: str, given: argparse.Namespace, folder: Path, ranks: int, loads: list[float]) -> list[tuple[float, float]]:
    """(patches a second of all ranks together, share of time waited) for each step time."""
    readers = max(1, 2 // ranks)
    started = cluster.started(readers * ranks, 1 << 30) if name == "ray" else contextlib.nullcontext({})
    with started as environment:
        command = [sys.executable, __file__, str(given.store), "--folder", str(folder), "--readers", str(readers)]
        processes = [
            subprocess.Popen(
                [*command, "--consume", name, "--rank", str(rank), "--ranks", str(ranks)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=os.environ | environment, start_new_session=True,
            )  # fmt: skip
            for rank in range(ranks)
        ]
        for process in processes:
            assert process.stdout and process.stdout.readline().strip() == "ready", f"{name}: a rank ended"
        found = []
        for step in loads:
            for process in processes:
                print(json.dumps([given.seconds, step]), file=process.stdin, flush=True)
            answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
            found.append((BATCH * sum(steps for steps, _ in answers), median(waited for _, waited in answers)))
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that read for it
            process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("store", type=Path)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaders", nargs="*", choices=LOADERS, default=list(LOADERS))
    for hidden in ("--consume", "--folder", "--rank", "--readers"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.consume:
        return consume(
            given.consume, given.store, Path(given.folder), int(given.rank), given.ranks[0], int(given.readers)
        )
    packages = {"nnU-Net": "nnunetv2", "MONAI": "monai"}
    missing = [name for name, package in packages.items() if not importlib.util.find_spec(package)]
    names = [name for name in given.loaders if name.partition(",")[0] not in missing]
    store = open_store(given.store)
    folder = Path(tempfile.mkdtemp(dir=given.store.absolute().parent, prefix="loader-"))
    rates: dict[tuple[str, int], list[float]] = {}
    waits: dict[tuple[str, int], list[float]] = {}
    try:
        write_layouts(store, store.cases[:CASES], folder)
        for _, ranks in itertools.product(range(given.rounds), given.ranks):
            need = 0.0
            for name in names:
                loads = [0.0] if "augmenting" in name else [0.0, *([BATCH * ranks * SPARE / need] if need else [])]
                found = rate(name, given, folder, ranks, loads)
                if name == "local":
                    need = found[0][0]
                    found += rate(name, given, folder, ranks, [BATCH * ranks * SPARE / need])
                rates.setdefault((name, ranks), []).append(found[0][0])
                if len(found) > 1:
                    waits.setdefault((name, ranks), []).append(found[1][1])
            print("one round done", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"`python {' '.join(sys.argv)}`: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when it ended.\n")
    print("| loader | " + " | ".join(f"{n} ranks: patches/s | against local | waited" for n in given.ranks) + " |")
    print("|---|" + "---|---|---|" * len(given.ranks))
    for name in names:
        cells = []
        for ranks in given.ranks:
            here = median(rates[name, ranks])
            wait = f"{median(waits[name, ranks]):.1%}" if (name, ranks) in waits else ""
            base = median(rates["local", ranks]) if ("local", ranks) in rates else None
            cells.append(f"{here:.0f} | {here / base:.2f} | {wait}" if base else f"{here:.0f} | | {wait}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
