"""For the tests of the conversion: small datasets in PanTS's layout, with boxes that overlap and orientations that vary;
conversions in processes of their own.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conversion import nifti
from pants_dist.structures import PANTS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
REAL_CT = SHARED / "data" / "real_ct_pants"
DIRECTIONS = ([1, 1, 1], [-1, -1, 1], [-1, 1, 1], [1, -1, -1])


def need(path: Path) -> Path:
    """The path, if it is there; skips the test where it is not, except in CI."""
    if not path.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"{path} is missing")
    return path


def write_pants(root: Path, numbers: list[int], shape_ijk: tuple[int, int, int] = (20, 24, 16), seed: int = 0) -> Path:
    """Cases PanTS_<number> with all 28 masks and a metadata.csv (readable as metadata.xlsx is); returns `root`."""
    for number in numbers:
        write_pants_case(root, f"PanTS_{number:08d}", shape_ijk, np.random.default_rng([seed, number]))
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["PanTS ID", "site", "site detail", "sex", "age", "ct phase", "tumor?"])
        writer.writerows(
            [f"PanTS_{n:08d}", "1 Site", f"Hospital {'ABC'[n % 3]}", "M ", 40 + n, "Venous", n % 2] for n in numbers
        )
    return root


def write_pants_case(root: Path, case: str, shape_ijk: tuple[int, int, int], rng: np.random.Generator) -> None:
    part = "Te" if int(case[-8:]) > 9000 else "Tr"
    affine = np.diag([*(np.array(DIRECTIONS[int(case[-8:]) % 4]) * [0.8, 0.7, 2.5]), 1.0])
    affine[:3, 3] = rng.normal(0, 100, 3)
    ct = rng.integers(-1024, 1500, shape_ijk).astype(np.int16)
    nifti.write(root / f"Image{part}" / case / "ct.nii.gz", ct, affine)
    for name in PANTS:
        mask = np.zeros(shape_ijk, np.uint8)
        if name != "prostate":  # stays empty
            corner = rng.integers(0, np.array(shape_ijk) - 4)
            mask[tuple(slice(c, c + n) for c, n in zip(corner, rng.integers(2, 12, 3), strict=True))] = 1
        nifti.write(root / f"Label{part}" / case / "segmentations" / f"{name}.nii.gz", mask, affine)


def files_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "cases").iterdir())}


def convert_in_a_process(source: Path, store: Path, before: str = "", workers: int = 2) -> subprocess.Popen:
    """`convert` in a process of its own, which prints a line an event; `before` is code to run first."""
    program = f"""
import resource
from pathlib import Path
from conversion.run import convert
if __name__ == "__main__":
    {before or "pass"}
    convert([Path({str(source)!r})], Path({str(store)!r}), workers={workers}, on_event=lambda e: print(e.kind, flush=True))
"""
    script = store.with_suffix(".py")
    script.write_text(program)
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
