"""Reads ahead in plan order. The whole state is one integer, the step.

An item is one optimizer step of one rank: a list of micro-batches. A micro-batch is one flat buffer with the places and
shapes of its windows, because cases differ in dtype and windows in size. `ray` reads with Ray actors anywhere in the
cluster, `local` with a torch DataLoader's processes; both give the same bytes.
"""

import math
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from statistics import median
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pants_dist import cluster
from pants_dist.clocks import Spent, spent
from pants_dist.decode import block_means
from pants_dist.errors import DamagedError
from pants_dist.geometry import Geometry, Window, window_of
from pants_dist.heartbeat import doing
from pants_dist.plan import Plan, Sample
from pants_dist.store import Store

Item = TypeVar("Item")
ATTEMPTS = 10  # at a sample, where damaged cases are passed over
ALIGNMENT = 64  # windows start at multiples of it in the buffer
LATE = 5  # times the median that a read may take before it is asked of another reader
LEAST_PATIENCE_S, MOST_PATIENCE_S = 1.0, 60.0


@dataclass(frozen=True)
class Part:
    """One sample's window inside a micro-batch's buffer: where its arrays begin, in bytes, and their dtypes."""

    sample: Sample
    window: Window
    image_dtype: str
    image_offset: int
    codes_dtype: str
    codes_offset: int


@dataclass(frozen=True)
class MicroBatch:
    """Windows of some samples: `image(n)` is HU and `codes(n)` palette codes, both (z, y, x), views of one buffer."""

    buffer: Any  # one-dimensional uint8; torch's only while it crosses from a local process, else numpy's
    parts: tuple[Part, ...]
    skipped: tuple[str, ...] = ()  # why cases were passed over, a line each
    spent: Spent = Spent()  # on reading it

    def image(self, number: int) -> np.ndarray:
        part = self.parts[number]
        return self._view(part.image_offset, part.image_dtype, part.window.shape_zyx)

    def codes(self, number: int) -> np.ndarray:
        part = self.parts[number]
        return self._view(part.codes_offset, part.codes_dtype, part.window.shape_zyx)

    def _view(self, offset: int, dtype: str, shape_zyx: tuple[int, int, int]) -> np.ndarray:
        return np.frombuffer(self.buffer, dtype, math.prod(shape_zyx), offset).reshape(shape_zyx)


class Reader:
    """Turns samples into voxels. One a reading process; each is of one geometry.

    A damaged case raises DamagedError; with a `plan`, its sample is replaced by the plan's next attempt at it.
    """

    def __init__(self, store: Store, geometry: Geometry, plan: Plan | None = None) -> None:
        self.store, self.geometry, self.plan = store, geometry, plan

    def read(self, samples: list[Sample]) -> MicroBatch:
        """The windows of these samples, in one buffer. Raises DamagedError, naming the case, where bytes are wrong."""
        begun, samples = spent(), list(samples)
        skipped: list[str] = []
        tried: Counter[int] = Counter()
        while True:
            batch, problem = self._read(samples)
            if problem is None:
                return replace(batch, skipped=tuple(skipped), spent=spent().since(begun))
            number, error = problem
            tried[number] += 1
            if self.plan is None or tried[number] == ATTEMPTS:
                raise error
            skipped.append(str(error))
            samples[number] = self.plan.sample(samples[number].index, tried[number])

    def _read(self, samples: list[Sample]) -> tuple[MicroBatch, tuple[int, DamagedError] | None]:
        """(the batch, None), or what was read of it and which sample could not be, and why."""
        parts: list[Part] = []
        batch, done = MicroBatch(np.empty(0, np.uint8), ()), 0
        try:
            for sample in samples:
                parts.append(self._part(sample, _end(parts)))
            batch = MicroBatch(np.empty(_end(parts), np.uint8), tuple(parts))
            for done in range(len(parts)):
                self._fill(batch, done)
        except DamagedError as error:
            return batch, (done if len(parts) == len(samples) else len(parts), error)
        return batch, None

    def _part(self, sample: Sample, offset: int) -> Part:
        file = self.store.open_case(sample.case)
        layout, voxel = file.layout, file.voxel_zyx(sample.structure, sample.draw) if sample.structure else None
        spacing = self.store.spacing_mm_zyx(sample.case)
        window = window_of(sample, self.geometry, layout.shape_zyx, spacing, voxel)
        image_bytes = math.prod(window.shape_zyx) * np.dtype(layout.image_dtype).itemsize
        return Part(sample, window, layout.image_dtype, offset, layout.codes_dtype, _aligned(offset + image_bytes))

    def _fill(self, batch: MicroBatch, number: int) -> None:
        part, image, codes = batch.parts[number], batch.image(number), batch.codes(number)
        window = part.window
        if window.block_zyx == (1, 1, 1):
            return self.store.read_into(part.sample.case, window.corner_zyx, image, codes)
        size = [n * block for n, block in zip(window.shape_zyx, window.block_zyx, strict=True)]
        own_image, own_codes = np.empty(size, image.dtype), np.empty(size, codes.dtype)
        self.store.read_into(part.sample.case, window.corner_zyx, own_image, own_codes)
        block_means(own_image, image)
        codes[...] = own_codes[tuple(slice(block // 2, None, block) for block in window.block_zyx)]


def _end(parts: list[Part]) -> int:
    """Where the next part may begin."""
    if not parts:
        return 0
    last = parts[-1]
    return _aligned(last.codes_offset + math.prod(last.window.shape_zyx) * np.dtype(last.codes_dtype).itemsize)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


class Source(Protocol):
    """Where micro-batches come from: asked for in order, given in order. `asked_again`: how many came late, so far."""

    readers: Any
    asked_again: int

    def stream(self, requests: Iterator[list[Sample]]) -> Iterator[MicroBatch]: ...


class RaySource:
    """Reader actors and a bounded window of futures, given in plan order.

    Ray restarts a reader that dies and asks it again. A read that keeps the stream waiting for far longer than reads
    have taken is asked of another reader as well: whichever answers first, the voxels are the same.
    """

    def __init__(self, reader: Reader, readers: int, ahead: int) -> None:
        import ray

        cluster.joined()
        actor = ray.remote(num_cpus=0, resources={cluster.READER_SLOT: 1}, max_restarts=-1, max_task_retries=-1)(Reader)
        self.readers: list[Any] = [actor.remote(reader.store, reader.geometry, reader.plan) for _ in range(readers)]
        self.ahead, self.asked_again = ahead, 0
        self._busy: list[set[Any]] = [set() for _ in range(readers)]  # futures that each reader still owes
        self._seconds: deque[float] = deque(maxlen=64)  # that the last reads took

    def stream(self, requests: Iterator[list[Sample]]) -> Iterator[MicroBatch]:
        window: deque[tuple[list[Sample], list[Any]]] = deque()
        for samples in requests:
            window.append((samples, [self._ask(samples)]))
            if len(window) > self.ahead:
                yield self._first_answer(*window.popleft())
        while window:
            yield self._first_answer(*window.popleft())

    def _ask(self, samples: list[Sample], but: Sequence[int] = ()) -> Any:
        """A future from the reader that owes least, none of those in `but`."""
        number = min((n for n in range(len(self.readers)) if n not in but), key=lambda n: len(self._busy[n]))
        future = self.readers[number].read.remote(samples)
        self._busy[number].add(future)
        return future

    def _first_answer(self, samples: list[Sample], futures: list[Any]) -> MicroBatch:
        import ray

        while True:
            owed = list(set().union(*self._busy, futures))
            done, _ = ray.wait(futures, timeout=self._patience_s())
            finished, _ = ray.wait(owed, num_returns=len(owed), timeout=0)
            for busy in self._busy:
                busy.difference_update(finished)
            if done:
                batch = ray.get(done[0])
                self._seconds.append(batch.spent.seconds)
                return batch
            asked = [n for n, busy in enumerate(self._busy) if busy & set(futures)]
            if len(asked) < len(self.readers):
                futures = [*futures, self._ask(samples, but=asked)]
                self.asked_again += 1

    def _patience_s(self) -> float:
        """How long a reader may keep the stream waiting: for all that it may have before it, many times over."""
        queue = -(-self.ahead // len(self.readers)) + 1
        usual = median(self._seconds) if self._seconds else math.inf
        return min(max(LATE * usual * queue, LEAST_PATIENCE_S), MOST_PATIENCE_S)


class LocalSource:
    """The same readers as processes of this rank, through a torch DataLoader."""

    def __init__(self, reader: Reader, readers: int, ahead: int) -> None:
        self.reader, self.readers, self.ahead, self.asked_again = reader, range(readers), ahead, 0
        # imported once, not once a reader; started here, since it ends with the thread that starts it
        forkserver.set_forkserver_preload(["pants_dist.mortal", "torch.utils.data", "pants_dist.loader"])
        forkserver.ensure_running()

    def stream(self, requests: Iterator[list[Sample]]) -> Iterator[MicroBatch]:
        from torch.utils.data import DataLoader

        share = max(1, -(-self.ahead // len(self.readers)))
        batches: Any = DataLoader(
            _Requests(self.reader),  # type: ignore[arg-type]  # indexed by the sampler's items, whatever they are
            sampler=requests,
            batch_size=None,
            num_workers=len(self.readers),
            prefetch_factor=share,
            multiprocessing_context="forkserver",
        )
        for batch in batches:
            yield replace(batch, buffer=batch.buffer.numpy())


class _Requests:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, samples: list[Sample]) -> MicroBatch:
        import torch

        batch = self.reader.read(samples)
        return replace(batch, buffer=torch.from_numpy(batch.buffer))


class Read(NamedTuple):
    """What one micro-batch was: patches, bytes of voxels, and the time of its reader."""

    patches: int
    bytes: int
    spent: Spent


class Loader:
    """Steps `start` to `stop` of a rank, in plan order: each item is the list of that step's micro-batches.

    `waited_s` is the time that the consumer spent waiting for items so far, `skipped` how many damaged cases were passed
    over for others, each of which is named in a warning, `reads` what reading each micro-batch took and gave.
    """

    def __init__(
        self, plan: Plan, source: Source, rank: int, ranks: int, start: int, stop: int, micro_batch: int
    ) -> None:
        self.plan, self.source, self.rank, self.ranks = plan, source, rank, ranks
        self.start, self.stop, self.micro_batch = start, stop, micro_batch
        self.waited_s, self.skipped = 0.0, 0
        self.reads: list[Read] = []  # whoever looks at them empties it

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        items = one_ahead(self._items())
        for step in range(self.start, self.stop):
            # the trainer asks for an item ahead: what waits is the step before
            doing("reading" if step > self.start else "starting", max(step - 1, self.start))
            begun = time.perf_counter()
            item = next(items)
            self.waited_s += time.perf_counter() - begun
            doing("forward")
            self.reads += [Read(len(micro.parts), micro.buffer.nbytes, micro.spent) for micro in item]
            for problem in (line for micro in item for line in micro.skipped):
                self.skipped += 1
                warnings.warn(f"data.on_damage: skip: {problem}", stacklevel=2)
            yield item
            del item  # one_ahead gives its memory back

    def _items(self) -> Iterator[list[MicroBatch]]:
        requests = (request for step in range(self.start, self.stop) for request in self._requests(step))
        stream = self.source.stream(requests)
        for _ in range(self.start, self.stop):
            yield [next(stream) for _ in range(self._a_step())]

    def _a_step(self) -> int:
        return -(-(self.plan.batch // self.ranks) // self.micro_batch)

    def _requests(self, step: int) -> list[list[Sample]]:
        samples = self.plan.step_samples(step, self.rank, self.ranks)
        return [samples[at : at + self.micro_batch] for at in range(0, len(samples), self.micro_batch)]


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each fetched by a thread while the one before it is used.

    The thread also lets go of those that were used: to unmap shared memory takes longer than all else that is done here.
    """
    used: list[Item] = []

    def fetched() -> Item | None:
        used.clear()
        return next(items, None)

    pool = ThreadPoolExecutor(1, "loader")
    try:
        following = pool.submit(fetched)
        while (item := following.result()) is not None:
            following = pool.submit(fetched)
            yield item
            used.append(item)
            del item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def make_source(kind: str, reader: Reader, readers: int, ahead: int) -> RaySource | LocalSource:
    """`kind` "ray" or "local"; `readers` processes for this rank, `ahead` micro-batches on their way at most."""
    return RaySource(reader, readers, ahead) if kind == "ray" else LocalSource(reader, readers, ahead)
