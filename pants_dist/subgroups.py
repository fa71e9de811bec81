"""Who a model does well on: scores by subgroup and by crossings of two, and groups compared at one case mix. Pure.

What is not known is a subgroup of its own, "unknown", never a guess. A subgroup of few cases has a mean and no interval.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pants_dist.cases import EMPTY_CELLS, UNKNOWN, tidy
from pants_dist.stats import (
    FEWEST,
    NAN,
    Labels,
    as_floats,
    critical,
    numbered,
    outermost,
    predictive_values,
    sensitivity_specificity,
    t_interval,
)
from pants_dist.structures import LESION

AGE_YEARS = (40, 50, 60, 70, 80)
SLICE_MM = (1.0, 2.5, 5.0)
TUMOR_MM = (20.0, 40.0)  # between T1, T2 and T3, by greatest diameter: AJCC Cancer Staging Manual, 8th edition, 2017
LESION_MM3 = f"reference_mm3/{LESION}"


def with_bands(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as `evaluate` writes them with the columns age_band (years), slice_band and tumor_band (mm) added.

    Of the columns age, spacing_z_mm and reference_mm3/pancreatic_lesion; where one is missing so is its band. The tumor's
    size is the diameter of a sphere of its volume; tumor_band is "no tumor" where the reference has none.
    """
    found = rows.copy()
    for name, column, edges in (("age_band", "age", AGE_YEARS), ("slice_band", "spacing_z_mm", SLICE_MM)):
        if column in rows:
            known = pd.to_numeric(rows[column], errors="coerce")
            found[name] = bands(known.where(known > 0), edges)  # an age of 0 stands for an unknown one, as in `cohort`
    if LESION_MM3 in rows:
        sizes = bands(sphere_diameter_mm(rows[LESION_MM3]), TUMOR_MM)
        found["tumor_band"] = np.where(as_floats(rows[LESION_MM3]) == 0, "no tumor", sizes)
    return found


def bands(values: Iterable[Any], edges: Sequence[float]) -> list[str]:
    """Each value's band as text: "< 40", "40 to < 60", ">= 60" for the edges 40 and 60; "unknown" for None and NaN."""
    names = [f"< {edges[0]:g}", *(f"{low:g} to < {high:g}" for low, high in zip(edges, edges[1:], strict=False))]
    names.append(f">= {edges[-1]:g}")
    found = as_floats(values)
    places = np.searchsorted(edges, found, "right")
    return [UNKNOWN if math.isnan(value) else names[place] for value, place in zip(found, places, strict=True)]


def sphere_diameter_mm(volumes_mm3: Iterable[Any]) -> np.ndarray:
    """Diameter of the sphere of each volume: a size of tumors that does not depend on how one draws a line across."""
    return np.cbrt(6 / math.pi * as_floats(volumes_mm3))


def texts_of(cells: pd.Series) -> pd.Series:
    """Each cell's text in one spelling, "unknown" where it is blank."""
    return cells.map(lambda cell: UNKNOWN if pd.isna(cell) or (text := tidy(cell)) in EMPTY_CELLS else text)


def subgroups_of(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """The subgroup of each case by one column, or by several crossed: "female, arterial"; empty cells are "unknown"."""
    known = [texts_of(rows[name]) for name in by]
    return pd.Series([", ".join(cells) for cells in zip(*known, strict=True)], rows.index)


def subgroup_table(
    rows: pd.DataFrame,
    by: Sequence[str],
    scores: Sequence[str],
    clusters: Labels | None = None,
    centers: Labels | None = None,
) -> pd.DataFrame:
    """One row a subgroup and score, with the mean and its t-interval over centers, or, of few centers, over patients.

    `rows` is one row a case with the columns of `by` and `scores`; `clusters` and `centers` a label a case (None: each case
    its own; no centers). Columns: subgroup, score, n (with that score), value, low, high. Subgroups in order of their bands
    and names, unknown last.
    """
    groups, labels = subgroups_of(rows, by), _clusters(clusters, len(rows))
    places = np.full(len(rows), "", object) if centers is None else np.asarray(centers, object)
    table = []
    for name in ordered(groups):
        inside = (groups == name).to_numpy()
        for score in scores:
            scored = inside & rows[score].notna().to_numpy()
            found = t_interval(rows[score][scored], outermost(places[scored], labels[scored]))
            table.append((name, score, found.n, found.value, found.low, found.high))
    return pd.DataFrame(table, columns=["subgroup", "score", "n", "value", "low", "high"])


def detection_table(
    rows: pd.DataFrame,
    by: Sequence[str],
    prevalence: float,
    present: str,
    predicted: str,
    clusters: Labels | None = None,
    centers: Labels | None = None,
) -> pd.DataFrame:
    """Sensitivity, specificity, and PPV and NPV at a stated prevalence (0 to 1), a row a subgroup and figure.

    `present` and `predicted` are columns of 1, 0 or None; a prediction that is None counts against the system. The shares
    have Wilson's intervals, PPV and NPV logit intervals (stats.predictive_values), all over clusters, of FEWEST centers or
    more over centers. Columns: subgroup, figure, n, value, low, high; all NaN but n below FEWEST positives or negatives.
    """
    groups, labels = subgroups_of(rows, by), _clusters(clusters, len(rows))
    places = np.full(len(rows), "", object) if centers is None else np.asarray(centers, object)
    table = []
    for name in ordered(groups):
        inside = (groups == name).to_numpy()
        truth, found = as_floats(rows[present][inside]), as_floats(rows[predicted][inside])
        within = (None if clusters is None else labels[inside], places[inside])
        shares = sensitivity_specificity(truth, found, *within)
        values = predictive_values(truth, found, prevalence, *within)
        positives, negatives = (share.n for share in shares)
        for figure, estimate in zip(("sensitivity", "specificity", "PPV", "NPV"), (*shares, *values), strict=True):
            enough = {"sensitivity": positives, "specificity": negatives}.get(figure, min(positives, negatives)) >= FEWEST
            numbers = estimate[:3] if enough else (NAN, NAN, NAN)
            table.append((name, figure, estimate.n, *numbers))
    return pd.DataFrame(table, columns=["subgroup", "figure", "n", "value", "low", "high"])


def adjusted_means(
    values: Iterable[Any],
    groups: Labels,
    case_mix: Mapping[str, Labels],
    clusters: Labels | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean score of each group as it would be if all groups had the case mix of all cases together.

    Least squares on a mean for each group and the centered columns of `case_mix` (such as phase, tumor size, slice
    spacing: numbers as they are, texts as one column a level), so a group's coefficient is its adjusted mean (direct
    standardisation; Lane & Nelder, Biometrics 1982;38:613). Errors are robust to clusters (Liang & Zeger, Biometrika
    1986;73:13) with the correction C / (C - 1) (n - 1) / (n - k) and t of C - 1 degrees. Cases with an unknown score or
    covariate are left out. So are groups that the case mix sets apart from the most cases, such as a center whose one
    phase no other has: they have a mean and NaN. Columns: group, n, mean (as it is), value (adjusted), low, high.
    """
    found, labels = as_floats(values), np.asarray(groups, object)
    mix = pd.DataFrame({name: pd.Series(list(column)) for name, column in case_mix.items()}, range(found.size))
    known = ~np.isnan(found) & mix.notna().all(axis=1).to_numpy() & ~mix.isin(EMPTY_CELLS).any(axis=1).to_numpy()
    y, labels, each = found[known], labels[known], numbered(_clusters(clusters, found.size)[known])
    names = sorted(set(labels.tolist()), key=str)
    if not names:
        return pd.DataFrame(columns=["group", "n", "mean", "value", "low", "high"])
    covariates = pd.get_dummies(mix[known].convert_dtypes()).to_numpy(float)
    members = np.column_stack([labels == name for name in names]).astype(float)
    told = _comparable(members, covariates)
    inside = members[:, told].any(axis=1)
    centered = covariates[inside] - covariates[inside].mean(axis=0)
    beta, errors = _least_squares(np.column_stack([members[inside][:, told], centered]), y[inside], numbered(each[inside]))
    table = pd.DataFrame({"group": names, "n": members.sum(axis=0).astype(int), "mean": members.T @ y / members.sum(axis=0)})
    half = critical(level, max(len(set(each[inside])) - 1, 1)) * errors
    table.loc[told, "value"] = beta[: told.sum()]
    table.loc[told, "low"], table.loc[told, "high"] = ((beta + way * half)[: told.sum()] for way in (-1, 1))
    return table


def _comparable(members: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """The groups (columns of `members`) whose differences at one case mix can be told; of several such sets the one of
    most cases.

    The difference of two groups is estimable where its contrast lies in the design's row space (Searle, Linear Models
    1971, 5.4), so where both have the same part outside of it.
    """
    design = np.column_stack([members, covariates])
    outside = np.eye(design.shape[1]) - np.linalg.pinv(design) @ design
    sets = np.unique(np.round(outside[:, : members.shape[1]], 6) + 0.0, axis=1, return_inverse=True)[1].ravel()
    sizes = np.bincount(sets, weights=members.sum(axis=0))
    return sets == sizes.argmax()


def _least_squares(design: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their cluster-robust errors, NaN where one cluster or no degree of freedom is left."""
    n, inverse = len(y), np.linalg.pinv(design)
    rank, count = int(np.linalg.matrix_rank(design)), int(clusters.max()) + 1
    beta = inverse @ y
    if n <= rank or count < 2:
        return beta, np.full(len(beta), NAN)
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, clusters, design * (y - design @ beta)[:, None])
    bread = inverse @ inverse.T
    variance = np.diag(bread @ scores.T @ scores @ bread) * count / (count - 1) * (n - 1) / (n - rank)
    return beta, np.sqrt(variance)


def _clusters(clusters: Labels | None, count: int) -> np.ndarray:
    return np.arange(count).astype(object) if clusters is None else np.asarray(clusters, object)


def ordered(groups: pd.Series) -> list[str]:
    """Names as text, bands by their lower edge, whatever is unknown last."""

    def place(part: str) -> tuple[float, str]:
        found = re.match(r"(?:<|>=|)\s*(\d+(?:\.\d+)?)", part)
        return (float(found[1]) - part.startswith("<") * 1e-9 if found else -math.inf), part

    return sorted(groups.unique(), key=lambda name: (UNKNOWN in name.split(", "), [place(part) for part in name.split(", ")]))
