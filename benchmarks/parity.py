"""Parity gate: our trainer against nnU-Net v2's own, on the same cases, for as many steps, from several seeds.

    python benchmarks/parity.py [--seeds 0 1 2] [--iterations 1200] [--work FOLDER]

The problem is rendered (rendered.py) into FOLDER: TRAIN scans to learn from, TEST to score. Ours is baseline.yaml, made
small (RECIPE): liver, pancreas and lesion. nnU-Net gets the training scans in its raw layout, takes its own fingerprint of
them, plans, preprocesses and trains with nnUNetTrainer: its normalisation, loss, optimizer, schedule, augmentation and
sampling. Its plan is changed in spacing, patch, batch, levels and channels, so that both networks are the same, and begins
with our initial weights: both must then say the same of a patch. Its trainer is changed in one thing: it does not mirror
left to right, since ours does not either. Its "epoch" is EPOCH steps.

Both predict the test scans without mirroring, in windows that overlap by half, and one function scores both in the source
grid. The gate holds, and the exit code is 0, where both have learnt every structure to LEARNT points of Dice from every
seed, and the mean over structures and seeds differs by at most 1 point, either way. An interrupted run with a FOLDER goes on
where it was; for other code take another FOLDER. Needs nnunetv2 (pip install --target ELSEWHERE, and PYTHONPATH).

What still differs by design: we resample trilinearly, together with the augmentation, and nnU-Net beforehand with cubic
splines; what lies outside the scan is background to its loss and ignored by ours; it lowers the learning rate once an epoch.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import lightning as L
import nnunet
import numpy as np
import torch
from rendered import STRUCTURES, make_rendered
from scipy.stats import t as student

from conversion import nifti
from conversion.run import convert
from pants_dist import config
from pants_dist.cases import FIRST_TEST_NUMBER
from pants_dist.config import Settings
from pants_dist.inference import segmented
from pants_dist.launch import launch
from pants_dist.metrics import dice
from pants_dist.networks import build_network
from pants_dist.predict import load_model, open_run
from pants_dist.splits import splits_of
from pants_dist.store import Store, open_store
from pants_dist.strides import dynunet_levels
from pants_dist.targets import holding, region, target_of

TRAIN, TEST = 24, 16  # scans
EPOCH = 10  # steps that nnU-Net takes at one learning rate
SYSTEMS = ("ours", "nnU-Net")
TARGET = target_of("regions", STRUCTURES)
LABELS = {name: [n for n, part in enumerate(STRUCTURES, 1) if part in region(name)] for name in STRUCTURES}
LEARNT = 70.0  # Dice points that both must reach in each structure for every seed
MEAN = "mean"  # over the structures
DATASET = "Dataset001_Parity"
PLANS, CONFIGURATION = "nnUNetPlans", "3d_fullres"
RECIPE = [
    "--model.target=regions", f"--model.structures={list(STRUCTURES)}", "--model.channels=[8, 16, 32]",
    "--data.patch_zyx=[20, 20, 20]", "--data.val_fraction=0", "--data.clusters=drop", "--train.batch=2", "--train.ranks=1",
    "--train.log_every=20", "--validation.every=null", "--loader.kind=local", "--loader.readers=1", "--tracking.wandb=off",
]  # fmt: skip

Masks = Mapping[str, np.ndarray]
Predictor = Callable[[np.ndarray, tuple[float, float, float]], Masks]  # HU (z, y, x) and spacing -> masks by structure


def cohort(work: Path) -> Store:
    """The rendered scans as a store; what is there already stays."""
    make_rendered(work / "rendered", [*range(1, TRAIN + 1), *range(FIRST_TEST_NUMBER, FIRST_TEST_NUMBER + TEST)])
    convert([work / "rendered"], work / "store")
    return open_store(work / "store")


def settings_of(store: Store, work: Path, iterations: int, seed: int) -> Settings:
    """Ours, at the median spacing of the cohort, as nnU-Net would have it."""
    spacing = [round(median(axis), 3) for axis in zip(*map(store.spacing_mm_zyx, store.cases), strict=True)]
    given = [f"--data.store={store.path}", f"--runs={work / 'runs'}", f"--seed={seed}", f"--train.steps={iterations}"]
    return config.load("baseline.yaml", [*RECIPE, f"--data.spacing_mm_zyx={spacing}", *given])


def cases_in(store: Store, settings: Settings, split: str) -> list[str]:
    by_case = splits_of(store, settings.data).by_case
    return by_case.index[by_case == split].tolist()


def ours(settings: Settings, name: str) -> Predictor:
    """Trained by our trainer."""
    if launch(settings, name):
        raise SystemExit(f"run {name} did not end; the same command goes on")
    model = load_model(*open_run(Path(settings.runs) / name))

    @torch.no_grad()
    def run(image_zyx: np.ndarray, spacing_mm_zyx: tuple[float, float, float]) -> Masks:
        return segmented([model], image_zyx, spacing_mm_zyx).masks

    return run


def prepare_nnunet(store: Store, settings: Settings, folder: Path) -> None:
    """Raw data, fingerprint, plan and preprocessed cases in nnU-Net's three folders; done once."""
    os.environ |= {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    os.environ["nnUNet_n_proc_DA"] = "1"
    plans_path, done = folder / "preprocessed" / DATASET / f"{PLANS}.json", folder / "prepared"
    if done.exists():
        return
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    cases = cases_in(store, settings, "train")
    write_raw(store, cases, folder / "raw" / DATASET)
    api.extract_fingerprint_dataset(1, num_processes=1, show_progress_bar=False)
    api.plan_experiment_dataset(1, overwrite_target_spacing=settings.data.spacing_mm_zyx)
    plans = json.loads(plans_path.read_text())
    make_alike(plans["configurations"][CONFIGURATION], settings)
    plans_path.write_text(json.dumps(plans))
    api.preprocess_dataset(1, PLANS, (CONFIGURATION,), (1,), show_progress_bar=False)
    split = {"train": cases, "val": cases[:1]}  # one to look at: nothing is chosen by it
    (plans_path.parent / "splits_final.json").write_text(json.dumps([split]))
    done.touch()


def write_raw(store: Store, cases: Sequence[str], folder: Path) -> None:
    """Image and label map of each case, voxels as in the store, labels painted as ours are."""
    for case in cases:
        image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
        inside = holding(STRUCTURES, store.palette(case), store.structures(case))
        labels = (inside * np.arange(1, len(STRUCTURES) + 1)).max(1).astype(np.uint8)
        affine = np.diag([*store.spacing_mm_zyx(case)[::-1], 1.0])
        nifti.write(folder / "imagesTr" / f"{case}_0000.nii.gz", image.T, affine)
        nifti.write(folder / "labelsTr" / f"{case}.nii.gz", labels[codes].T, affine)
    about = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0} | LABELS, "regions_class_order": [1, 2, 3],
        "numTraining": len(cases), "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about))


def make_alike(plan: dict[str, Any], settings: Settings) -> None:
    """Our patch, batch and network instead of those planned; the spacing is ours already."""
    patch, channels = settings.data.patch_zyx, settings.model.channels
    assert settings.data.spacing_mm_zyx
    levels = dynunet_levels(len(channels), patch, settings.data.spacing_mm_zyx)
    plan |= {"patch_size": patch, "batch_size": settings.train.batch, "batch_dice": settings.train.batch_dice}
    plan["architecture"]["arch_kwargs"] |= {
        "n_stages": len(levels), "features_per_stage": channels,
        "kernel_sizes": [level.kernel_zyx for level in levels], "strides": [level.stride_zyx for level in levels],
        "n_conv_per_stage": [2] * len(levels), "n_conv_per_stage_decoder": [2] * (len(levels) - 1),
    }  # fmt: skip


def theirs(settings: Settings, folder: Path) -> Predictor:
    """Trained by nnU-Net's trainer."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):
        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
            *rest, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            return *rest, (0, 1)  # axes mirrored: z, y

    os.environ["nnUNet_n_proc_DA"] = "0"  # augments in this very process: the same patches from the same seed
    L.seed_everything(settings.seed, verbose=False)
    base = folder / "preprocessed" / DATASET
    plans = json.loads((base / f"{PLANS}.json").read_text()) | {"continue_training": False}
    about = json.loads((base / "dataset.json").read_text())
    trainer = Trainer(plans, CONFIGURATION, 0, about, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = settings.train.steps // EPOCH, EPOCH
    trainer.num_val_iterations_per_epoch, trainer.disable_checkpointing = 1, True
    trainer.initialize()
    begin_alike(settings, trainer.network)
    trainer.logger.plot_progress_png = lambda folder: None  # a picture an epoch takes longer than the epoch
    trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        tile_step_size=1 - settings.validation.overlap, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    weights = [trainer.network.state_dict()]
    predictor.manual_initialization(
        trainer.network.eval(), trainer.plans_manager, trainer.configuration_manager, weights, about, "", None
    )

    def run(image_zyx: np.ndarray, spacing_mm_zyx: tuple[float, float, float]) -> Masks:
        image = image_zyx[None].astype(np.float32)
        label = predictor.predict_single_npy_array(image, {"spacing": list(spacing_mm_zyx)})
        return {name: np.isin(label, labels) for name, labels in LABELS.items()}

    return run


@torch.no_grad()
def begin_alike(settings: Settings, network: torch.nn.Module) -> None:
    """Give nnU-Net's network the weights that ours begins with, kernel by kernel; both must then say the same of a patch.

    nnU-Net's has one head more, which its loss gives weight 0.
    """
    data, channels = settings.data, settings.model.channels
    L.seed_everything(settings.seed, verbose=False)
    mine = build_network(settings.model, len(TARGET.channels), data.patch_zyx, data.spacing_mm_zyx)
    kernels: dict[tuple[int, ...], list[torch.Tensor]] = {(len(TARGET.channels), channels[-2], 1, 1, 1): []}
    for weight in mine.parameters():
        if weight.ndim == 5:
            kernels.setdefault(tuple(weight.shape), []).append(weight)
    for weight in network.parameters():  # both go down first, then up
        if weight.ndim == 5 and kernels.get(tuple(weight.shape)):
            weight.copy_(kernels[tuple(weight.shape)].pop(0))
    patch = torch.randn(1, 1, *data.patch_zyx)
    one, other = mine.train()(patch), network.train()(patch)
    if any(map(len, kernels.values())) or not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=False)):
        raise SystemExit("the networks differ")


def scores(store: Store, cases: Sequence[str], predictor: Predictor) -> dict[str, float]:
    """Dice in points by structure, the mean over the cases that have it."""
    found: dict[str, list[float]] = {name: [] for name in STRUCTURES}
    for case in cases:
        image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
        masks = predictor(image, store.spacing_mm_zyx(case))
        inside = holding(STRUCTURES, store.palette(case), store.structures(case))
        for column, name in enumerate(STRUCTURES):
            if (reference := inside[:, column][codes]).any():
                found[name].append(100 * dice(reference, masks[name]))
    by_structure = {name: mean(values) for name, values in found.items()}
    return by_structure | {MEAN: mean(by_structure.values())}


def trained(system: str, store: Store, settings: Settings, work: Path) -> Predictor:
    """By "ours" or "nnU-Net"."""
    if system == "ours":
        return ours(settings, f"{settings.train.steps}-{settings.seed}")
    prepare_nnunet(store, settings, work / "nnunet")
    return theirs(settings, work / "nnunet")


def result(system: str, store: Store, settings: Settings, work: Path) -> dict[str, float]:
    """Dice of a system's run on the test scans, made unless it is there; what is said meanwhile goes into WORK/log."""
    path = work / "dice" / f"{system}-{settings.train.steps}-{settings.seed}.json"
    if not path.exists():
        with open(work / "log", "a") as log, contextlib.redirect_stdout(log):
            found = scores(store, cases_in(store, settings, "test"), trained(system, store, settings, work))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def table(pairs: dict[int, list[dict[str, float]]]) -> Iterator[str]:
    """Lines of a Markdown table of [ours, nnU-Net's] by seed."""
    columns = (*STRUCTURES, MEAN)
    yield "| seed | " + " | ".join(f"{name}: ours | nnU-Net | difference" for name in columns) + " |"
    yield "|---|" + "---|---|---|" * len(columns)
    for seed, (mine, other) in pairs.items():
        cells = (f"{mine[name]:.1f} | {other[name]:.1f} | {mine[name] - other[name]:+.1f}" for name in columns)
        yield f"| {seed} | {' | '.join(cells)} |"
    yield f"| all | {' | '.join(over_seeds([*pairs.values()], name) for name in columns)} |"


def over_seeds(pairs: list[list[dict[str, float]]], name: str) -> str:
    """Means over the seeds, and the difference with its 95 % interval."""
    differences = [mine[name] - other[name] for mine, other in pairs]
    ours, theirs = (mean(pair[system][name] for pair in pairs) for system in (0, 1))
    return f"{ours:.1f} | {theirs:.1f} | {mean(differences):+.1f}{interval(differences)}"


def interval(differences: list[float]) -> str:
    """Student's 95 % interval of the mean; nothing where there is one number."""
    if len(differences) < 2:
        return ""
    half = student.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return f" ({mean(differences) - half:+.1f} to {mean(differences) + half:+.1f})"


def verdict(pairs: list[list[dict[str, float]]]) -> tuple[bool, str]:
    """Whether the gate holds, and a sentence on it."""
    for name, system in itertools.product(STRUCTURES, (0, 1)):
        if (least := min(pair[system][name] for pair in pairs)) < LEARNT:
            return False, f"There is nothing to compare: {SYSTEMS[system]} has {name} to {least:.1f} points, below {LEARNT:g}."
    gain = mean(mine[MEAN] - other[MEAN] for mine, other in pairs)
    holds = abs(gain) <= 1
    return holds, f"The gate {'holds' if holds else 'DOES NOT HOLD'}: ours less nnU-Net's is {gain:+.1f} points of mean Dice."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=1200, help=f"steps of each run, a multiple of {EPOCH}")
    parser.add_argument("--work", type=Path, help="folder for all files, kept; else a temporary one")
    given = parser.parse_args()
    if not nnunet.installed():
        parser.error("nnunetv2 is not installed; use an environment that has it")
    if given.iterations < EPOCH or given.iterations % EPOCH:
        parser.error(f"--iterations {given.iterations}: give a multiple of {EPOCH}")
    with contextlib.ExitStack() as stack:
        work = (given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        store = cohort(work)
        results: dict[int, list[dict[str, float]]] = {seed: [] for seed in given.seeds}
        for seed, system in itertools.product(given.seeds, SYSTEMS):
            settings = settings_of(store, work, given.iterations, seed)
            results[seed].append(result(system, store, settings, work))
            print(f"{system}, seed {seed}: {results[seed][-1]}", file=sys.stderr)
    print(f"`python {' '.join(sys.argv)}`: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when it ended.\n")
    print("\n".join(table(results)))
    holds, sentence = verdict(list(results.values()))
    print(f"\n{sentence}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
