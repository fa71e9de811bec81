"""The main path. `launch` prepares a run folder and starts Ray and torchrun; `train` is what each rank then does."""

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from pants_dist import __version__, cluster, config, memory
from pants_dist.callbacks import STOP_REQUEST, Checkpoints, Logging, Stopping, Validation
from pants_dist.checkpoints import LAST, PlainCheckpoints, resume_point
from pants_dist.config import Data, Settings
from pants_dist.errors import UserError
from pants_dist.evaluate import validation_cases
from pants_dist.geometry import Geometry
from pants_dist.heartbeat import Heartbeat
from pants_dist.loader import Loader, Reader, make_source
from pants_dist.model import Intensity, Segmenter
from pants_dist.plan import Plan
from pants_dist.settings import MAY_CHANGE
from pants_dist.splits import Splits, splits_of
from pants_dist.stage import Stage
from pants_dist.store import Store, open_store
from pants_dist.structures import LESION
from pants_dist.tracking import Tracker, mark, read_summary, write_atomically
from pants_dist.transfer import load_weights, read_weights
from pants_dist.weights import requests_of, weigh

FAILURE = "failure"  # a file in the run folder: which rank failed of its own, and how
REQUEUE = 75  # exit code: stopped on request with everything saved; run the same command again (EX_TEMPFAIL)


def train(settings: Settings, run: Path) -> None:
    """One rank of a run, from settings to the last checkpoint. Resumes from RUN/checkpoints/last.ckpt if there is one."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    L.seed_everything(settings.seed, verbose=False)

    store = store_of(settings.data)
    splits = splits_of(store, settings.data)
    plan = plan_of(store, settings, splits)
    module = Segmenter(settings, intensity_of(store, plan.cases), store)

    checkpoint, start = resume_point(run, plan, asdict(settings.model))
    if settings.train.init_from and not start:
        load_weights(settings, module.network, read_weights(settings.train.init_from))
    loader = loader_of(store, plan, settings, rank, ranks, start)
    tracker = Tracker(run, asdict(settings), settings.train.steps, settings.tracking.wandb, writes=rank == 0)

    between_steps = [
        Logging(tracker, loader), Validation(tracker, store, splits),
        Checkpoints(run, plan.parts, checkpoint.name == LAST), Stopping(run),
    ]  # fmt: skip
    trainer = trainer_of(settings.train.steps, ranks, between_steps)
    tracker.state("running", start)
    heartbeat = Heartbeat(rank, ranks)
    heartbeat.start()
    trainer.fit(module, loader, ckpt_path=str(checkpoint) if start else None, weights_only=True)
    tracker.state("finished" if trainer.global_step >= settings.train.steps else "stopped", trainer.global_step)
    heartbeat.stop()
    tracker.close()


def trainer_of(steps: int, ranks: int, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning with DDP over the ranks that torchrun started, on GPUs where there are any, and none of its own habits."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return L.Trainer(
        max_steps=steps, accelerator="auto", devices=here, num_nodes=ranks // here, callbacks=callbacks,
        strategy=DDPStrategy(process_group_backend="nccl" if torch.cuda.is_available() else "gloo"),
        plugins=[PlainCheckpoints()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip


def store_of(data: Data) -> Store:
    """The store as the settings want it read."""
    stage = Stage(Path(data.stage), round(data.stage_gb * 1e9)) if data.stage else None
    return open_store(data.store, data.io, stage)


def loader_of(store: Store, plan: Plan, settings: Settings, rank: int, ranks: int, start: int) -> Loader:
    """What this rank reads, from step `start` to the last."""
    reader = Reader(store, geometry_of(settings), plan if settings.data.on_damage == "skip" else None)
    source = make_source(settings.loader.kind, reader, settings.loader.readers, settings.loader.ahead)
    return Loader(plan, source, rank, ranks, start, settings.train.steps, settings.train.micro_batch)


def geometry_of(settings: Settings) -> Geometry:
    """What a patch is."""
    data, augment = settings.data, settings.augment
    turns = augment.rotation_degrees, augment.scale, augment.mirror
    return Geometry(data.patch_zyx, data.spacing_mm_zyx, *turns, data.max_window_mb << 20)


def plan_of(store: Store, settings: Settings, splits: Splits) -> Plan:
    """The plan of a run: training cases of the split, and what a patch of each may be centred on."""
    data = settings.data
    cases = tuple(splits.by_case.index[splits.by_case == "train"].tolist())
    rows = store.frame("center", *data.shares).loc[list(cases)]
    names = settings.model.outputs.structures
    if stray := sorted(set(names) - (annotated := store.annotated())):
        raise UserError(
            f"model.structures: {stray[0]!r} is annotated in no case of {store.path}; it has {', '.join(sorted(annotated))}"
        )
    has = store.holding(*dict.fromkeys((*names, LESION))).loc[list(cases)]
    rows["lesion"] = has[LESION]
    held = has[list(names)].to_numpy().tolist()
    present = {case: tuple(itertools.compress(names, row)) for case, row in zip(cases, held, strict=True)}
    requests = requests_of(rows, data)
    weights = tuple(weigh(requests, len(cases)).tolist()) if requests else ()
    return Plan(
        settings.seed, settings.train.batch, cases, present, data.foreground_fraction, data.structure_weights, weights
    )  # fmt: skip


def intensity_of(store: Store, cases: tuple[str, ...]) -> Intensity:
    """Intensity statistics of the training cases' annotated voxels, which the manifest carries a sample of."""
    samples = store.frame("foreground_hu").loc[list(cases), "foreground_hu"]
    hu = np.concatenate([np.asarray(sample, np.float32) for sample in samples])
    if not len(hu):
        raise UserError(
            f"store {store.path}: no annotated voxel in any of the {len(cases)} training cases; nothing to learn"
        )
    return Intensity.of(hu)


def launch(settings: Settings, name: str) -> int:
    """Start or resume the run `settings.runs`/`name` on this machine; returns the exit code.

    0 finished, 75 stopped on request (the same command goes on), 1 failed. Raises UserError before anything is started
    where settings, store and split do not fit together.
    """
    config.check(settings)
    memory.check(settings)
    store = open_store(settings.data.store)
    settings = replace(settings, data=_found_from_anywhere(settings.data, store))
    splits = splits_of(store, settings.data)
    plan = plan_of(store, settings, splits)
    if settings.validation.every and not validation_cases(store, settings, splits):
        raise UserError(
            f"validation.every is {settings.validation.every}, but no case is kept for validation; set it to null, raise "
            "data.val_fraction, or hold a center out (data.held_out_centers)"
        )
    run = prepare_run(settings, name, f"store digest {store.digest}; split: {splits.in_words()}")
    if resume_point(run, plan, asdict(settings.model))[1] >= settings.train.steps:
        return 0
    ranks = settings.train.ranks
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cluster.usable_cores() // ranks)), "PYTHONUNBUFFERED": "1"}
    with reading(settings) as address:
        code = _run([*command, "-m", "pants_dist.train", str(run)], environment | address, run, settings.train.restarts)
    return _outcome(run, code)


def reading(settings: Settings) -> contextlib.AbstractContextManager[dict[str, str]]:
    """Ray for the readers of all ranks, where Ray reads; yields the environment by which ranks find it."""
    if settings.loader.kind == "local":
        return contextlib.nullcontext({})
    return cluster.started(settings.loader.readers * settings.train.ranks, object_store_bytes(settings))


def object_store_bytes(settings: Settings) -> int:
    """Room for every micro-batch that may be under way at once, twice over, and at least 128 MiB."""
    data = settings.data
    window = 6 * int(np.prod(data.patch_zyx))  # up to 4 bytes of HU and 2 of code
    if data.spacing_mm_zyx or settings.augment.rotation_degrees or settings.augment.scale[1] > 1:
        window = 2 * data.max_window_mb << 20
    under_way = settings.train.ranks * (settings.loader.ahead + 4) * settings.train.micro_batch * window
    return max(2 * under_way, 128 << 20)


def _found_from_anywhere(data: Data, store: Store) -> Data:
    """The same with absolute paths: ranks and later evaluations may stand in other folders."""
    split_file = data.split_file and str(Path(data.split_file).resolve())
    return replace(data, store=str(store.path.resolve()), split_file=split_file)


def prepare_run(settings: Settings, name: str, about: str) -> Path:
    """The run folder with its config.yaml, which begins with `about`, a line on what the run is trained on.

    In a folder that exists, `train.steps` may only grow, and of the others only settings.MAY_CHANGE may differ.
    """
    run = Path(settings.runs) / name
    path = run / "config.yaml"
    if path.is_file():
        before = config.load(path, [])
        together = {"train.ranks", "train.micro_batch"} if settings.train.batch_dice else set()  # they share a Dice
        may_change = set(MAY_CHANGE) - together
        changed = [
            (key, old, new)
            for key, old, new in config.difference(before, settings)
            if key not in may_change and (key != "train.steps" or new < old)
        ]
        if changed:
            key, old, new = changed[0]
            raise UserError(
                f"run {run}: {key} was {old} and is now {new}; use the same settings, or another --run-name"
            )
    run.mkdir(parents=True, exist_ok=True)
    header = f"# pants-dist {__version__}, {about}\n"
    header += f"# start again: pants-dist train --config {path} --run-name {name}\n"
    write_atomically(path, header + config.dump(settings))
    return run


def _run(command: list[str], environment: dict[str, str], run: Path, restarts: int) -> int:
    """Run torchrun to its end, and again after a rank was killed. SIGTERM, SIGINT or SIGUSR1 to us asks the ranks to save
    and stop; they die if we do.
    """
    request, failure = run / STOP_REQUEST, run / FAILURE
    request.unlink(missing_ok=True)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: request.touch()) for number in numbers}
    try:
        for left in range(restarts, -1, -1):
            failure.unlink(missing_ok=True)
            # a session of its own: Ctrl-C reaches us alone, and torchrun does not kill ranks that are saving
            process = subprocess.Popen(command, env=environment, preexec_fn=cluster.die_with_parent, start_new_session=True)
            code = process.wait()
            refused = read_summary(run).get("state") == "refused"
            if not code or refused or failure.exists() or request.exists() or not left:
                break
            print(f"pants-dist: a rank was killed; going on from the last checkpoint, {left - 1} more times", file=sys.stderr)
        return code
    finally:
        request.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(run: Path, code: int) -> int:
    state = read_summary(run).get("state")
    if state == "refused":
        raise UserError(read_summary(run)["error"])
    if code or state == "running":
        mark(run, "failed")
        return 1
    return REQUEUE if state == "stopped" else 0


def main() -> None:
    """Entry point of a rank: `python -m pants_dist.train RUN` under torchrun."""
    cluster.die_with_parent()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    run = Path(sys.argv[1])
    try:
        train(config.load(run / "config.yaml", []), run)
    except UserError as error:
        mark(run, "refused", str(error))
        raise SystemExit(2) from None
    except Exception as error:
        where = f"rank {os.environ['RANK']} on {socket.gethostname()}"
        if _lost_a_peer(error):  # the reason is another's
            raise SystemExit(f"pants-dist: {where}: another rank is gone") from None
        write_atomically(run / FAILURE, f"{where}: {error!r}")  # no use in trying it again
        print(f"pants-dist: {where} failed:", file=sys.stderr)
        raise


def _lost_a_peer(error: Exception) -> bool:
    """Whether an exchange between ranks failed because one of them is gone."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


if __name__ == "__main__":
    main()
