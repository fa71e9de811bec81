"""Peak memory of `predict` and `evaluate` on one scan of 512 x 512 x 1200 voxels, each as a user runs it.

    python benchmarks/longscan.py FOLDER [--slices 1200] [--spacing 1.5]

The scan is a phantom's, its voxels repeated to that size (0.75 x 0.75 x 1 mm). The network has been trained for two steps,
so that its logits are hardly better than noise: the worst case for what measures components and surfaces. Memory is the
sum of the resident sets of all processes of the command, looked at twice a second; what they share counts more than once.
"""

import argparse
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil

SPACING_MM_XYZ = (0.75, 0.75, 1.0)
TRAIN = (
    "--data.patch_zyx=[64, 128, 128]", "--model.channels=[4, 8, 16]",
    "--train.steps=2", "--train.ranks=1", "--train.batch=1", "--train.micro_batch=1", "--loader.kind=local",
    "--tracking.wandb=off",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slices", type=int, default=1200)
    parser.add_argument("--spacing", type=float, default=1.5, help="mm that the network is trained and run at")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    watched(given.folder, "phantom", "small", "--cases", "2", "--centers", "2", "--scale", "0.3")
    for case in ("PanTS_00000001", "PanTS_00000002"):
        enlarge(given.folder, case, given.slices if case.endswith("1") else 64)
    spacing = f"--data.spacing_mm_zyx={[given.spacing] * 3}"
    shape = f"512 x 512 x {given.slices}"
    verbs = (
        ("convert", "large", "store"), ("train", "--config", "debug", "--run-name", "r", "--data.store=store", spacing, *TRAIN),
        ("predict", "runs/r", "large/ImageTr/PanTS_00000001/ct.nii.gz", "masks"),
        ("evaluate", "runs/r", "--split", "train"),
    )  # fmt: skip
    for verb in verbs:
        gb, seconds = watched(given.folder, *verb)
        print(f"{verb[0]}: {shape}, peak {gb:.1f} GB, {seconds:.0f} s", flush=True)


def enlarge(folder: Path, case: str, slices: int) -> None:
    """The phantom's files of a case with every voxel repeated to 512 x 512 x `slices`, in PanTS's layout."""
    for path in sorted((folder / "small").glob(f"*Tr/{case}/**/*.nii.gz")):
        scan = np.asarray(nibabel.load(path).dataobj)
        taken = [np.arange(n) * old // n for n, old in zip((512, 512, slices), scan.shape, strict=True)]
        larger = scan[np.ix_(*taken)]
        out = folder / "large" / path.relative_to(folder / "small")
        out.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(larger, np.diag((*SPACING_MM_XYZ, 1.0)), dtype=larger.dtype), out)


def watched(folder: Path, *words: str) -> tuple[float, float]:
    """Runs the command; returns its peak memory in GB and how long it took in seconds."""
    begun, peak = time.monotonic(), 0
    process = psutil.Popen([sys.executable, "-m", "pants_dist", *words], cwd=folder, stdout=sys.stderr)
    while process.poll() is None:
        peak = max(peak, sum(map(resident, [process, *children(process)])))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return peak / 1e9, time.monotonic() - begun


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


if __name__ == "__main__":
    main()
