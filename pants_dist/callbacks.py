"""What happens between the steps of a run: log, validate, save, stop. Each is decided by the step, alike on every rank."""

import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from torch.distributed import ReduceOp

from pants_dist.checkpoints import BEST, LAST, keep_previous
from pants_dist.evaluate import ood_metrics, score_cases, validation_cases, write_tables
from pants_dist.heartbeat import doing
from pants_dist.loader import Loader
from pants_dist.ranks import agreed, gathered
from pants_dist.splits import Splits
from pants_dist.store import Store
from pants_dist.tracking import Tracker, validation_folder
from pants_dist.worst import keep_picture, keep_worst

STOP_REQUEST = "stop-request"  # a file in the run folder: all ranks save the same step and end
_asked: list[int] = []  # signals that asked this rank for it


def listen_to_signals() -> None:
    """SIGTERM, SIGUSR1 and SIGINT no longer end this process: all ranks save and end after the step that they are at."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: _asked.append(number))


class Logging(L.Callback):
    """One line every `train.log_every` steps, and one for the first step and the last."""

    def __init__(self, tracker: Tracker, loader: Loader) -> None:
        self.tracker, self.loader = tracker, loader
        self.begun, self.waited_s, self.from_step = 0.0, 0.0, 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begun, self.from_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        doing("logging")
        step, train = trainer.global_step, module.settings.train
        if step % train.log_every and step not in (self.loader.start + 1, train.steps):
            return
        loss, skipped = agreed(float(outputs["loss"]), float(self.loader.skipped), operation=ReduceOp.SUM)
        (waited,) = agreed(self.loader.waited_s - self.waited_s)
        elapsed = max(time.perf_counter() - self.begun, 1e-9)
        self.tracker.log(step, {
            "train/loss": loss / trainer.world_size,
            "train/grad_norm": float(outputs["grad_norm"]),
            "train/lr": module.learning_rate(step - 1),
            "train/samples_per_s": (step - self.from_step) * train.batch / elapsed,
            "loader/wait_fraction": min(waited / elapsed, 1.0),
            "train/skipped_steps": module.skipped_steps,
            "loader/skipped": skipped,
        })  # fmt: skip
        self.waited_s = self.loader.waited_s
        self.begun, self.from_step = time.perf_counter(), step


class Validation(L.Callback):
    """Scores a fixed sample of seen and held-out cases every `validation.every` steps, each case once over all ranks."""

    def __init__(self, tracker: Tracker, store: Store, splits: Splits) -> None:
        self.tracker, self.store, self.splits = tracker, store, splits
        self.best = float("-inf")

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, settings = trainer.global_step, module.settings
        if not settings.validation.every or step % settings.validation.every:
            return
        cases = validation_cases(self.store, settings, self.splits)
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
