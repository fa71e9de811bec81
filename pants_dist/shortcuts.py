"""How far one gets without looking at the scan: AUCs of shortcuts, beside the model's.

Prevalence differs by center, and scanners and protocols by what was looked for, so a pooled AUC rewards whoever knows
where a scan comes from. Within centers the first shortcut is worth 0.5 by construction.
"""

import hashlib
import re
from typing import Any

import numpy as np
import pandas as pd

from pants_dist.bycenter import FEWEST_FOR_AN_AUC, SHORTCUT, score_known, truth_known
from pants_dist.detection import amounts_of, truth_of
from pants_dist.protocol import Analysis
from pants_dist.report import centers_known, centers_of, patients_of
from pants_dist.roc import center_adjusted_auc, center_adjusted_difference, clustered_auc, delong
from pants_dist.stats import NAN, as_floats

SCAN, PREVALENCE = "spacing, shape, phase", "center prevalence alone"
FOLDS = 5
PENALTY = 1.0  # of the squared coefficients of standardized features, halved
PHASES = ("phase", "ct phase")  # columns that may hold the contrast phase
LENGTHS = ("spacing", "shape", "spacing_z_mm", "n_voxels")  # columns of numbers, or of texts that hold some


def with_shortcut(rows: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Rows with the column SHORTCUT, cross-validated over all of them, where they tell lesions and what scans are like."""
    if (truth := truth_known(rows)) is None:
        return rows
    present, chance = truth_of(rows, truth), np.full(len(rows), NAN)
    known = ~np.isnan(present)
    if not (features := scan_features(rows[known])).size:
        return rows
    chance[known] = cross_validated(features, present[known], _patients(rows[known]), analysis.seed)
    return rows.assign(**{SHORTCUT: chance})


def shortcut_scores(rows: pd.DataFrame, present: np.ndarray) -> dict[str, np.ndarray]:
    """Of each shortcut that these rows know a score a case, shape (n,), by its name.

    The prevalence of a center is that among other scans where the rows have it (`scores.prevalence_elsewhere`).
    """
    scores = {}
    if centers_known(rows):
        elsewhere = "center_prevalence" in rows
        scores[PREVALENCE] = as_floats(rows["center_prevalence"] if elsewhere else prevalence_scores(centers_of(rows), present))
    if SHORTCUT in rows:
        scores[SCAN] = as_floats(rows[SHORTCUT])
    return scores


def with_shortcut_areas(presets: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Every line of `presets.detection_table` that has an AUC with the shortcuts' beside it, by the same truth."""
    table = presets.copy()
    for truth in presets["truth"].unique():
        present = truth_of(rows, truth)
        for name, score in shortcut_scores(rows, present).items():
            here = (presets["truth"] == truth) & presets["auc"].notna()
            table.loc[here, f"auc of {name}"] = float(delong(present, [score])[0][0])
    return table


def auc_table(rows: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """AUCs of the model and of the shortcuts on the same cases: pooled, and within centers (Janes & Pepe 2009).

    Columns: score, positives, negatives, pooled and within centers with /low and /high; and of the model `over shortcut`,
    its AUC within centers less that of spacing, shape and phase, with limits and p. Within centers is left out where nobody
    names them. Empty where the rows have no truth or no score.
    """
    truth, column = truth_known(rows), score_known(rows)
    if truth is None or column is None:
        return pd.DataFrame()
    present = truth_of(rows, truth)
    model = amounts_of(rows, column, present)
    usable = ~np.isnan(present) & ~np.isnan(model)
    rows, present, model = rows[usable], present[usable], model[usable]
    if not 0 < present.sum() < present.size:
        return pd.DataFrame()
    rows = rows if SHORTCUT in rows else with_shortcut(rows, analysis)
    scores = {f"model ({column})": model, **shortcut_scores(rows, present)}
    given: dict[str, Any] = {"centers": centers_of(rows), "clusters": patients_of(rows)}
    given |= {"draws": analysis.draws, "seed": analysis.seed}
    table = [_line(name, present, score, centers_known(rows), given) for name, score in scores.items()]
    if SCAN in scores and centers_known(rows):
        more = center_adjusted_difference(present, model, scores[SCAN], **given)
        table[0] |= {"over shortcut": more.value, "over shortcut/low": more.low, "over shortcut/high": more.high, "p": more.p}
    return pd.DataFrame(table)


def _line(name: str, present: np.ndarray, score: np.ndarray, known: bool, given: dict[str, Any]) -> dict[str, Any]:
    pooled = clustered_auc(present, score, **given)
    row: dict[str, Any] = {"score": name, "positives": int(present.sum()), "negatives": int((1 - present).sum())}
    row |= {"pooled": pooled.value, "pooled/low": pooled.low, "pooled/high": pooled.high}
    if not known:
        return row
    within = center_adjusted_auc(present, score, **given).estimate
    return row | {"within centers": within.value, "within centers/low": within.low, "within centers/high": within.high}


def weight_table(rows: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Each center's AUC (NaN below 10 and 10) and its weight in the model's AUC within centers; largest first."""
    truth, column = truth_known(rows), score_known(rows)
    if truth is None or column is None or not centers_known(rows):
        return pd.DataFrame()
    present = truth_of(rows, truth)
    amounts = amounts_of(rows, column, present)
    found = center_adjusted_auc(present, amounts, centers_of(rows), patients_of(rows), analysis.draws, analysis.seed)
    few = found.centers[["positives", "negatives"]].min(axis=1) < FEWEST_FOR_AN_AUC
    table = found.centers.assign(auc=found.centers["auc"].mask(few))
    return table.sort_values(["weight", "center"], ascending=[False, True], ignore_index=True)


def prevalence_scores(centers: list[str], present: np.ndarray) -> np.ndarray:
    """Each case's share of positives in its own center, itself among them: more than one could know; shape (n,)."""
    return pd.Series(present).groupby(centers).transform("mean").to_numpy()


def scan_features(rows: pd.DataFrame) -> np.ndarray:
    """Logarithms of spacing and shape, and one column a phase; shape (n, features), no column where nothing is known.

    A number that is missing in a case is the median of the others.
    """
    columns = [values for name in LENGTHS if name in rows for values in _numbers_in(rows[name]).T]
    found = [np.log(np.where(values > 0, values, np.nan)) for values in columns]
    found = [np.where(np.isnan(values), np.nanmedian(values), values) for values in found if not np.isnan(values).all()]
    phase = next((rows[name].fillna("").astype(str) for name in PHASES if name in rows), pd.Series("", index=rows.index))
    found += [(phase == value).to_numpy(float) for value in sorted(phase.unique())]
    varying = [values for values in found if np.ptp(values) > 0]
    return np.column_stack(varying) if varying else np.zeros((len(rows), 0))


def _numbers_in(cells: pd.Series) -> np.ndarray:
    """Numbers in each cell, "(512, 512, 90)" as three; shape (n, at most 3), NaN where there are fewer."""
    lists = [_of_cell(cell)[:3] for cell in cells]
    width = max((len(numbers) for numbers in lists), default=0)
    return np.array([[*numbers, *[NAN] * (width - len(numbers))] for numbers in lists], float).reshape(len(lists), width)


def _of_cell(cell: Any) -> list[float]:
    if isinstance(cell, str):
        return [float(text) for text in re.findall(r"\d+\.?\d*(?:e-?\d+)?", cell)]
    return [value for value in np.atleast_1d(np.asarray(cell, float)).tolist()] if cell is not None else []


def _patients(rows: pd.DataFrame) -> list[str]:
    return (rows["patient"] if "patient" in rows else rows["case"]).astype(str).tolist()


def cross_validated(features: np.ndarray, present: np.ndarray, patients: list[str], seed: int = 0) -> np.ndarray:
    """Probability of a lesion of each case by a logistic model that was fitted without its fold; shape (n,).

    Five folds of patients, dealt out by a hash of their names, those with a lesion apart. Features are standardized by the
    cases fitted on. NaN where the other folds have one class only.
    """
    folds, chance = _folds(present, patients, seed), np.full(present.size, NAN)
    for fold in range(FOLDS):
        held, kept = folds == fold, folds != fold
        if not held.any() or np.ptp(present[kept]) == 0:
            continue
        middle, width = features[kept].mean(axis=0), features[kept].std(axis=0)
        standard = (features - middle) / np.where(width > 0, width, 1.0)
        beta = ridge_logistic(standard[kept], present[kept])
        chance[held] = 1 / (1 + np.exp(-(beta[0] + standard[held] @ beta[1:])))
    return chance


def _folds(present: np.ndarray, patients: list[str], seed: int) -> np.ndarray:
    lesion = pd.Series(as_floats(present)).groupby(patients).max()
    order = sorted(lesion.index, key=lambda name: (lesion[name], hashlib.sha256(f"{seed}/{name}".encode()).digest()))
    place = {name: number % FOLDS for number, name in enumerate(order)}
    return np.array([place[name] for name in patients])


def ridge_logistic(features: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Intercept and coefficients of a logistic model with a squared penalty on the latter; shape (1 + features,).

    Newton's method (le Cessie & van Houwelingen, Appl Stat 1992;41:191). The penalty keeps a maximum where the classes
    are separated.
    """
    design = np.column_stack([np.ones(len(features)), features])
    penalty = np.diag([0.0] + [PENALTY] * features.shape[1])
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
        information = design.T @ (design * (chance * (1 - chance))[:, None]) + penalty
        step = np.linalg.solve(information, design.T @ (present - chance) - penalty @ beta)
        beta = beta + step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    return beta
