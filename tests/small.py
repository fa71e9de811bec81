"""A small real store for tests: blobs in noise, three centers, every file written by the store's own writer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pants_dist import config, plan
from pants_dist.casefile import RECORD
from pants_dist.plan import Plan
from pants_dist.settings import Settings
from pants_dist.splits import splits_of
from pants_dist.store import Store, write_case, write_manifest
from pants_dist.structures import PANTS
from pants_dist.tracking import read_metrics

LIVER, PANCREAS, LESION = (PANTS.index(name) for name in ("liver", "pancreas", "pancreatic_lesion"))
LAUNCH = """
import os, sys
from pants_dist import config, launch
launch.PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", launch.PATIENCE_S))
sys.exit(launch.launch(config.load(sys.argv[1], []), sys.argv[2]))
"""
ODD_SHAPES = [(40, 70, 33), (5, 7, 9), (32, 32, 32), (64, 1, 97), (33, 100, 65)]
PALETTE = [0, 1 << LIVER, 1 << PANCREAS, 1 << PANCREAS | 1 << LESION]


def make_store(
    folder: Path, cases: int = 6, centers: int = 3, edge: int = 36, seed: int = 0, datasets: tuple[str, ...] = ("PanTS",)
) -> Path:
    """A store of `cases` cases of about edge^3 voxels: liver, pancreas and (in every second case) a lesion in it.

    Datasets other than PanTS have annotated pancreas and lesion alone.
    """
    (folder / "cases").mkdir(parents=True)
    rows = [
        write_small_case(
            folder, number, f"Center {'ABCDEFGH'[number % centers]}", edge, seed, datasets[number // 2 % len(datasets)]
        )
        for number in range(cases)
    ]
    write_manifest(folder, rows)
    return folder


def make_odd_store(folder: Path) -> Path:
    """A store of noise in ODD_SHAPES: smaller than a chunk, of whole chunks, uint16 codes, float HU, and nothing but air."""
    (folder / "cases").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number, shape in enumerate(ODD_SHAPES):
        image = rng.integers(-1024, 3000, shape).astype(np.float32 if number == 1 else np.int16)
        codes = (rng.integers(0, 300, shape) * (rng.random(shape) < 0.3)).astype(np.uint16 if number == 0 else np.uint8)
        if number == 4:
            image[:, 32:], codes[:] = -1024, 0
        record = {name: None for name in RECORD.names} | {"case": f"c{number}", "spacing_mm_zyx": [1.0, 1.0, 1.0]}
        record |= {"palette": ["0x0", "0x1", "0x2", "0x3"], "structures": ["a", "b"]}
        path = folder / "cases" / f"c{number}.ozx"
        rows.append(write_case(path, record, image, codes, {"a": np.argwhere(codes)[:9]}))
    write_manifest(folder, rows)
    return folder


def plan_of(store: Store, settings: Settings) -> Plan:
    """The plan that a run with these settings has."""
    return plan.plan_of(store, settings, splits_of(store, settings.data))


def trained_here(wanted: Settings, name: str) -> Path:
    """The run, trained on one rank in this very process, which spares it the time that launching takes."""
    from pants_dist import launch, train  # takes seconds

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    run = launch.prepare_run(wanted, name, "")
    try:
        train.train(wanted, run)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    return run


def launched(wanted: Settings, name: str, steps: int = 3, **environment: str) -> subprocess.Popen:
    """The run in a process of its own, once it has logged so many steps; it speaks into RUNS/log."""
    process = started(wanted, name, **environment)
    reached(Path(wanted.runs) / name, steps, [process])
    return process


def started(wanted: Settings, name: str, **environment: str) -> subprocess.Popen:
    """The run in a process of its own, which speaks into RUNS/log."""
    runs = Path(wanted.runs)
    (runs / "config.yaml").write_text(config.dump(wanted))
    with open(runs / "log", "a") as log:
        command = [sys.executable, "-c", LAUNCH, str(runs / "config.yaml"), name]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)


def last_row(run: Path) -> dict[str, Any]:
    """The run's last line, step and attempt 0 before its first."""
    return (read_metrics(run) or [{"step": 0, "attempt": 0}])[-1]


def reached(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Wait until the run has logged this step, with all processes alive."""
    while last_row(run)["step"] < step:
        assert all(process.poll() is None for process in processes), (run.parent / "log").read_text()
        time.sleep(0.02)


def rank_process(launcher: int, rank: int) -> int:
    """Process id of a rank that this launcher started."""
    below = [process.pid for process in psutil.Process(launcher).children(recursive=True)]
    (found,) = [pid for pid in below if comm(pid) == f"pants rank {rank}"]
    return found


def comm(pid: int) -> str:
    """The short name of a process; "" once it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def write_small_case(folder: Path, number: int, center: str, edge: int, seed: int, dataset: str = "PanTS") -> dict:
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
        "case": case, "dataset": dataset, "official_split": "train", "center": center, "center_kind": "single",
        "metadata": "{}",
        "source_shape_ijk": list(shape[::-1]), "source_affine": [-1.0, 0, 0, 10, 0, 1, 0, 20, 0, 0, 2, 30, 0, 0, 0, 1],
        "spacing_mm_zyx": [2.0, 1.0, 1.0], "palette": [hex(mask) for mask in PALETTE], "structures": list(PANTS),
        "annotated": list(PANTS) if dataset == "PanTS" else ["pancreas", "pancreatic_lesion"],
        "voxels": json.dumps({name: int(mask.sum()) for name, mask in present.items()}),
        "foreground_hu": rng.choice(image[codes > 0], 256).astype(float).tolist(), "sources": "[]", "notes": [],
    }  # fmt: skip
    foreground = {name: np.argwhere(mask)[:500] for name, mask in present.items() if mask.any()}
    return write_case(folder / "cases" / f"{case}.ozx", record, image, codes, foreground)
