"""Checkpoints: whole or not there, plain data and never code, and read only after their checksums.

    RUN/checkpoints/last.ckpt        the newest
    RUN/checkpoints/previous.ckpt    the one before, for when the newest turns out to be damaged
    RUN/checkpoints/best.ckpt        the best on seen centers (validation.best), once there was a validation
"""

import os
import shutil
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pants_dist.errors import DamagedError, UserError
from pants_dist.plan import Plan

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def read_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content. Raises DamagedError where its bytes are not those that were written."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if wrong := archive.testzip():
                raise DamagedError(f"{path}: damaged (the checksum of {wrong} is wrong)")
        return torch.load(path, map_location=device, weights_only=True)
    except (zipfile.BadZipFile, UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise DamagedError(f"{path}: damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error


def keep_previous(run: Path) -> None:
    """Before a new last.ckpt is written: the one there becomes previous.ckpt. At no moment is there none."""
    last, previous = (run / "checkpoints" / name for name in (LAST, PREVIOUS))
    if last.is_file():
        beside = previous.with_suffix(".new")
        beside.unlink(missing_ok=True)
        try:
            os.link(last, beside)
        except OSError:  # a file system without hard links
            shutil.copyfile(last, beside)
        beside.replace(previous)


def resume_point(run: Path, plan: Plan, model: dict[str, Any]) -> tuple[Path, int]:
    """The checkpoint to go on from, and its step; where the first is to be, and 0. Raises UserError as the next two do."""
    path, saved = last_checkpoint(run)
    return path, resume_step(path, saved, plan, model) if saved else 0


def last_checkpoint(run: Path) -> tuple[Path, dict[str, Any] | None]:
    """The newest checkpoint of a run that is whole, and its content; where it is to be, and None, if there is none yet.

    Raises DamagedError where there are some, but none is whole.
    """
    folder, problems = run / "checkpoints", list[str]()
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            saved = read_checkpoint(path)
        except DamagedError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; going on from {path.name}", stacklevel=2)
        return path, saved
    if problems:
        raise DamagedError(f"{'; '.join(problems)}; take them away to begin anew, or use another --run-name")
    return folder / LAST, None


def best_checkpoint(run: Path) -> Path | None:
    """A run folder's best checkpoint, or the last where no validation chose one; None before there is any."""
    choices = (run / "checkpoints" / name for name in (BEST, LAST, PREVIOUS))
    return next((path for path in choices if path.is_file()), None)


def resume_step(checkpoint: Path, saved: dict[str, Any], plan: Plan, model: dict[str, Any]) -> int:
    """The step that a checkpoint with this content goes on from.

    Raises UserError, saying what differs, where it is of another plan or another network (`model`: its settings).
    """
    theirs, mine = saved.get("plan", {}), plan.parts
    if differ := [name for name in mine if theirs.get(name) != mine[name]]:
        raise UserError(
            f"{checkpoint}: was trained on another plan ({', '.join(differ)} differ); "
            "use the settings and the store it began with, or another --run-name"
        )
    others = saved.get("model", {})
    if changed := [name for name in model if others.get(name) != model[name]]:
        name = changed[0]
        raise UserError(
            f"{checkpoint}: is of another network (model.{name} is {others.get(name)} there, {model[name]} here); "
            "use the settings it began with, or another --run-name"
        )
    return int(saved["global_step"])
