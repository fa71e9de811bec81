"""Score cases in their source grid, one row a case; then the tables and the report.

What is scored is a run's own model, or masks that another system wrote (systems.py). Every case is scored once, by one
process or by many. Rows are kept as they come (rows.py), so that a killed evaluation goes on where it was.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conversion.nifti import BadImage
from pants_dist import __version__, report
from pants_dist.config import Settings
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.inference import Prediction, segmented
from pants_dist.keptmasks import KeptMasks, drop_others
from pants_dist.maxprob import strongest_at_1mm
from pants_dist.metrics import DEFAULT_TOLERANCE_MM, TOLERANCES_MM, score_case
from pants_dist.model import Segmenter
from pants_dist.predict import open_run, settings_of_run
from pants_dist.predictions import open_predictions
from pants_dist.protocol import Analysis, read_analysis
from pants_dist.rows import WHOLE, Row, Rows, known_rows
from pants_dist.splits import COLUMNS, DEFAULT_SPLITS, SPLITS, Splits, patients_of, read_split, splits_of
from pants_dist.store import Store, open_store
from pants_dist.structures import LESION, PANCREAS
from pants_dist.systems import OthersMasks, OwnModel, System
from pants_dist.targets import Masks, holding
from pants_dist.worst import keep_picture, keep_worst, pictures_of, worst_table

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
SCORING = 2  # raised with any change of a row's columns or of how they come about; rows of another one are not taken
SHOWN_FAILURES = 10
SHOWN_CENTERS = 32  # at most have a metric of their own; the table has all


@dataclass(frozen=True)
class Scored:
    """One case after scoring: its row, and what a picture of it needs. Arrays are (z, y, x)."""

    row: Row
    image_zyx: np.ndarray
    reference: Mapping[str, np.ndarray]
    prediction: Mapping[str, np.ndarray]
    spacing_mm_zyx: tuple[float, float, float]


OnCase = Callable[[int, int, Row], None]  # of what is done, of how many, and of the last row
Predict = Callable[[str, np.ndarray], Prediction]  # of a case and its HU (z, y, x); may raise BadImage


def score(
    store: Store,
    structures: tuple[str, ...],
    predict: Predict,
    case: str,
    split: str,
    seen: bool,
    tolerances_mm: Mapping[str, float] = TOLERANCES_MM,
) -> Scored:
    """Predict one case and compare it with its reference, in the source grid.

    Without a usable prediction the case is a failure: its status is "no prediction", `failure` says why, and it counts as a
    miss where there is a lesion and as a false alarm where there is none.
    """
    image, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
    spacing, annotated = store.spacing_mm_zyx(case), set(store.value(case, "annotated"))
    table = holding(structures, store.palette(case), store.structures(case))
    reference = Masks(structures, lambda name: table[:, structures.index(name)][codes])
    row = {name: store.value(case, name) for name in COPIED}
    row |= {"split": split, "seen": seen, "status": "scored", "failure": "", "scoring": SCORING}
    row |= {"n_voxels": image.size, "spacing_z_mm": spacing[0]}
    try:
        found = predict(case, image)
        odds = found.lesion_log_odds_zyx
        strongest = None if odds is None else float(odds.max())
        row |= score_case(reference, found.masks, spacing, annotated, tolerances_mm, strongest, odds)
        if odds is not None and LESION in structures:
            within = found.masks[PANCREAS] if PANCREAS in structures else None
            row["lesion_max_logit_1mm"] = strongest_at_1mm(odds, spacing)
            row["lesion_max_logit_1mm_pancreas"] = math.nan if within is None else strongest_at_1mm(odds, spacing, within)
        return Scored(row, image, reference, found.masks, spacing)
    except BadImage as error:
        nothing = Masks(structures, lambda name: np.zeros(image.shape, bool))
        row |= {"status": "no prediction", "failure": str(error)}
        row |= _without_prediction(score_case(reference, nothing, spacing, annotated, tolerances_mm))
        return Scored(row, image, reference, nothing, spacing)


def _without_prediction(scores: Row) -> Row:
    """Scores of a prediction of nothing as those of a failure: Dice 0 stays, what a prediction would have said is unknown."""
    unknown: Row = {name: math.nan for name in scores if name.startswith(("predicted_mm3/", "predicted_voxels/"))}
    if "lesion_present" in scores:
        present = scores["lesion_present"]
        unknown |= {"lesion_components_predicted": None, "lesion_components_false": None}
        unknown["lesion_predicted"] = None if present is None else not present
    return scores | unknown


def score_cases(
    store: Store, model: Segmenter, settings: Settings, cases: Iterable[str], splits: Splits
) -> Iterator[Scored]:
    """These cases, scored in order, as validation during training wants them."""

    def predict(case: str, image_zyx: np.ndarray) -> Prediction:
        return segmented([model], image_zyx, store.spacing_mm_zyx(case))

    seen, structures = seen_cases(store, splits), settings.model.outputs.structures
    model.eval()
    for case in cases:
        yield score(store, structures, predict, case, splits.by_case[case], bool(seen[case]))
    model.train()


def seen_cases(store: Store, splits: Splits) -> pd.Series:
    """Whether each case's center is among those trained on; indexed by case."""
    centers = store.frame("center")["center"]
    return centers.isin(set(centers[splits.by_case == "train"]))


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


@dataclass(frozen=True)
class Evaluation:
    """What is to be scored and where it goes: FOLDER/<split>/ for each of `splits`, FOLDER/report.html for all.

    A slice (i, n) is every n-th case of all splits, from the i-th: n writers that have one each share the work.
    """

    settings: Settings
    store: Store
    assigned: Splits
    splits: tuple[str, ...]
    system: System
    folder: Path
    analysis: Analysis

    @property
    def head(self) -> Row:
        """What its rows are of; others are not taken for them."""
        tolerances = self.analysis.tolerances_mm
        return self.system.head | {
            "scoring": SCORING,
            "tolerances_mm": {name: tolerances.get(name, DEFAULT_TOLERANCE_MM) for name in self.system.structures}
        }

    def cases(self, split: str) -> list[str]:
        """The cases of a split, in the store's order."""
        chosen = set(self.assigned.by_case.index[self.assigned.by_case == split])
        return [case for case in self.store.cases if case in chosen]

    def known(self, split: str) -> dict[str, Row]:
        """Rows of a split that are on the disk and still right, whoever wrote them."""
        return known_rows(self.folder / split, self.head, lambda row: row["state"] == self.system.state(row["case"]))

    def slice(self, slice_: tuple[int, int]) -> list[tuple[str, str]]:
        """Split and case of what is in a slice."""
        every = [(split, case) for split in self.splits for case in self.cases(split)]
        return every[slice_[0] - 1 :: slice_[1]]

    def score(self, slice_: tuple[int, int] = WHOLE, on_case: OnCase | None = None) -> None:
        """Score what is missing of a slice."""
        seen, mine, done = seen_cases(self.store, self.assigned), self.slice(slice_), 0
        patients, trained = patients_of(self.store.frame(*COLUMNS)), int((self.assigned.by_case == "train").sum())
        structures, predict, tolerances = self.system.structures, self.system.predict, self.analysis.tolerances_mm
        for split in self.splits:
            folder, known = self.folder / split, self.known(split)
            rows, masks = Rows(folder, self.head, slice_), KeptMasks(folder, self.head, slice_)
            for case in (case for part, case in mine if part == split):
                if case not in known:
                    scored = score(self.store, structures, predict, case, split, bool(seen[case]), tolerances)
                    scored.row.update(patient=patients[case], trained_cases=trained, state=self.system.state(case))
                    masks.add(case, scored.prediction, keep_picture(folder / "worst", scored, list(known.values())))
                    rows.add(scored.row)
                    known[case] = scored.row
                done += 1
                if on_case:
                    on_case(done, len(mine), known[case])

    def finish(self) -> pd.DataFrame | None:
        """Write tables, pictures and report of all rows, and return these; None, and nothing done, while some are missing."""
        known = {split: self.known(split) for split in self.splits}
        if any(set(self.cases(split)) - known[split].keys() for split in self.splits):
            return None
        tables, facts = [], facts_of(self.settings) | self.system.facts
        for split in self.splits:
            folder, rows = self.folder / split, [known[split][case] for case in self.cases(split)]
            keep_worst(folder / "worst", rows)
            drop_others(folder, self.head)
            tables.append(write_tables(folder, rows, self.system.structures))
            write_report(folder, tables[-1], self.system.structures, facts, [folder / "worst"])
        everything = pd.concat(tables, ignore_index=True)
        worst = [self.folder / split / "worst" for split in self.splits]
        write_report(self.folder, everything, self.system.structures, facts, worst)
        return everything


@dataclass(frozen=True)
class Order:
    """What to evaluate: splits of a run (val_seen and held_out unless told), by its own model or by `predictions`.

    Those are a folder of masks (predictions.py). `mirror`, for the own model, is as in inference.py. `analysis` is a file
    that declares the tolerances of surface Dice (protocol.py).
    """

    run: Path
    splits: tuple[str, ...] | None = None
    predictions: Path | None = None
    mirror: bool = False
    analysis: Path | None = None

    @property
    def folder(self) -> Path:
        """Where it goes."""
        return self.run / (f"evaluation-{self.predictions.resolve().name}" if self.predictions else "evaluation")


def open_evaluation(order: Order) -> Evaluation:
    """What an order comes to. Raises UserError for a folder that is no run or has no checkpoint yet, for a split without
    cases, for predictions that are not there, and for an analysis that cannot be read."""
    settings = settings_of_run(order.run)
    checkpoint = None if order.predictions else open_run(order.run)[0]
    store = open_store(settings.data.store, settings.data.io)
    assigned = splits_of(store, settings.data)
    chosen = chosen_splits(assigned.by_case, order.splits)
    if checkpoint:
        system: System = OwnModel(store, settings, checkpoint, order.mirror)
    elif order.predictions:
        cases = [case for case in store.cases if assigned.by_case[case] in chosen]
        system = OthersMasks(store, open_predictions(order.predictions, settings.model.outputs.structures, cases))
    return Evaluation(settings, store, assigned, chosen, system, order.folder, read_analysis(order.analysis))


def evaluate(run: Path, splits: tuple[str, ...] | None = None, on_case: OnCase | None = None) -> pd.DataFrame:
    """Score the splits of a run (val_seen and held_out unless told) and write tables, pictures and report.html.

    `on_case(done, total, row)` is called for each case. Returns the rows, one a case. Raises UserError as `open_evaluation`.
    """
    evaluation = open_evaluation(Order(run, splits))
    evaluation.score(on_case=on_case)
    return evaluation.finish()


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


def failure_lines(rows: pd.DataFrame) -> list[str]:
    """Which cases have no usable prediction, and how they count."""
    lost = rows[rows["status"] == "no prediction"]
    lines = [f"{row['case']}: {row['failure']}" for row in lost.head(SHOWN_FAILURES).to_dict("records")]
    if len(lost):
        lines.append(
            f"{len(lost):,} of {len(rows):,} cases have no prediction: Dice 0, a miss with a lesion, a false alarm without"
        )
    return lines


def facts_of(settings: Settings) -> dict[str, str]:
    """What the head of a report says of the data behind it."""
    path = settings.data.split_file
    frozen = {"Frozen split": f"{Path(path).name}, digest {read_split(Path(path))['digest'][:12]}"} if path else {}
    return {"Store": Path(settings.data.store).name, **frozen, "Code": f"pants-dist {__version__}"}


def write_report(
    folder: Path, cases: pd.DataFrame, structures: tuple[str, ...], facts: dict[str, str], worst: list[Path]
) -> Path:
    """report.html of these rows in `folder`, with the worst cases' pictures out of the folders `worst`; worst_cases.csv."""
    splits = ", ".join(dict.fromkeys(cases["split"]))
    with replacing(folder / "worst_cases.csv") as file:
        worst_table(cases, structures).to_csv(file, index=False)
    return report.write_report(folder, cases, structures, {"Split": splits, **facts}, pictures_of(cases, worst))
