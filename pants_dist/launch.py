"""Starts a run: its folder, Ray for reading, and the agent of this node that starts its ranks; again where one was killed.

What is checked before is checked by `submit`, too, on a login node. In a batch job the ranks do those checks that need torch,
which takes seconds to import: they have it.
"""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pants_dist import cluster, config
from pants_dist.agent import ALONE
from pants_dist.config import Data, Settings
from pants_dist.errors import DamagedError, UserError
from pants_dist.nodes import Node, RaySize, allocated_cores, excused, gathered, this_node
from pants_dist.plan import Plan, plan_of
from pants_dist.rollcall import Report
from pants_dist.settings import MAY_CHANGE, Train
from pants_dist.splits import Splits, splits_of, validation_cases
from pants_dist.store import Store, open_store
from pants_dist.tracking import ATTEMPT, FAILURE, STOP_REQUEST, code_version, mark, read_summary, write_atomically

REQUEUE = 75  # exit code: stopped on request with everything saved; run the same command again (EX_TEMPFAIL)
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # there where a node has GPUs, NVIDIA's or AMD's
CASES_READ = 8  # by each node, before ranks start
FIRST_PATIENCE_S, PATIENCE_S = 300, 40  # for the agents of other nodes, at first and after a rank was killed


@dataclass(frozen=True)
class Prepared:
    """Settings as they are kept, with what they lead to."""

    settings: Settings
    store: Store
    plan: Plan
    about: str  # a line on what the run is trained on


def launch(settings: Settings, name: str) -> int:
    """Start or resume the run `settings.runs`/`name`; returns the exit code.

    On this machine, or on all nodes of a SLURM step where srun started one of us on each. 0 finished, 75 stopped on
    request (the same command goes on), 1 failed. Raises UserError before anything is started where settings, store and
    split do not fit together.
    """
    node, in_job = this_node(), ATTEMPT in os.environ
    try:
        ready = prepared(settings, node.count, _fits_later if in_job else _fits_here)
    except UserError as error:
        if not node.leads:
            excused(node, Path(settings.runs) / name, Report.of_this_node("", str(error)))
        raise
    settings = ready.settings
    run = prepare_run(settings, name, ready.about) if node.leads else Path(settings.runs) / name
    if (not in_job or read_summary(run).get("state") == "finished") and _is_over(ready, run):
        return 0
    ranks = settings.train.ranks
    environment = environment_of(ranks)
    command = [sys.executable, "-m", "pants_dist.agent", str(run), f"--ranks={ranks}"]
    command.append(f"--min-nodes={settings.train.min_nodes or node.count}")
    if in_job:  # its log tells the ranks' lines apart
        command.append(f"--logs={run / 'logs'}")
    with placed(ready, node, run) as (meeting, found), temporary(found) as environment["TMPDIR"]:
        code = _run([*command, *meeting], environment | found, run, node, settings.train.restarts)
    return _outcome(run, code) if node.leads else int(code != 0)


def _fits_here(settings: Settings) -> None:
    from pants_dist import memory

    memory.check(settings)


def _fits_later(settings: Settings) -> None:
    """Nothing: train.train looks at it."""


def _is_over(ready: Prepared, run: Path) -> bool:
    """Whether the run has done its steps. Raises UserError where its checkpoint does not fit the plan."""
    from pants_dist.checkpoints import resume_point

    settings = ready.settings
    return resume_point(run, ready.plan, asdict(settings.model))[1] >= settings.train.steps


def prepared(settings: Settings, nodes: int, fits: Callable[[Settings], None]) -> Prepared:
    """What a run with these settings on so many nodes needs. Raises UserError where they do not fit together.

    `fits` looks at the memory that a step needs.
    """
    config.check(settings)
    check_shares(settings.train, nodes)
    fits(settings)
    store = open_store(settings.data.store)
    settings = found_from_anywhere(settings, store)
    return fitting(settings, store, splits_of(store, settings.data))


def fitting(settings: Settings, store: Store, splits: Splits) -> Prepared:
    """The plan of a run on this split of a store. Raises UserError where there is none, or nothing to validate on."""
    plan = plan_of(store, settings, splits)
    if settings.validation.every:
        check_validation(store, settings, splits)
    return Prepared(settings, store, plan, f"store digest {store.digest}; split: {splits.in_words()}")


def check_validation(store: Store, settings: Settings, splits: Splits) -> None:
    """Raises UserError where validation would have no case, or none by which the best checkpoint is chosen."""
    every, best = settings.validation.every, settings.validation.best
    cases = validation_cases(store, splits, settings.validation.cases)
    if not cases:
        raise UserError(
            f"validation.every is {every}, but no case is kept for validation; set it to null, raise "
            "data.val_fraction, or hold a center out (data.held_out_centers)"
        )
    seen, _, structure = [case for case in cases if splits.by_case[case] == "val_seen"], *best.partition("/")[1:]
    if structure and seen and not store.holding(structure).loc[seen, structure].any():
        raise UserError(
            f"validation.best is {best}, but none of the {len(seen)} cases of seen centers that are scored has one; raise "
            "validation.cases or data.val_fraction, or use dsc"
        )


def check_shares(train: Train, nodes: int) -> None:
    """Raises UserError where the ranks of so many nodes cannot share a batch, or those of as few as may be left."""
    fewest = nodes if train.min_nodes is None else train.min_nodes
    if not 1 <= fewest <= nodes:
        raise UserError(f"train.min_nodes is {fewest}, but the run begins with {nodes}; use 1 to {nodes}")
    for left in range(nodes, fewest - 1, -1):
        if train.batch % (left * train.ranks):
            together = math.lcm(*(count * train.ranks for count in range(fewest, nodes + 1)))
            fits = together * max(1, round(train.batch / together))
            raise UserError(
                f"train.batch is {train.batch}, which {left * train.ranks} ranks on {left} nodes cannot share; use {fits}"
            )
    share = train.batch // (fewest * train.ranks)
    if train.batch_dice and train.micro_batch < share:
        raise UserError(
            f"train.micro_batch is {train.micro_batch}, but train.batch_dice takes the Dice of all {train.batch} patches of a "
            f"step at once: use {share}, or more ranks"
        )


@contextlib.contextmanager
def placed(ready: Prepared, node: Node, run: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Ray for the readers of all ranks, where Ray reads; yields by which options agents meet, and the ranks' environment.

    Raises UserError where this node, or another of the run, cannot take part.
    """
    settings, fault = ready.settings, _lacking(ready)
    if node.count > 1:
        report = Report.of_this_node(ready.store.digest, fault)
        with gathered(node, run, report, ray_size(settings)) as found:
            yield found
    elif fault:
        raise UserError(fault)
    else:
        with reading(settings) as environment:
            yield [], environment


@contextlib.contextmanager
def temporary(found: dict[str, str]) -> Iterator[str]:
    """A folder for temporary files of agent and ranks, which is swept however they end: Ray's, where there is one."""
    if folder := found.get(cluster.FOLDER_VARIABLE):
        yield folder
        return
    with cluster.private_folder() as own:
        yield str(own)


def check_cases(store: Store, most: int, data: Data) -> None:
    """Raises UserError where one of so many cases, drawn with a fixed seed, is missing, has another size, or cannot be read.

    With data.on_damage "skip" such cases are to be passed over, here as well.
    """
    cases = list(store.cases) if data.on_damage == "raise" else []
    for case in random.Random(0).sample(cases, min(most, len(cases))):
        try:
            store.read_patch(case, (0, 0, 0), (8, 8, 8))
        except (DamagedError, OSError) as error:
            raise UserError(f"store {store.path}: {error}; run pants-dist verify {store.path}") from error


def _lacking(ready: Prepared) -> str:
    """What this node has too little of for the run, or cannot read, with the cure; "" if nothing."""
    settings, given = ready.settings, os.environ.get("SLURM_GPUS_ON_NODE", "0")
    ranks, gpus = settings.train.ranks, _gpus() if given != "0" or any(driver.exists() for driver in GPU_DRIVERS) else 0
    if given != "0" and not gpus:
        return (
            f"SLURM gave us {given} GPUs, but torch sees none; install a torch with CUDA that fits the driver (nvidia-smi says "
            "which), or leave this node out (--sbatch.exclude)"
        )
    if 0 < gpus < ranks:
        return f"train.ranks is {ranks}, but this node gives us {gpus} GPUs; ask for {ranks}, or use {gpus} ranks"
    try:
        check_cases(ready.store, CASES_READ, settings.data)
        if size := ray_size(settings):
            cluster.check_memory(*size)
    except UserError as error:
        return str(error)
    return ""


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def reading(settings: Settings) -> contextlib.AbstractContextManager[dict[str, str]]:
    """Ray on this machine alone, where Ray reads; yields the environment by which ranks find it."""
    size = ray_size(settings)
    return cluster.started(*size) if size else contextlib.nullcontext({})


def ray_size(settings: Settings) -> RaySize | None:
    """What Ray needs on each node; None where local processes read."""
    if settings.loader.kind == "local":
        return None
    return RaySize(settings.loader.readers * settings.train.ranks, object_store_bytes(settings))


def object_store_bytes(settings: Settings) -> int:
    """Room for every micro-batch that may be under way at once, twice over, and at least 128 MiB."""
    data = settings.data
    window = 6 * int(np.prod(data.patch_zyx))  # up to 4 bytes of HU and 2 of code
    if data.spacing_mm_zyx or settings.augment.rotation_degrees or settings.augment.scale[1] > 1:
        window = 2 * data.max_window_mb << 20
    under_way = settings.train.ranks * (settings.loader.ahead + 4) * settings.train.micro_batch * window
    return max(2 * under_way, 128 << 20)


def found_from_anywhere(settings: Settings, store: Store) -> Settings:
    """The same with absolute paths: ranks and later evaluations may stand in other folders."""
    split_file = settings.data.split_file and str(Path(settings.data.split_file).resolve())
    return replace(settings, data=replace(settings.data, store=str(store.path.resolve()), split_file=split_file))


def environment_of(ranks: int) -> dict[str, str]:
    """Of the ranks: they share the cores at hand, unless whoever calls has set OMP_NUM_THREADS."""
    return {"OMP_NUM_THREADS": str(max(1, allocated_cores() // ranks))} | os.environ | {"PYTHONUNBUFFERED": "1"}


def prepare_run(settings: Settings, name: str, about: str) -> Path:
    """The run folder with its config.yaml, which begins with `about`, a line on what the run is trained on.

    Raises UserError for a run that exists with other settings (check_same).
    """
    run = Path(settings.runs) / name
    check_same(settings, run)
    keep_config(settings, run, about)
    return run


def keep_config(settings: Settings, run: Path, about: str) -> None:
    """Write config.yaml of a run that `check_same` has nothing against."""
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / "config.yaml", config_text(settings, run, about))


def config_text(settings: Settings, run: Path, about: str) -> str:
    """What config.yaml of this run says."""
    header = f"# pants-dist {code_version()}, {about}\n"
    header += f"# start again: pants-dist train --config {run / 'config.yaml'} --run-name {run.name}\n"
    return header + config.dump(settings)


def check_same(settings: Settings, run: Path) -> None:
    """In a folder that exists, `train.steps` may only grow, and of the others only settings.MAY_CHANGE may differ.

    Raises UserError with the first that does.
    """
    path = run / "config.yaml"
    if not path.is_file():
        return
    before = config.load(path, [])
    changed = [
        (key, old, new)
        for key, old, new in config.difference(before, settings)
        if key not in MAY_CHANGE and (key != "train.steps" or new < old)
    ]
    if changed:
        key, old, new = changed[0]
        raise UserError(f"run {run}: {key} was {old} and is now {new}; use the same settings, or another --run-name")


def _run(command: list[str], environment: dict[str, str], run: Path, node: Node, restarts: int) -> int:
    """Run the agent to its end, and again after a rank was killed, on every node alike. SIGTERM, SIGINT or SIGUSR1 to us
    asks the ranks to save and stop; they die if we do.
    """
    request, failure = run / STOP_REQUEST, run / FAILURE
    if node.leads and not _is_of_this_attempt(request):
        request.unlink(missing_ok=True)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: request.touch()) for number in numbers}
    try:
        for left in range(restarts, -1, -1):
            if node.leads:
                failure.unlink(missing_ok=True)
            patience = FIRST_PATIENCE_S if left == restarts else PATIENCE_S
            start = f"{node.start}-{left}"
            # a session of its own: Ctrl-C reaches us alone, and the agent does not kill ranks that are saving
            process = subprocess.Popen(
                [*command, f"--start={start}", f"--patience={patience}"], env=environment,
                preexec_fn=cluster.die_with_parent, start_new_session=True,
            )  # fmt: skip
            code = process.wait()
            refused = read_summary(run).get("state") == "refused"
            if not code or refused or failure.exists() or request.exists() or not left or code == ALONE:
                break
            print(f"pants-dist: a rank was killed; going on from the last checkpoint, {left - 1} more times", file=sys.stderr)
        if code == ALONE:
            print(
                f"pants-dist: node {node.number}: not all {node.count} nodes were there in {patience:g} s; one is lost. The "
                "same command goes on from the last checkpoint", file=sys.stderr,
            )  # fmt: skip
        return code
    finally:
        if node.leads:
            request.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_of_this_attempt(request: Path) -> bool:
    """Whether the batch script that started us asks to stop already; what an earlier attempt left does not count."""
    attempt = os.environ.get(ATTEMPT)
    return attempt is not None and request.is_file() and request.read_text().strip() == attempt


def _outcome(run: Path, code: int) -> int:
    state = read_summary(run).get("state")
    if state == "refused":
        raise UserError(read_summary(run)["error"])
    if code or state == "running":
        mark(run, "failed")
        return 1
    return REQUEUE if state == "stopped" else 0
