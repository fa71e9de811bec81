"""What happens between the steps of a run: log, validate, save, stop. Each is decided by the step, alike on every rank."""

import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pants_dist.checkpoints import BEST, LAST, keep_previous, read_checkpoint
from pants_dist.disk import replacing
from pants_dist.evaluate import ood_metrics, score_cases, write_tables
from pants_dist.gauges import Gauges, Measured, in_a_line, keep_ranks, node_name
from pants_dist.heartbeat import doing
from pants_dist.loader import Loader
from pants_dist.ranks import agreed, gathered, shared
from pants_dist.splits import Splits, validation_cases
from pants_dist.store import Store
from pants_dist.tracking import STOP_REQUEST, Tracker, validation_folder
from pants_dist.worst import keep_picture, keep_worst

RANKS_S = 10.0  # between two versions of ranks.json
_asked: list[int] = []  # signals that asked this rank for it


def listen_to_signals() -> None:
    """SIGTERM, SIGUSR1 and SIGINT no longer end this process: all ranks save and end after the step that they are at."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: _asked.append(number))


class PlainCheckpoints(TorchCheckpointIO):
    """How Lightning writes and reads a run's checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location)


class Logging(L.Callback):
    """One line every `train.log_every` steps, and one for the first step and the last."""

    def __init__(self, tracker: Tracker, loader: Loader) -> None:
        self.tracker, self.loader = tracker, loader
        self.begun, self.from_step, self.kept_at = 0.0, 0, float("-inf")
        self.said: set[str] = set()  # kinds of slowness that this attempt's log has named

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.begun, self.from_step = time.perf_counter(), trainer.global_step
        self.gauges, self.nodes = Gauges(self.loader, module.settings.loader.kind), gathered(node_name())

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        doing("logging")
        step, train = trainer.global_step, module.settings.train
        if step % train.log_every and step not in (self.loader.start + 1, train.steps):
            return
        mine = self.gauges.measured(float(outputs["loss"]), module.own_work.taken_s())
        ranks = [Measured(*each) for each in shared(mine)]
        elapsed, steps = max(time.perf_counter() - self.begun, 1e-9), step - self.from_step
        self.begun, self.from_step = time.perf_counter(), step
        self.tracker.log(step, {
            "train/loss": sum(rank.loss for rank in ranks) / len(ranks),
            "train/grad_norm": float(outputs["grad_norm"]),
            "train/lr": module.learning_rate(step - 1),
            "train/samples_per_s": steps * train.batch / elapsed,
            "train/skipped_steps": module.skipped_steps,
            **in_a_line(ranks, self.nodes, elapsed, steps),
        })  # fmt: skip
        if self.tracker.writes:
            self._say(step)
            if time.monotonic() - self.kept_at > RANKS_S or step == train.steps:
                keep_ranks(self.tracker.run, step, ranks, self.nodes, elapsed, steps)
                self.kept_at = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.gauges.stop()

    def _say(self, step: int) -> None:
        """A line in the log for each kind of slowness when it is first seen."""
        for found in self.tracker.found:
            if found.kind not in self.said:
                self.said.add(found.kind)
                print(f"pants-dist: step {step:,}: {found.words}; {found.cure}", file=sys.stderr, flush=True)


class Validation(L.Callback):
    """Scores a fixed sample of seen and held-out cases every `validation.every` steps, each case once over all ranks."""

    def __init__(self, tracker: Tracker, store: Store, splits: Splits) -> None:
        self.tracker, self.store, self.splits = tracker, store, splits
        self.best = float("-inf")

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, settings = trainer.global_step, module.settings
        if not settings.validation.every or step % settings.validation.every:
            return
        doing("validation")
        cases = validation_cases(self.store, self.splits, settings.validation.cases)
        mine = cases[trainer.global_rank :: trainer.world_size]
        folder = validation_folder(self.tracker.run, step)
        rows: list[dict[str, Any]] = []
        with module.averaged():
            for scored in score_cases(self.store, module, settings, mine, self.splits):
                keep_picture(folder / "worst", scored, rows)
                rows.append(scored.row)
        rows = [row for part in gathered(rows) for row in part]
        metrics = ood_metrics(rows, settings.model.outputs.structures)
        if trainer.is_global_zero:
            write_tables(folder, rows, settings.model.outputs.structures)
            keep_worst(folder / "worst", rows)
        self.tracker.log(step, metrics)
        if (score := metrics.get(f"val/{settings.validation.best}", float("-inf"))) > self.best:
            self.best = score
            doing("checkpoint")
            trainer.save_checkpoint(self.tracker.run / "checkpoints" / BEST)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


class Saving(L.Callback):
    """Saves last.ckpt every `train.checkpoint_minutes`, and at the end, with the plan and the network it belongs to.

    The end of all ranks after the same step is also what SIGTERM, SIGUSR1 or SIGINT to any of them, or RUN/stop-request, asks.
    """

    def __init__(self, run: Path, plan_parts: dict[str, str], last_is_whole: bool) -> None:
        self.run, self.plan_parts, self.last_is_whole = run, plan_parts, last_is_whole
        self.saved_at, self.saved_step = time.monotonic(), -1

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = time.monotonic() - self.saved_at >= 60 * module.settings.train.checkpoint_minutes
        asked = bool(_asked) or (trainer.is_global_zero and (self.run / STOP_REQUEST).exists())
        due_anywhere, asked_anywhere = agreed(due, asked)  # in one go: all ranks wait for it
        if due_anywhere:
            self._save(trainer)
        if asked_anywhere:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.last_is_whole:
            keep_previous(self.run)
        doing("checkpoint")
        trainer.save_checkpoint(self.run / "checkpoints" / LAST)
        self.saved_at, self.saved_step, self.last_is_whole = time.monotonic(), trainer.global_step, True

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["plan"], checkpoint["model"] = self.plan_parts, asdict(module.settings.model)
