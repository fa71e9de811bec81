"""Is what we train as good as what nnU-Net's own trainer trains? The same network, cases and steps; Dice on held-out cases.

    python benchmarks/parity.py [--iterations 400] [--seeds 3] [--work FOLDER]

Both learn the structures below on the training cases of a phantom cohort, and are scored on the rest by our `metrics.dice` in
the scans' own grids, with the pancreas as the whole organ. Same for both: spacing, patch, batch, channels, kernels, strides,
regions with sigmoid, SGD with its polynomial schedule, one of two patches forced to foreground, no test-time mirroring.
Each has its own reading, resampling, augmentation, loss, initialisation and inference. nnU-Net is told one thing that it
does not do by itself: to mirror no patch left to right, as we do not. The gate: mean Dice over seeds, structures and cases
within one point. Needs nnunetv2 (2.8.1 was tried); --work keeps what was made, and a second call goes on with it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conversion import nifti
from pants_dist.config import load
from pants_dist.metrics import dice
from pants_dist.splits import splits_of
from pants_dist.store import Store, open_store
from pants_dist.strides import dynunet_levels
from pants_dist.structures import LESION, PANCREAS
from pants_dist.targets import holding

STRUCTURES = ("liver", "spleen", "kidney_left", "stomach", PANCREAS, LESION)
GATED = STRUCTURES[:-1]  # lesions of a few voxels differ by more from seed to seed
SPACING_MM_ZYX, PATCH_ZYX, CHANNELS, BATCH = (6.0, 3.2, 3.2), (32, 64, 64), (16, 32, 64), 2
CASES, EPOCHS, LIMIT_POINTS = 24, 20, 1.0
DATASET, CONFIGURATION, TEST_SPLIT = "Dataset900_Parity", "3d_fullres", "val_seen"


def settings_words(store: Path, runs: Path, seed: int, iterations: int) -> list[str]:
    """Ours: baseline.yaml, small."""
    changes = {
        "data.store": store, "runs": runs, "seed": seed, "data.spacing_mm_zyx": list(SPACING_MM_ZYX),
        "data.patch_zyx": list(PATCH_ZYX), "data.val_fraction": 0.3, "model.target": "regions",
        "model.structures": f"[{', '.join(STRUCTURES)}]", "model.channels": list(CHANNELS), "train.steps": iterations,
        "train.ranks": 1, "train.batch": BATCH, "train.micro_batch": BATCH, "validation.every": "null", "loader.kind": "local",
        "loader.readers": 1, "tracking.wandb": "off",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in changes.items()]


def ours(store: Path, work: Path, seed: int, iterations: int) -> pd.DataFrame:
    """Dice by case and structure of a run of ours."""
    runs, name = work / "ours", f"seed{seed}"
    train = ["train", "--config", "baseline", "--run-name", name, *settings_words(store, runs, seed, iterations)]
    for words in (train, ["evaluate", str(runs / name), "--split", TEST_SPLIT]):
        with open(work / f"ours-{seed}.log", "a") as log:
            subprocess.run([sys.executable, "-m", "pants_dist", *words], stdout=log, stderr=log, check=True)
    rows = pd.read_parquet(runs / name / "evaluation" / TEST_SPLIT / "cases.parquet").set_index("case")
    return rows[[f"dsc/{name}" for name in STRUCTURES]].set_axis(STRUCTURES, axis=1)


def masks(store: Store, case: str) -> tuple[np.ndarray, np.ndarray]:
    """HU (z, y, x) and the structures' masks (structures, z, y, x), as we score them."""
    hu, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
    table = holding(STRUCTURES, store.palette(case), store.structures(case))
    return hu, np.moveaxis(table[codes], -1, 0)


def write_raw(store: Store, folder: Path) -> None:
    """The cohort as nnU-Net wants it: structures painted in order, the lesion last, into one label map."""
    for case in store.cases:
        hu, inside = masks(store, case)
        labels = np.zeros(hu.shape, np.uint8)
        for number, mask in enumerate(inside, 1):
            labels[mask] = number
        affine = np.diag([*store.spacing_mm_zyx(case)[::-1], 1.0])
        for kind, array, end in (("imagesTr", hu, "_0000"), ("labelsTr", labels, "")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nifti.write(folder / kind / f"{case}{end}.nii.gz", np.asfortranarray(array.T), affine)
    numbers: dict[str, Any] = {name: number for number, name in enumerate(STRUCTURES, 1)}
    numbers[PANCREAS] = [numbers[PANCREAS], numbers[LESION]]
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": {"background": 0, **numbers}, "file_ending": ".nii.gz",
        "regions_class_order": list(range(1, len(STRUCTURES) + 1)), "numTraining": len(store.cases),
    }))  # fmt: skip


def planned(preprocessed: Path) -> dict[str, Any]:
    """nnU-Net's own plans, with our spacing, patch, batch and shape of the network."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    api.extract_fingerprints([900], num_processes=1, check_dataset_integrity=True)
    api.plan_experiments([900])
    path = preprocessed / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    chosen, levels = plans["configurations"][CONFIGURATION], dynunet_levels(len(CHANNELS), PATCH_ZYX, SPACING_MM_ZYX)
    chosen |= {"spacing": list(SPACING_MM_ZYX), "patch_size": list(PATCH_ZYX), "batch_size": BATCH, "batch_dice": False}
    chosen["architecture"]["arch_kwargs"] |= {
        "n_stages": len(levels), "features_per_stage": list(CHANNELS), "n_conv_per_stage": [2] * len(levels),
        "n_conv_per_stage_decoder": [2] * (len(levels) - 1),
        "kernel_sizes": [list(level.kernel_zyx) for level in levels], "strides": [list(level.stride_zyx) for level in levels],
    }  # fmt: skip
    path.write_text(json.dumps(plans))
    api.preprocess_dataset(900, configurations=(CONFIGURATION,), num_processes=(1,))
    return plans


def nnunet(store: Store, work: Path, test: Sequence[str], seed: int, iterations: int) -> pd.DataFrame:
    """Dice by case and structure of nnU-Net's trainer, in this process."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):
        def __init__(self, **given: Any) -> None:
            # its schedule changes once an epoch; its own validation is cut short
            super().__init__(**given)
            self.num_epochs, self.num_iterations_per_epoch = EPOCHS, iterations // EPOCHS
            self.num_val_iterations_per_epoch, self.disable_checkpointing = 1, True

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802  # its name
            *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            self.inference_allowed_mirroring_axes = (0, 1)
            return *others, (0, 1)

        def perform_actual_validation(self, save_probabilities: bool = False) -> None:
            return

    raw, preprocessed = work / "raw" / DATASET, work / "preprocessed"
    if not (raw / "dataset.json").is_file():
        write_raw(store, raw)
    plans_file = preprocessed / DATASET / "nnUNetPlans.json"
    if not (preprocessed / DATASET / "splits_final.json").is_file():
        planned(preprocessed)
        split = {"train": [case for case in store.cases if case not in test], "val": list(test)}
        (preprocessed / DATASET / "splits_final.json").write_text(json.dumps([split]))
    np.random.seed(seed)
    torch.manual_seed(seed)
    plans, about = (json.loads(path.read_text()) for path in (plans_file, raw / "dataset.json"))
    plans["continue_training"] = False
    trainer = Trainer(plans=plans, configuration=CONFIGURATION, fold=0, dataset_json=about, device=torch.device("cpu"))
    trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()], about,
        "Trainer", (0, 1),
    )  # fmt: skip
    out = work / f"nnunet-{seed}"
    files = [[str(raw / "imagesTr" / f"{case}_0000.nii.gz")] for case in test]
    predictor.predict_from_files_sequential(files, [str(out / case) for case in test])
    return pd.DataFrame({case: scored(store, case, out / f"{case}.nii.gz") for case in test}).T


def scored(store: Store, case: str, prediction: Path) -> dict[str, float]:
    """Dice of a label map as `write_raw` paints them; NaN where the reference has none."""
    labels = nifti.read(prediction).array_ijk.T
    found = [labels == number for number in range(1, len(STRUCTURES) + 1)]
    found[STRUCTURES.index(PANCREAS)] |= found[STRUCTURES.index(LESION)]
    reference = masks(store, case)[1]
    return {
        name: dice(mask, predicted) if mask.any() else np.nan
        for name, mask, predicted in zip(STRUCTURES, reference, found, strict=True)
    }


def made(work: Path) -> Path:
    """A store of a phantom cohort in this folder."""
    store = work / "store"
    for words in (["phantom", work / "PanTS", "--cases", CASES], ["convert", work / "PanTS", store]):
        if not (store / "manifest.parquet").is_file():
            subprocess.run([sys.executable, "-m", "pants_dist", *map(str, words)], stdout=subprocess.DEVNULL, check=True)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for it all (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (given.work or Path(folder)).absolute()
        for name in ("raw", "preprocessed", "results"):  # nnU-Net reads these as it is imported
            os.environ[f"nnUNet_{name}"] = str(work / name)
        os.environ["nnUNet_n_proc_DA"] = "0"
        store = made(work)
        words = settings_words(store, work, 0, given.iterations)
        opened = open_store(store)
        by_case = splits_of(opened, load("baseline", words).data).by_case
        test = by_case.index[by_case == TEST_SPLIT].tolist()
        print(f"`python {' '.join(sys.argv)}`: {os.cpu_count()} cores, {given.iterations} steps, {len(test)} test cases\n")
        print(f"| seed | trainer | {' | '.join(STRUCTURES)} | mean without lesion |\n|---|---|{'---|' * len(STRUCTURES)}---|")
        means: dict[str, list[float]] = {"pants-dist": [], "nnU-Net": []}
        for seed in range(given.seeds):
            for name in means:
                own = name == "pants-dist"
                rows = ours(store, work, seed, given.iterations) if own else nnunet(opened, work, test, seed, given.iterations)
                by_structure = rows.mean()
                means[name].append(float(by_structure[list(GATED)].mean()))
                cells = " | ".join(f"{value:.3f}" for value in [*by_structure, means[name][-1]])
                print(f"| {seed} | {name} | {cells} |", flush=True)
    mine, theirs = (100 * float(np.mean(values)) for values in means.values())
    verdict = "within" if mine - theirs >= -LIMIT_POINTS else "NOT within"
    print(f"\nours {mine:.1f}, nnU-Net {theirs:.1f} points of Dice: {mine - theirs:+.1f}, {verdict} {LIMIT_POINTS:g} point")


if __name__ == "__main__":
    main()
