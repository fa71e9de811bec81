import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import make_store

from pants_dist import cluster
from pants_dist.errors import DamagedError, UserError
from pants_dist.geometry import Geometry
from pants_dist.loader import Loader, MicroBatch, RaySource, Reader, make_source
from pants_dist.plan import Plan
from pants_dist.store import Store, open_store

PATCH = Geometry((16, 24, 20))
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("loader") / "s"))


def plan_for(store: Store, batch: int = 4) -> Plan:
    present = {case: tuple(store.foreground(case)) for case in store.cases}
    return Plan(0, batch, tuple(store.cases), present, 0.7)


def loader(store: Store, kind: str, start: int = 0, stop: int = 6, rank: int = 0, ranks: int = 1) -> Loader:
    return Loader(
        plan_for(store), make_source(kind, Reader(store, PATCH), 2, 4), rank, ranks, start, stop, micro_batch=2
    )


def digests(items) -> list[str]:
    """One hash a step, over which samples it has and every voxel."""
    return [hashlib.sha256(b"".join(described(micro) for micro in item)).hexdigest() for item in items]


def described(micro: MicroBatch) -> bytes:
    voxels = b"".join(micro.image(n).tobytes() + micro.codes(n).tobytes() for n in range(len(micro.parts)))
    return repr(micro.parts).encode() + voxels


@pytest.fixture(scope="module")
def expected(store: Store) -> list[str]:
    """The same steps read here, one after the other, with no loader at all."""
    reader, plan = Reader(store, PATCH), plan_for(store)
    steps = [plan.step_samples(step, 0, 1) for step in range(6)]
    return digests([[reader.read(samples[:2]), reader.read(samples[2:])] for samples in steps])


def test_local_gives_the_plan_in_order(store: Store, expected: list[str]) -> None:
    """Steps from processes are those read here, voxel for voxel, and a resume at step 4 goes on with step 4."""
    assert digests(loader(store, "local")) == expected
    assert digests(loader(store, "local", start=4)) == expected[4:]


@pytest.fixture(scope="module")
def ray_cluster():
    with cluster.started(readers=4, object_store_bytes=128 << 20):
        yield
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ  # its folder is gone, and what is started later would look there


def test_ray_gives_the_same_bytes_as_local(store: Store, expected: list[str], ray_cluster) -> None:
    """Ray's readers and local ones give equal steps."""
    assert digests(loader(store, "ray")) == expected


@contextlib.contextmanager
def disturbed(store: Store, number: int, what: signal.Signals) -> Iterator[tuple[RaySource, Iterator]]:
    """A loader's source and steps, one of its readers sent a signal behind the first step, and killed at the end."""
    import ray

    running = loader(store, "ray")
    assert isinstance(running.source, RaySource)
    pids = [ray.get(reader.__ray_call__.remote(lambda _: os.getpid())) for reader in running.source.readers]
    items = iter(running)
    got = next(items)
    os.kill(pids[number], what)
    try:
        yield running.source, itertools.chain([got], items)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[number], signal.SIGKILL)


def test_a_killed_reader_changes_nothing(store: Store, expected: list[str], ray_cluster) -> None:
    """A reader killed in the middle of the stream is replaced, and every step is as before."""
    with disturbed(store, 1, signal.SIGKILL) as (_, items):
        assert digests(items) == expected


def test_a_reader_that_hangs_is_passed_by(store: Store, expected: list[str], ray_cluster) -> None:
    """With one reader stopped for good (SIGSTOP) the other is asked again, and every step is as before."""
    with disturbed(store, 0, signal.SIGSTOP) as (source, items):
        assert digests(items) == expected
        assert source.asked_again >= 1


@pytest.fixture(scope="module")
def damaged(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same store with a wrong byte in one case's image."""
    folder = tmp_path_factory.mktemp("damaged") / "s"
    shutil.copytree(store.path, folder)
    place = store.layout(store.cases[2]).image
    with open(folder / "cases" / f"{store.cases[2]}.ozx", "r+b") as file:
        file.seek(place.offset + 50)
        byte = file.read(1)[0]
        file.seek(place.offset + 50)
        file.write(bytes([byte ^ 4]))
    return open_store(folder)


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_damaged_case_is_an_error(damaged: Store, ray_cluster, kind: str) -> None:
    """The error of whatever process read it names case, array and chunk."""
    with pytest.raises(Exception, match=f"case {damaged.cases[2]}, array image, chunk"):
        list(loader(damaged, kind))


def test_a_damaged_case_is_passed_over(damaged: Store, ray_cluster) -> None:
    """If wished, other samples take its place: the same for any source and number of ranks, counted and said."""
    plan, case = plan_for(damaged), damaged.cases[2]
    reader, planned = Reader(damaged, PATCH, plan), [plan.sample(index) for index in range(24)]
    alone = [part.sample for step in range(6) for part in reader.read(plan.step_samples(step, 0, 1)).parts]
    assert [sample.index for sample in alone] == list(range(24))
    assert all(got == sample or sample.case == case != got.case for got, sample in zip(alone, planned, strict=True))
    shared = [p.sample for step in range(6) for rank in (0, 1) for p in reader.read(plan.step_samples(step, rank, 2)).parts]
    assert sorted(shared, key=lambda sample: sample.index) == alone
    running = Loader(plan, make_source("ray", reader, 1, 4), 0, 1, 0, 6, micro_batch=2)
    with pytest.warns(UserWarning, match=f"data.on_damage: skip: case {case}, array image"):
        assert [part.sample for item in running for micro in item for part in micro.parts] == alone
    assert running.skipped >= sum(sample.case == case for sample in planned) > 0


def test_where_every_case_is_damaged_the_run_ends(store: Store, tmp_path: Path) -> None:
    """Passing over damaged cases has an end."""
    shutil.copytree(store.path, tmp_path / "s")
    for path in (tmp_path / "s" / "cases").iterdir():
        path.unlink()
    with pytest.raises(DamagedError, match="cannot be opened"):
        Reader(open_store(tmp_path / "s"), PATCH, plan_for(store)).read([plan_for(store).sample(0)])


def test_windows_of_a_coarser_patch_are_means_and_middles(store: Store) -> None:
    """Read in blocks, a window's image is the blocks' mean and its codes their middle voxels, of what the store holds."""
    reader = Reader(store, Geometry((6, 6, 6), (4.0, 2.0, 3.0)))  # the cases' own spacing is 2, 1, 1 mm
    for index in range(12):
        batch = reader.read([plan_for(store).sample(index)])
        window, case = batch.parts[0].window, batch.parts[0].sample.case
        assert window.block_zyx == (2, 2, 3)
        size = tuple(n * m for n, m in zip(window.shape_zyx, window.block_zyx, strict=True))
        image, codes = store.read_patch(case, window.corner_zyx, size)
        blocks = image.reshape(window.shape_zyx[0], 2, window.shape_zyx[1], 2, window.shape_zyx[2], 3)
        assert np.array_equal(batch.image(0), np.rint(blocks.mean((1, 3, 5))))
        assert np.array_equal(batch.codes(0), codes[1::2, 1::2, 1::3])


def test_voxels_from_ray_are_not_copied(store: Store, ray_cluster) -> None:
    """A micro-batch's arrays are read-only views of one buffer, which is Ray's shared memory."""
    micro = next(iter(loader(store, "ray", stop=1)))[0]
    assert not micro.buffer.flags.owndata and not micro.image(0).flags.writeable
    assert np.shares_memory(micro.image(0), micro.buffer) and np.shares_memory(micro.codes(1), micro.buffer)


def test_ranks_divide_a_step(store: Store) -> None:
    """Two ranks together read the samples that one would, each its own half."""
    alone = [part.sample for item in loader(store, "local", stop=2) for micro in item for part in micro.parts]
    halves = [loader(store, "local", stop=2, rank=rank, ranks=2) for rank in (0, 1)]
    shared = [part.sample for half in halves for item in half for micro in item for part in micro.parts]
    assert sorted(shared, key=lambda s: s.index) == alone and len(shared) == len(alone)


STEPS = """
import hashlib, sys
from pants_dist.geometry import Geometry
from pants_dist.loader import Loader, Reader, make_source
from pants_dist.plan import Plan
from pants_dist.store import open_store

if __name__ == "__main__":
    store, start, ranks = open_store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    plan = Plan(0, 8, tuple(store.cases), {case: tuple(store.foreground(case)) for case in store.cases}, 0.7)
    reader = Reader(store, Geometry((16, 24, 20)))
    items = [iter(Loader(plan, make_source("local", reader, 1, 4), rank, ranks, start, 100, 2)) for rank in range(ranks)]
    for item in zip(*items):
        parts = sorted((part for micros in item for micro in micros for part in micro.parts), key=lambda p: p.sample.index)
        told = repr([(part.sample.case, part.window.corner_zyx, part.sample.augment_seed) for part in parts])
        print(hashlib.sha256(told.encode()).hexdigest(), flush=True)
"""


@pytest.mark.timeout(180)
def test_a_hundred_steps_are_fifty_a_kill_and_fifty_more(store: Store, tmp_path: Path) -> None:
    """Killed at step 50 on one rank and gone on with on two: by hash of case, corner and seed the same hundred steps."""
    (tmp_path / "steps.py").write_text(STEPS)
    command = [sys.executable, str(tmp_path / "steps.py"), str(store.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([*command, "0", "1"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        before = [process.stdout.readline().strip() for _ in range(50)]
        process.kill()
    after = subprocess.run([*command, "50", "2"], stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout.split()
    plan, reader = Plan(0, 8, tuple(store.cases), plan_for(store).present, 0.7), Reader(store, PATCH)
    told = [
        [(p.sample.case, p.window.corner_zyx, p.sample.augment_seed) for p in reader.read(plan.step_samples(step, 0, 1)).parts]
        for step in range(100)
    ]
    assert before + after == [hashlib.sha256(repr(parts).encode()).hexdigest() for parts in told]


def test_too_little_shared_memory_is_refused(tmp_path: Path) -> None:
    """An object store that /dev/shm cannot hold is refused before Ray starts, with both numbers."""
    with pytest.raises(UserError, match=r"/dev/shm: \d+ MiB free, the loader needs"), cluster.started(1, 1 << 50):
        pass


def object_store() -> tuple[int, int]:
    """(bytes in Ray's object store, files that it ever spilled to disk)."""
    import ray

    name = "object_store_memory"
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    return int(ray.cluster_resources()[name] - ray.available_resources()[name]), len(list(session.glob("*spilled*/*")))


LARGE = Geometry((96, 96, 96))


def test_a_memory_limit_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest limit of the process's control group and those above it counts; both numbers are said."""
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("700000000\n")
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    assert cluster.memory_limit(tmp_path, own) == 700_000_000
    assert cluster.memory_limit(tmp_path / "absent", own) is None
    own.write_text("4:cpu:/x\n3:memory:/a/b\n")
    (tmp_path / "memory" / "a").mkdir(parents=True)
    (tmp_path / "memory" / "a" / "memory.limit_in_bytes").write_text("5\n")
    assert cluster.memory_limit(tmp_path, own) == 5
    monkeypatch.setattr(cluster, "memory_limit", lambda: 700_000_000)
    both = "memory: .* 667 MiB, Ray and 2 readers need 1028.*--mem"
    with pytest.raises(UserError, match=both), cluster.started(2, 128 << 20):
        pass


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("large") / "s", cases=4, edge=110))


def watched(store: Store, ahead: int, bound: int, seconds: float) -> Iterator[tuple[RaySource, int]]:
    """Streams patches of 96^3 for so long; yields after each step, with the bytes now and then found in the object store."""
    plan = plan_for(store, batch=2)
    (before, _), looked, used = object_store(), 0.0, 0  # of earlier loaders of this Ray
    source = RaySource(Reader(store, LARGE), 2, ahead)
    begun = time.monotonic()
    for _ in Loader(plan, source, 0, 1, 0, 1 << 30, micro_batch=2):
        if time.monotonic() - looked > 0.5:
            (now, spilled), looked = object_store(), time.monotonic()
            used = now - before
            assert used <= bound and spilled == 0
        yield source, used
        if time.monotonic() - begun > seconds:
            return


def test_memory_is_bounded_and_a_pause_is_used(large_store: Store, ray_cluster) -> None:
    """What is on its way fits the size that the loader was given; while validation runs, all that was asked for is read."""
    import ray

    a_step, ahead = 2 * 3 * 96**3, 4
    for number, (source, _) in enumerate(watched(large_store, ahead, (ahead + 4) * a_step + (1 << 20), 60)):
        if number % 5 == 4:
            time.sleep(1)  # a validation, during which nothing is taken; then the loader's own thread rests, too
            owed = list(set().union(*source._busy))
            assert not owed or not ray.wait(owed, num_returns=len(owed), timeout=30)[1]
        if number == 15:
            break


@pytest.mark.long
@pytest.mark.timeout(0)
def test_memory_stays_bounded_for_long(large_store: Store, ray_cluster) -> None:
    """Ten minutes, or PANTS_DIST_SOAK_MINUTES of them, at full speed: never more in the object store, nothing spilled."""
    minutes = float(os.environ.get("PANTS_DIST_SOAK_MINUTES", "10"))
    a_step, ahead, steps, most = 2 * 3 * 96**3, 4, 0, 0
    for _, used in watched(large_store, ahead, (ahead + 4) * a_step + (1 << 20), 60 * minutes):
        steps, most = steps + 1, max(most, used)
        time.sleep(float(os.environ.get("PANTS_DIST_SOAK_STEP_S", "0")))
    print(f"{minutes:g} minutes, {steps:,} steps of 2 patches of 96^3, at most {most / 1e6:.0f} MB in the object store")
