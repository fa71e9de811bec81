"""Parity gate: our trainer against nnU-Net v2's own, on the same cases, for as many steps, from several seeds.

    python benchmarks/parity.py [--seeds 0 1 2] [--iterations 1000] [--work FOLDER]

A phantom cohort is made in FOLDER, and a quarter of each center's scans is kept for the test. Ours is baseline.yaml, made
small (RECIPE): liver, pancreas and lesion. nnU-Net gets the other scans in its raw layout, takes its own fingerprint of
them, plans, preprocesses and trains with nnUNetTrainer: its normalisation, loss, optimizer, schedule, augmentation and
sampling. Its plan is changed in spacing, patch, batch, levels and channels, so that both networks are the same, which is
checked kernel by kernel. Its trainer is changed in one thing: it does not mirror left to right, since ours does not either.
Its "epoch" is EPOCH steps.

Both predict the test scans without mirroring, in windows that overlap by half, and one function scores both in the source
grid. Structures count that nnU-Net has learnt, to LEARNT points of Dice. Over these and the seeds, ours may be 1 point
worse on average: then the gate holds, and the exit code is 0. An interrupted run with a FOLDER goes on where it was; for
other code take another FOLDER. Needs nnunetv2.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import lightning as L
import nnunet
import numpy as np
import torch

from conversion import nifti
from conversion.run import convert
from pants_dist import config
from pants_dist.config import Settings
from pants_dist.inference import segmented
from pants_dist.launch import launch
from pants_dist.metrics import dice
from pants_dist.networks import build_network
from pants_dist.phantom import make_phantom
from pants_dist.predict import load_model, open_run
from pants_dist.splits import splits_of
from pants_dist.store import Store, open_store
from pants_dist.strides import dynunet_levels
from pants_dist.targets import holding, region, target_of

CASES = 24
EPOCH = 10  # steps that nnU-Net takes at one learning rate
SYSTEMS = ("ours", "nnU-Net")
STRUCTURES = ("liver", "pancreas", "pancreatic_lesion")  # in the order in which they are painted
TARGET = target_of("regions", STRUCTURES)
LABELS = {name: [n for n, part in enumerate(STRUCTURES, 1) if part in region(name)] for name in STRUCTURES}
LEARNT = 50.0  # Dice points
DATASET = "Dataset001_Parity"
PLANS, CONFIGURATION = "nnUNetPlans", "3d_fullres"
RECIPE = [
    "--model.target=regions", f"--model.structures={list(STRUCTURES)}", "--model.channels=[8, 16, 32, 64]",
    "--data.patch_zyx=[24, 48, 48]", "--data.val_fraction=0.25", "--data.clusters=drop", "--train.batch=2", "--train.ranks=1",
    "--validation.every=null", "--loader.kind=local", "--loader.readers=1", "--tracking.wandb=off",
]  # fmt: skip

Masks = Mapping[str, np.ndarray]
Predictor = Callable[[np.ndarray, tuple[float, float, float]], Masks]  # HU (z, y, x) and spacing -> masks by structure


def cohort(work: Path) -> Store:
    """The phantom cohort as a store; what is there already stays."""
    make_phantom(work / "phantom", CASES)
    convert([work / "phantom"], work / "store")
    return open_store(work / "store")


def settings_of(store: Store, work: Path, iterations: int, seed: int) -> Settings:
    """Ours, at the median spacing of the cohort, as nnU-Net would have it."""
    spacing = [round(median(axis), 3) for axis in zip(*map(store.spacing_mm_zyx, store.cases), strict=True)]
    given = [f"--data.store={store.path}", f"--runs={work / 'runs'}", f"--seed={seed}", f"--train.steps={iterations}"]
    return config.load("baseline.yaml", [*RECIPE, f"--data.spacing_mm_zyx={spacing}", *given])


def cases_in(store: Store, settings: Settings, split: str) -> list[str]:
    by_case = splits_of(store, settings.data).by_case
    return by_case.index[by_case == split].tolist()


def ours(store: Store, settings: Settings, name: str) -> Predictor:
    """Trained by our trainer."""
    if launch(settings, name):
        raise SystemExit(f"run {name} failed")
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
    check_same_kernels(settings, trainer.network)
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


def check_same_kernels(settings: Settings, network: torch.nn.Module) -> None:
    """Both networks have the same kernels; nnU-Net's has one head more, which its loss gives weight 0."""
    data, channels = settings.data, settings.model.channels
    mine, other = (
        Counter(tuple(weight.shape) for weight in one.parameters() if weight.ndim == 5)
        for one in (build_network(settings.model, len(TARGET.channels), data.patch_zyx, data.spacing_mm_zyx), network)
    )
    unused = (len(TARGET.channels), channels[-2], 1, 1, 1)
    if other - mine != Counter([unused]) or mine - other:
        raise SystemExit(f"the networks differ: ours alone {mine - other}, nnU-Net's alone {other - mine}")


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
    return {name: mean(values) for name, values in found.items()}


def trained(system: str, store: Store, settings: Settings, work: Path) -> Predictor:
    """By "ours" or "nnU-Net"."""
    if system == "ours":
        return ours(store, settings, f"{settings.train.steps}-{settings.seed}")
    prepare_nnunet(store, settings, work / "nnunet")
    return theirs(settings, work / "nnunet")


def table(results: dict[int, list[dict[str, float]]]) -> Iterator[str]:
    """Lines of a Markdown table of [ours, nnU-Net's] by seed."""
    yield "| seed | " + " | ".join(f"{name}: ours | nnU-Net | difference" for name in STRUCTURES) + " |"
    yield "|---|" + "---|---|---|" * len(STRUCTURES)
    for seed, (mine, other) in results.items():
        cells = (f"{mine[name]:.1f} | {other[name]:.1f} | {mine[name] - other[name]:+.1f}" for name in STRUCTURES)
        yield f"| {seed} | {' | '.join(cells)} |"
    yield f"| all | {' | '.join(over_seeds(list(results.values()), name) for name in STRUCTURES)} |"


def over_seeds(pairs: list[list[dict[str, float]]], name: str) -> str:
    """Means over the seeds, and the difference with its standard error."""
    differences = [mine[name] - other[name] for mine, other in pairs]
    error = f" ± {stdev(differences) / math.sqrt(len(pairs)):.1f}" if len(pairs) > 1 else ""
    ours, theirs = (mean(pair[system][name] for pair in pairs) for system in (0, 1))
    return f"{ours:.1f} | {theirs:.1f} | {mean(differences):+.1f}{error}"


def verdict(pairs: list[list[dict[str, float]]]) -> tuple[bool, str]:
    """Whether the gate holds, and a sentence on it."""
    learnt = [name for name in STRUCTURES if mean(other[name] for _, other in pairs) >= LEARNT]
    if not learnt:
        return False, f"nnU-Net has learnt nothing to {LEARNT:g} points: there is nothing to compare; raise --iterations."
    lost = mean(other[name] - mine[name] for mine, other in pairs for name in learnt)
    how = "within 1 point" if abs(lost) <= 1 else f"{abs(lost):.1f} points {'worse' if lost > 0 else 'better'}"
    return lost <= 1, f"The gate {'holds' if lost <= 1 else 'DOES NOT HOLD'}: ours is {how} ({', '.join(learnt)})."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=1000, help=f"steps of each run, a multiple of {EPOCH}")
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
            path = work / "dice" / f"{system}-{given.iterations}-{seed}.json"
            if not path.exists():
                with contextlib.redirect_stdout(stack.enter_context(open(work / "log", "a"))):
                    found = scores(store, cases_in(store, settings, "val_seen"), trained(system, store, settings, work))
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(found))
            results[seed].append(json.loads(path.read_text()))
            print(f"{system}, seed {seed}: {results[seed][-1]}", file=sys.stderr)
    print(f"`python {' '.join(sys.argv)}`: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when it ended.\n")
    print("\n".join(table(results)))
    holds, sentence = verdict(list(results.values()))
    print(f"\n{sentence}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
