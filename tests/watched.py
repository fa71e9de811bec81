"""Run folders as training and evaluation leave them, for the page to look at."""

from pathlib import Path

import numpy as np

from pants_dist.evaluate import Scored, write_tables
from pants_dist.keptmasks import KeptMasks
from pants_dist.pictures import outlined
from pants_dist.store import open_store
from pants_dist.targets import Masks, holding
from pants_dist.tracking import Tracker
from pants_dist.worst import keep_picture

TOKEN = "t" * 43
EVIL = "<img src=x onerror=document.title='taken'>"
CASES = 24


def write_run(run: Path, steps: int = 40) -> Tracker:
    """A run folder with two seen and two held-out centers, six cases each."""
    run.mkdir(parents=True)
    tracker = Tracker(run, 100, {}, writes=True)
    for step in range(10, steps + 1, 10):
        tracker.log(step, {"train/loss": 2 - step / 100, "loader/wait_fraction": 0.05, "train/samples_per_s": 12.0})
    write_tables(run / "evaluation" / "val_seen", rows_of(), ("liver", "pancreas"))
    return tracker


def rows_of() -> list[dict]:
    """Rows of its cases: centers that are the worse the higher their number, the last of them with an evil name."""
    rng, rows = np.random.default_rng(0), []
    for number in range(CASES):
        center = number % 4
        row = {"case": f"PanTS_{number + 1:08d}", "center": EVIL if center == 3 else f"Center {center}"}
        row |= {"center_kind": "single", "split": "val_seen", "seen": center < 2}
        row |= {"lesion_present": number % 3 > 0, "lesion_predicted": number % 2 > 0}
        for name in ("liver", "pancreas"):
            row[f"dsc/{name}"] = 0.9 - 0.1 * center + 0.02 * rng.normal()
            row[f"hd95_mm/{name}"] = 3.0 + center + rng.random()
        rows.append(row)
    return rows


def keep_predictions(run: Path, store_path: Path) -> None:
    """Masks of the store's cases as an evaluation keeps them: the reference, two voxels further along x; and pictures."""
    store, folder, known = open_store(store_path), run / "evaluation" / "val_seen", {row["case"]: row for row in rows_of()}
    masks = KeptMasks(folder, {"checkpoint": "a"})
    for case in store.cases:
        image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
        names = outlined(store.structures(case))
        table = holding(names, store.palette(case), store.structures(case))
        reference = Masks(names, lambda name, t=table, c=codes, n=names: t[:, n.index(name)][c])
        prediction = {name: np.roll(reference[name], 2, 2) for name in names}
        keep_picture(folder / "worst", Scored(known[case], image, reference, prediction, store.spacing_mm_zyx(case)), [])
        masks.add(case, prediction, worst=True)
