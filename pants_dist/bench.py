"""What this machine's disk, cores and device give, with a verdict: `pants-dist bench read|loader STORE`."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pants_dist.config import Settings
from pants_dist.fetch import forget
from pants_dist.store import Store, open_store

CASES = 64  # that patches are read from, at most
SECONDS = 4.0  # that each figure is measured for, at most
SPARE = 1.2  # readers are to be so many times as fast as the device
CLEARLY = 1.15  # a way to read is called better where it is so many times as fast
Box = tuple[str, tuple[int, int, int]]  # case, and corner z, y, x


def read_lines(folder: Path, patch_zyx: tuple[int, int, int]) -> Iterator[str]:
    """Lines on how fast patches come from the store, by each way to read, and which one to take."""
    store = open_store(folder)
    boxes = _boxes(store, patch_zyx)
    yield f"{folder}: patches of {_size(patch_zyx)} voxels, image and codes, one process"
    yield "data.io   cold, ms   warm, ms   patches/s warm"
    cold, warm = dict[str, float](), dict[str, float]()
    for way in ("pread", "mmap"):
        cold[way], warm[way] = _cold_and_warm(open_store(folder, way), list(itertools.islice(boxes, 200)), patch_zyx)
        yield f"{way:<8} {cold[way] * 1e3:>9.1f} {warm[way] * 1e3:>10.1f} {1 / warm[way]:>16.0f}"
    best = min(cold, key=lambda way: cold[way])
    gain = max(cold.values()) / cold[best]
    if best == "pread" or gain < CLEARLY:
        yield "verdict: leave data.io at pread"
    else:
        yield f"verdict: set data.io to mmap, if this is a disk of the machine's own: cold reads are {gain:.1f} times as fast"
    if cold[best] > 3 * warm[best]:
        yield "         cold reads cost over 3 times warm ones: a copy on the node's own disk (data.stage) would help"


def loader_lines(settings: Settings) -> Iterator[str]:
    """Lines on what reading gives, what training takes, and how many readers a rank of this machine needs."""
    import torch

    from pants_dist.launch import reading
    from pants_dist.loader import Loader, Reader, make_source
    from pants_dist.plan import plan_of
    from pants_dist.splits import splits_of
    from pants_dist.train import geometry_of, store_of

    store = store_of(settings.data)
    plan = plan_of(store, settings, splits_of(store, settings.data))
    reader = Reader(store, geometry_of(settings))
    samples = map(plan.sample, itertools.count())
    reader.read([next(samples)])
    a_read = _seconds(lambda sample: reader.read([sample]), samples)
    yield f"reading: {1 / a_read:.1f} patches/s of {_size(settings.data.patch_zyx)} voxels a core, in the order of the plan"
    micro = reader.read([next(samples) for _ in range(settings.train.micro_batch)])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"
    a_step = _step_seconds(store, plan.cases, settings, micro, device)
    need = len(micro.parts) / a_step
    yield f"training: {need:.1f} patches/s on {name}, {settings.model.name}, {len(micro.parts)} at once"
    yield f"verdict: loader.readers {math.ceil(SPARE * need * a_read)} keeps a rank of this machine fed, with a fifth to spare"
    with reading(settings) as environment:
        os.environ.update(environment)
        source = make_source(settings.loader.kind, reader, settings.loader.readers, settings.loader.ahead)
        loader = iter(Loader(plan, source, 0, settings.train.ranks, 0, 1 << 30, settings.train.micro_batch))
        for _ in range(2 * settings.loader.ahead):
            next(loader)
        a_sample = _seconds(lambda item: None, loader) * settings.train.ranks / settings.train.batch
    yield (
        f"loader: {1 / a_sample:.1f} patches/s by {settings.loader.readers} readers ({settings.loader.kind}), "
        f"{_verdict(1 / a_sample / need)}"
    )


def _verdict(share: float) -> str:
    return "enough for a rank" if share >= 1 else f"{share:.0%} of what a rank takes: it would wait for the rest"


def _step_seconds(store: Store, cases: tuple[str, ...], settings: Settings, micro: Any, device: Any) -> float:
    """Seconds of a training step on the same patches over and over."""
    import torch

    from pants_dist.model import Segmenter
    from pants_dist.train import intensity_of

    module = Segmenter(settings, intensity_of(store, cases), store).to(device)
    optimizer: Any = module.configure_optimizers()

    def step(_: Any) -> None:
        optimizer.zero_grad()
        module.loss(micro).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step(None)
    return _seconds(step, itertools.repeat(None))


def _seconds(what: Callable[[Any], Any], items: Any) -> float:
    """Mean seconds that `what` takes for an item, over all of them or SECONDS."""
    begun, count = time.perf_counter(), 0
    for item in items:
        what(item)
        count += 1
        if time.perf_counter() - begun > SECONDS:
            break
    return (time.perf_counter() - begun) / count


def _cold_and_warm(store: Store, boxes: list[Box], patch_zyx: tuple[int, int, int]) -> tuple[float, float]:
    """Seconds a patch, by the store's way to read: cold, then out of the page cache."""

    def read(box: Box) -> None:
        store.read_patch(*box, patch_zyx)

    open_store(store.path, store.io).read_patch(*boxes[0], patch_zyx)  # what is compiled once is compiled now
    for case in {case for case, _ in boxes}:
        forget(store.case_path(case))
    cold = _seconds(read, boxes)
    return cold, min(_seconds(read, boxes[:40]) for _ in range(3))


def _boxes(store: Store, patch_zyx: tuple[int, int, int]) -> Iterator[Box]:
    """Random boxes of cases all over the store: (case, corner)."""
    rng = np.random.default_rng(0)
    cases = [store.cases[n] for n in rng.permutation(len(store))[:CASES]]
    for case in itertools.cycle(cases):
        room = [max(length - size, 0) + 1 for length, size in zip(store.shape_zyx(case), patch_zyx, strict=True)]
        z, y, x = (int(rng.integers(n)) for n in room)
        yield case, (z, y, x)


def _size(size_zyx: tuple[int, int, int]) -> str:
    return " x ".join(str(n) for n in size_zyx)
