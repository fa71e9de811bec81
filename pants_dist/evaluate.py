"""Score cases: sliding window over each, in its source grid, one row a case; then the tables and the report.

Every case is scored once. Rows are appended to rows.jsonl as they come, so that a killed evaluation goes on where it was.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import sliding_window_inference

from pants_dist import __version__, config, report
from pants_dist.augment import resampled
from pants_dist.casefile import AIR_HU, file_digest
from pants_dist.checkpoints import best_checkpoint, read_checkpoint
from pants_dist.config import Settings
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.heartbeat import doing
from pants_dist.metrics import score_case
from pants_dist.model import Intensity, Segmenter
from pants_dist.pictures import draw_case, plane_of, write_plane
from pants_dist.splits import SPLITS, Splits, read_split, splits_of
from pants_dist.store import Store, open_store
from pants_dist.structures import LESION, PANCREAS
from pants_dist.targets import PredictedMasks, holding, log_odds
from pants_dist.transfer import AVERAGE

COPIED = (
    "case",
    "dataset",
    "center",
    "center_kind",
    "phase",
    "sex",
    "age",
    "manufacturer",
    "nationality",
    "study_year",
    "tumor_flag",
)
DEFAULT_SPLITS = ("val_seen", "held_out")
WORST = 6  # pictures a split keeps
SHOWN_CENTERS = 32  # at most have a metric of their own; the table has all


@dataclass(frozen=True)
class Scored:
    """One case after inference: its row, and what a picture of it needs. Arrays are (z, y, x)."""

    row: dict[str, Any]
    image_zyx: np.ndarray
    reference: Mapping[str, np.ndarray]
    prediction: Mapping[str, np.ndarray]
    spacing_mm_zyx: tuple[float, float, float]


def predict(
    model: Segmenter, image_zyx: np.ndarray, settings: Settings, spacing_mm_zyx: tuple[float, float, float]
) -> torch.Tensor:
    """Logits (channels, z, y, x), float32 on the CPU, of CT in HU with this spacing: overlapping Gaussian windows.

    A network that was trained at a spacing of its own predicts at that; its logits are brought back linearly.
    """
    image, trained = torch.from_numpy(image_zyx.astype(np.float32))[None], settings.data.spacing_mm_zyx
    if trained:
        step = [to / own for to, own in zip(trained, spacing_mm_zyx, strict=True)]
        size = [math.ceil(length / ratio) for length, ratio in zip(image_zyx.shape, step, strict=True)]
        image = resampled(image, _scaled(step), (size[0], size[1], size[2]), AIR_HU)
    logits = sliding_window_inference(
        image[None], settings.data.patch_zyx, 2, model, settings.validation.overlap, mode="gaussian",
        sw_device=model.device, device="cpu", padding_mode="constant", cval=AIR_HU,
    )[0].float()  # fmt: skip
    if trained:
        back = [1 / ratio for ratio in step]
        z, y, x = image_zyx.shape
        logits = torch.stack([resampled(one[None], _scaled(back), (z, y, x), float(one.min()))[0] for one in logits])
    return logits


def _scaled(step_zyx: list[float]) -> torch.Tensor:
    """The way from voxels `step_zyx` times as large into a grid whose first voxel has the same outer corner."""
    return torch.tensor([
        [step if axis == row else 0.0 for axis in range(3)] + [(step - 1) / 2] for row, step in enumerate(step_zyx)
    ], dtype=torch.float64)  # fmt: skip


@torch.no_grad()
def score(store: Store, model: Segmenter, settings: Settings, case: str, split: str, seen: bool) -> Scored:
    """Predict one case and compare it with its reference, in the source grid."""
    structures = settings.model.outputs.structures
    image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
    spacing = store.spacing_mm_zyx(case)
    logits = predict(model, image, settings, spacing)
    table = holding(structures, store.palette(case), store.structures(case))
    reference = {name: table[:, n][codes] for n, name in enumerate(structures)}
    prediction = PredictedMasks(model.target, logits)
    strongest = float(log_odds(model.target, logits, LESION).max()) if LESION in structures else None
    annotated = set(store.value(case, "annotated"))
    row = {name: store.value(case, name) for name in COPIED}
    row |= {"split": split, "seen": seen, "status": "scored", "n_voxels": image.size, "spacing_z_mm": spacing[0]}
    row |= score_case(reference, prediction, spacing, annotated, lesion_max_logit=strongest)
    return Scored(row, image, reference, prediction, spacing)


def score_cases(
    store: Store, model: Segmenter, settings: Settings, cases: Iterable[str], splits: Splits
) -> Iterator[Scored]:
    """These cases, scored in order, as validation during training wants them."""
    seen = seen_cases(store, splits)
    model.eval()
    for case in cases:
        doing("validation")
        yield score(store, model, settings, case, splits.by_case[case], seen[case])
    model.train()


def seen_cases(store: Store, splits: Splits) -> pd.Series:
    """Whether each case's center is among those trained on; indexed by case."""
    centers = store.frame("center")["center"]
    return centers.isin(set(centers[splits.by_case == "train"]))


def validation_cases(store: Store, settings: Settings, splits: Splits) -> list[str]:
    """The fixed sample that is scored during training: `validation.cases` of seen and of held-out, center by center in turn."""
    centers, chosen = store.frame("center"), list[str]()
    for split in DEFAULT_SPLITS:
        rows = centers[splits.by_case == split]
        turn = rows.groupby("center").cumcount()
        ordered = rows.assign(turn=turn).sort_values(["turn", "center"], kind="stable").index.tolist()
        chosen += ordered[: settings.validation.cases]
    return chosen


def ood_metrics(rows: list[dict[str, Any]], structures: tuple[str, ...]) -> dict[str, float]:
    """Metric names of a validation: val/ over seen centers, val_ood/ over held-out ones, val/center/<center>/dsc.

    The latter of SHOWN_CENTERS centers at most: those with the most cases, which are the same at every validation.
    """
    table = pd.DataFrame(rows)
    if table.empty:
        return {}
    columns = [f"dsc/{name}" for name in structures]
    table["dsc"] = table[columns].mean(axis=1)
    metrics: dict[str, float] = {}
    for prefix, part in (("val", table[table["seen"]]), ("val_ood", table[~table["seen"]])):
        metrics |= {
            f"{prefix}/{name}": float(part[name].mean()) for name in ("dsc", *columns) if part[name].notna().any()
        }
    shown = table.groupby("center").size().sort_values(ascending=False, kind="stable").index[:SHOWN_CENTERS]
    by_center = table.groupby("center")["dsc"].mean()[sorted(shown)].dropna()
    return metrics | {f"val/center/{center}/dsc": float(value) for center, value in by_center.items()}


def write_tables(folder: Path, rows: list[dict[str, Any]], structures: tuple[str, ...]) -> pd.DataFrame:
    """cases.parquet (sorted by case) and centers.parquet in `folder`; returns the cases."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = pd.DataFrame(rows).sort_values("case", ignore_index=True)
    for name, table in (("cases", cases), ("centers", report.center_table(cases, structures))):
        with replacing(folder / f"{name}.parquet") as file:
            table.to_parquet(file, index=False)
    return cases


def load_model(checkpoint: Path, settings: Settings, store: Store) -> tuple[Segmenter, int]:
    """The trained model of a checkpoint, in evaluation mode, on the GPU if there is one; and the step it was saved at."""
    saved = read_checkpoint(checkpoint)
    model = Segmenter(settings, Intensity(**saved["intensity"]), store)
    model.load_state_dict(saved["state_dict"])
    if AVERAGE in saved:
        model.network.load_state_dict(saved[AVERAGE]["weights"])
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), int(saved["global_step"])


def evaluate(
    run: Path, splits: tuple[str, ...] | None = None, on_case: Callable[[int, int, dict[str, Any]], None] | None = None
) -> pd.DataFrame:
    """Score the splits of a run (val_seen and held_out unless told) and write tables, pictures and report.html.

    `on_case(done, total, row)` is called for each case. Returns the rows, one a case. Raises UserError for a folder that
    is no run, has no checkpoint yet, or where a split has no cases.
    """
    settings, checkpoint = open_run(run)
    store = open_store(settings.data.store, settings.data.io)
    everyone = splits_of(store, settings.data)
    assigned, seen = everyone.by_case, seen_cases(store, everyone)
    chosen = chosen_splits(assigned, splits)
    model, step = load_model(checkpoint, settings, store)
    digest, total, done = file_digest(checkpoint), int(assigned.isin(chosen).sum()), 0
    facts = facts_of(settings, f"{checkpoint.name}, step {step:,}")
    tables = []
    for split in chosen:
        folder, cases = run / "evaluation" / split, [case for case in store.cases if assigned[case] == split]
        rows = Rows(folder, digest)
        for case in cases:
            if case not in rows.known:
                scored = score(store, model, settings, case, split, bool(seen[case]))
                keep_picture(folder / "worst", scored, list(rows.known.values()))
                rows.add(scored.row)
            done += 1
            if on_case:
                on_case(done, total, rows.known[case])
        tables.append(write_tables(folder, [rows.known[case] for case in cases], settings.model.outputs.structures))
        write_report(folder, tables[-1], settings, facts, [folder / "worst"])
    everything = pd.concat(tables, ignore_index=True)
    worst = [run / "evaluation" / split / "worst" for split in chosen]
    write_report(run / "evaluation", everything, settings, facts, worst)
    return everything


def open_run(run: Path) -> tuple[Settings, Path]:
    """Settings of a run folder and the checkpoint to score: the best, or the last where no validation chose one."""
    if not (run / "config.yaml").is_file():
        raise UserError(
            f'run {run}: no config.yaml there, so it is no run folder; give one that "pants-dist train" made'
        )
    if checkpoint := best_checkpoint(run):
        return config.load(run / "config.yaml", []), checkpoint
    raise UserError(
        f'run {run}: no checkpoint yet; run "pants-dist train --config {run / "config.yaml"} --run-name {run.name}"'
    )


def chosen_splits(assigned: pd.Series, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The splits to score. Raises UserError for one that is unknown or has no cases."""
    counts = {split: int((assigned == split).sum()) for split in SPLITS}
    full = [split for split in SPLITS if counts[split]]
    chosen = wanted or tuple(split for split in DEFAULT_SPLITS if counts[split])
    for split in chosen:
        if split not in SPLITS:
            raise UserError(f"--split {split}: unknown; the splits are {', '.join(SPLITS)}")
        if not counts[split]:
            raise UserError(f"--split {split}: this run has no case in it; it has cases in {', '.join(full)}")
    if not chosen:
        raise UserError(
            f"no case in {' or '.join(DEFAULT_SPLITS)}; name a split that has cases: --split {' or '.join(full)}"
        )
    return chosen


class Rows:
    """Scored rows of one split and one checkpoint, appended as they come; a file of another checkpoint is begun anew."""

    def __init__(self, folder: Path, checkpoint_digest: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rows.jsonl"
        head = {"checkpoint": checkpoint_digest, "version": __version__}
        lines = _whole_lines(self.path)
        if not lines or lines[0] != head:
            self.path.write_text(json.dumps(head) + "\n")
            forget_pictures(folder / "worst", [picture.stem for picture in (folder / "worst").glob("*.png")])
            lines = [head]
        else:
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # without a torn last line
        self.known: dict[str, dict[str, Any]] = {row["case"]: row for row in lines[1:]}

    def add(self, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.known[row["case"]] = row


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def mean_dice(row: dict[str, Any]) -> float:
    """Mean Dice over the structures that the case could be scored on; 1 where there were none."""
    values = [value for key, value in row.items() if key.startswith("dsc/") and value is not None and value == value]
    return float(np.mean(values)) if values else 1.0


def worst_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The cases that pictures are kept of, the worst first."""
    return [row["case"] for row in sorted(rows, key=lambda row: (mean_dice(row), row["case"]))[:WORST]]


def keep_picture(folder: Path, scored: Scored, others: list[dict[str, Any]]) -> None:
    """Draw a case if it is among the worst so far, as CASE.png and CASE.npz; those that it displaces go."""
    case, ranked = scored.row["case"], worst_of([*others, scored.row])
    if case not in ranked:
        return
    folder.mkdir(parents=True, exist_ok=True)
    forget_pictures(folder, set(worst_of(others)) - set(ranked))
    title = f"{case} · {scored.row['center']} · mean Dice {mean_dice(scored.row):.2f}"
    shown = [name for name in (PANCREAS, LESION) if name in scored.reference] or list(scored.reference)[:1]
    reference, prediction = ({name: masks[name] for name in shown} for masks in (scored.reference, scored.prediction))
    draw_case(scored.image_zyx, reference, prediction, scored.spacing_mm_zyx, folder / f"{case}.png", title)
    write_plane(folder / f"{case}.npz", plane_of(scored.image_zyx, reference, prediction, title))


def forget_pictures(folder: Path, cases: Iterable[str]) -> None:
    """Remove what `keep_picture` made of these cases."""
    for case in cases:
        for ending in ("png", "npz"):
            (folder / f"{case}.{ending}").unlink(missing_ok=True)


def facts_of(settings: Settings, checkpoint: str) -> dict[str, str]:
    """What the head of a report says of how its rows came about."""
    path = settings.data.split_file
    frozen = {"Frozen split": f"{Path(path).name}, digest {read_split(Path(path))['digest'][:12]}"} if path else {}
    return {
        "Store": Path(settings.data.store).name,
        **frozen,
        "Checkpoint": checkpoint,
        "Network": f"{settings.model.name}, patch {' x '.join(map(str, settings.data.patch_zyx))}",
        "Code": f"pants-dist {__version__}",
    }


def write_report(folder: Path, cases: pd.DataFrame, settings: Settings, facts: dict[str, str], worst: list[Path]) -> Path:
    """report.html of these rows in `folder`, with the worst cases' pictures out of the folders `worst`."""
    ordered = sorted(cases.to_dict("records"), key=mean_dice)
    found = (root / f"{row['case']}.png" for row in ordered for root in worst)
    pictures = [path for path in found if path.is_file()][:WORST]
    splits = ", ".join(dict.fromkeys(cases["split"]))
    return report.write_report(folder, cases, settings.model.outputs.structures, {"Split": splits, **facts}, pictures)
