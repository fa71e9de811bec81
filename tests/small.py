"""A small real store for tests: blobs in noise, three centers, every file written by the store's own writer."""

import json
from pathlib import Path

import numpy as np

from pants_dist.casefile import RECORD
from pants_dist.store import write_case, write_manifest
from pants_dist.structures import PANTS

LIVER, PANCREAS, LESION = (PANTS.index(name) for name in ("liver", "pancreas", "pancreatic_lesion"))
PALETTE = [0, 1 << LIVER, 1 << PANCREAS, 1 << PANCREAS | 1 << LESION]


def make_store(folder: Path, cases: int = 6, centers: int = 3, edge: int = 36, seed: int = 0) -> Path:
    """A store of `cases` cases of about edge^3 voxels: liver, pancreas and (in every second case) a lesion in it."""
    (folder / "cases").mkdir(parents=True)
    rows = [
        write_small_case(folder, number, f"Center {'ABCDEFGH'[number % centers]}", edge, seed)
        for number in range(cases)
    ]
    write_manifest(folder, rows)
    return folder


def write_small_case(folder: Path, number: int, center: str, edge: int, seed: int) -> dict:
    rng = np.random.default_rng([seed, number])
    shape = tuple(int(n) for n in rng.integers(edge - 4, edge + 5, 3))
    codes = np.zeros(shape, np.uint8)
    z, y, x = (n // 4 for n in shape)
    codes[z : 3 * z, y : 2 * y, x : 3 * x] = 1
    codes[z : 3 * z, 2 * y + 2 : 3 * y, x : 3 * x] = 2
    if number % 2:
        codes[2 * z : 2 * z + 4, 2 * y + 3 : 2 * y + 6, 2 * x : 2 * x + 4] = 3
    hu = np.array([-80, 110, 60, 10])[codes] + rng.normal(0, 15, shape)
    image = np.rint(hu).astype(np.int16)
    case = f"PanTS_{number + 1:08d}"
    present = {"liver": codes == 1, "pancreas": codes >= 2, "pancreatic_lesion": codes == 3}
    record = {name: None for name in RECORD.names} | {
        "case": case, "dataset": "PanTS", "official_split": "train", "center": center, "center_kind": "single",
        "metadata": "{}",
        "spacing_mm_zyx": [2.0, 1.0, 1.0], "palette": [hex(mask) for mask in PALETTE], "structures": list(PANTS),
        "annotated": list(PANTS), "voxels": json.dumps({name: int(mask.sum()) for name, mask in present.items()}),
        "foreground_hu": rng.choice(image[codes > 0], 256).astype(float).tolist(), "sources": "[]", "notes": [],
    }  # fmt: skip
    foreground = {name: np.argwhere(mask)[:500] for name, mask in present.items() if mask.any()}
    return write_case(folder / "cases" / f"{case}.ozx", record, image, codes, foreground)
