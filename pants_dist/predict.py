"""Trained models out of run folders, and what they say of one NIfTI, written as NIfTI."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conversion import nifti
from pants_dist import config
from pants_dist.checkpoints import best_checkpoint, read_checkpoint
from pants_dist.config import Settings
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.inference import segmented
from pants_dist.model import Intensity, Segmenter
from pants_dist.transfer import AVERAGE


def predict(
    checkpoints: Sequence[Path], image: Path, out: Path, mirror: bool = False, label_map: bool = False
) -> list[Path]:
    """Segment a CT and write OUT/segmentations/<structure>.nii.gz, uint8, in its own grid and orientation; returns the files.

    `image` is .nii.gz or .nii, HU, in any orientation. Each of `checkpoints` is a run's folder or a file in its checkpoints
    folder; of several, the logits are averaged. With `mirror` also over mirrored windows (inference.py). With `label_map`
    OUT/label_map.nii.gz has each structure's number, and label_map.json says which; where structures overlap, the later
    one counts. Raises UserError for what cannot be read, and where the models do not fit together.
    """
    models = [load_model(*open_checkpoint(source)) for source in checkpoints]
    volume = nifti.read(image)
    hu_zyx = np.ascontiguousarray(nifti.canonical(volume.array_ijk, volume.affine))
    masks = segmented(models, hu_zyx, volume.spacing_mm_zyx, mirror).masks
    numbers, files = {name: number for number, name in enumerate(masks, 1)}, list[Path]()
    labels = np.zeros(hu_zyx.shape if label_map else (0, 0, 0), np.uint8 if len(numbers) < 256 else np.uint16)
    for name, mask in masks.items():
        files.append(out / "segmentations" / f"{name}.nii.gz")
        nifti.write(files[-1], nifti.original(mask, volume.affine), volume.affine)
        if label_map:
            labels[mask] = numbers[name]
    if label_map:
        files.append(out / "label_map.nii.gz")
        nifti.write(files[-1], nifti.original(labels, volume.affine), volume.affine)
        with replacing(out / "label_map.json") as file:
            file.write(json.dumps(numbers, indent=2).encode())
    return files


def open_checkpoint(source: Path) -> tuple[Path, Settings]:
    """The checkpoint that a run's folder stands for (the best, else the last), or that file; and its run's settings.

    Raises UserError where there is none.
    """
    if source.is_dir():
        return open_run(source)
    if not source.is_file():
        raise UserError(f"checkpoint {source}: no such file; give a run's folder, or a file in its checkpoints folder")
    return source, settings_of_run(source.resolve().parent.parent)


def open_run(run: Path) -> tuple[Path, Settings]:
    """The checkpoint of a run folder to score, the best, or the last where no validation chose one; and its settings."""
    settings = settings_of_run(run)
    if checkpoint := best_checkpoint(run):
        return checkpoint, settings
    raise UserError(
        f'run {run}: no checkpoint yet; run "pants-dist train --config {run / "config.yaml"} --run-name {run.name}"'
    )


def settings_of_run(run: Path) -> Settings:
    """What a run was trained with. Raises UserError for a folder that is none."""
    if not (run / "config.yaml").is_file():
        raise UserError(f'run {run}: no config.yaml there, so it is no run folder; give one that "pants-dist train" made')
    return config.load(run / "config.yaml", [])


def load_model(checkpoint: Path, settings: Settings) -> Segmenter:
    """The trained model of a checkpoint, in evaluation mode, on the GPU if there is one."""
    return model_of(read_checkpoint(checkpoint), settings)


def model_of(saved: dict[str, Any], settings: Settings) -> Segmenter:
    """The same of a checkpoint's content; its averaged weights, where it has some."""
    model = Segmenter(settings, Intensity(**saved["intensity"]))
    model.load_state_dict(saved["state_dict"])
    if AVERAGE in saved:
        model.network.load_state_dict(saved[AVERAGE]["weights"])
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
