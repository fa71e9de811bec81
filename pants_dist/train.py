"""The main path: what each rank of a run does. pants_dist.launch starts them."""

import logging
import os
import platform
import socket
import sys
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import psutil
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from pants_dist import cluster, config, memory
from pants_dist.callbacks import Logging, PlainCheckpoints, Saving, Validation, listen_to_signals
from pants_dist.checkpoints import LAST, resume_point
from pants_dist.config import Data, Settings
from pants_dist.errors import UserError
from pants_dist.gauges import node_name
from pants_dist.geometry import Geometry
from pants_dist.heartbeat import Heartbeat
from pants_dist.loader import Loader, Reader, make_source
from pants_dist.model import Intensity, Segmenter
from pants_dist.plan import Plan, plan_of
from pants_dist.splits import splits_of
from pants_dist.stage import Stage
from pants_dist.store import Store, open_store
from pants_dist.tracking import ATTEMPT, FAILURE, Tracker, mark, write_atomically
from pants_dist.transfer import load_weights, read_weights
from pants_dist.uploads import following


def train(settings: Settings, run: Path) -> None:
    """One rank of a run, from settings to the last checkpoint. Resumes from RUN/checkpoints/last.ckpt if there is one."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    L.seed_everything(settings.seed, verbose=False)
    if ATTEMPT in os.environ and os.environ.get("LOCAL_RANK", "0") == "0":  # else whoever launched us has looked at it
        memory.check(settings)

    store = store_of(settings.data)
    splits = splits_of(store, settings.data)
    plan = plan_of(store, settings, splits)
    module = Segmenter(settings, intensity_of(store, plan.cases), store)

    checkpoint, start = resume_point(run, plan, asdict(settings.model))
    if settings.train.init_from and not start:
        taken = load_weights(settings, module.network, read_weights(settings.train.init_from))
        if rank == 0:
            print(f"pants-dist: begins with {settings.train.init_from}: {taken}", flush=True)
    loader = loader_of(store, plan, settings, rank, ranks, start)
    listen_to_signals()  # Ray has set its own handlers
    tracker = Tracker(run, settings.train.steps, machine_of(ranks), writes=rank == 0)

    between_steps = [
        Logging(tracker, loader), Validation(tracker, store, splits),
        Saving(run, plan.parts, checkpoint.name == LAST),
    ]  # fmt: skip
    trainer = trainer_of(settings.train.steps, ranks, between_steps)
    tracker.state("running", start)
    heartbeat = Heartbeat(rank, ranks)
    heartbeat.start()
    with following(run) if rank == 0 and settings.tracking.wandb == "online" else nullcontext():
        trainer.fit(module, loader, ckpt_path=str(checkpoint) if start else None, weights_only=True)
        heartbeat.stop()
        tracker.state("finished" if trainer.global_step >= settings.train.steps else "stopped", trainer.global_step)


def machine_of(ranks: int) -> dict[str, Any]:
    """What a run is trained on, as rank 0 sees it: CPUs and GPU of its own node, how many ranks and nodes, by what."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory_gb = round(psutil.virtual_memory().total / 1e9)
    nodes = ranks // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = {"host": node_name(), "cpus": os.cpu_count(), "memory_gb": memory_gb, "gpu": gpu, "ranks": ranks, "nodes": nodes}
    return found | {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}


def trainer_of(steps: int, ranks: int, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning with DDP over the ranks that torchrun started, on GPUs where there are any, and none of its own habits."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    trainer = L.Trainer(
        max_steps=steps, accelerator="auto", devices=here, num_nodes=ranks // here, callbacks=callbacks,
        strategy=DDPStrategy(process_group_backend="nccl" if torch.cuda.is_available() else "gloo"),
        plugins=[PlainCheckpoints()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    # Lightning has all ranks wait for rank 0 before each step, to hear of a SIGTERM, and one that gets it itself broadcast it
    # at once, whatever the others do; callbacks.Saving hears it on any rank
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


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


def intensity_of(store: Store, cases: tuple[str, ...]) -> Intensity:
    """Intensity statistics of the training cases' annotated voxels, which the manifest carries a sample of."""
    samples = store.frame("foreground_hu").loc[list(cases), "foreground_hu"]
    hu = np.concatenate([np.asarray(sample, np.float32) for sample in samples])
    if not len(hu):
        raise UserError(
            f"store {store.path}: no annotated voxel in any of the {len(cases)} training cases; nothing to learn"
        )
    return Intensity.of(hu)


def main(run: Path) -> None:
    """A rank, in the process that the agent started for it. Exits with 2 where settings and store do not fit together,
    else with 1 where it fails: the first rank that does so of its own says why, in RUN/failure and in words.
    """
    listen_to_signals()
    cluster.die_with_parent()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
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
        print(f"pants-dist: {where} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _lost_a_peer(error: Exception) -> bool:
    """Whether an exchange between ranks failed because one of them is gone."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))

