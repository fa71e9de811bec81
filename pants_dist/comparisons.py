"""Groups against groups and models against models: tests with effect sizes, adjusted within a declared family."""

from collections.abc import Mapping
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pants_dist.gaps import paired_gap
from pants_dist.resampling import DRAWS
from pants_dist.stats import NAN, Labels, as_floats, benjamini_hochberg, holm

ADJUSTMENTS = {"holm": holm, "bh": benjamini_hochberg}


class Kruskal(NamedTuple):
    """Kruskal-Wallis statistic, p value, effect size epsilon squared (0 none, 1 all), groups and values."""

    statistic: float
    p: float
    epsilon2: float
    groups: int
    n: int


def by_group(values: Any, groups: Labels) -> dict[Any, np.ndarray]:
    """Known values of each group that has any, in order of the groups' names as text."""
    found, labels = as_floats(values), np.asarray(groups, object)
    named = {name: found[(labels == name) & ~np.isnan(found)] for name in sorted(set(labels.tolist()), key=str)}
    return {name: part for name, part in named.items() if part.size}


def kruskal(values: Any, groups: Labels) -> Kruskal:
    """Kruskal-Wallis test that all groups are alike (J Am Stat Assoc 1952;47:583), corrected for ties by SciPy.

    Epsilon squared is H / (n - 1) (Kelley 1935; Tomczak & Tomczak, Trends Sport Sci 2014;21:19). p is NaN below two
    groups, and 1 where all values are equal.
    """
    parts = list(by_group(values, groups).values())
    n = sum(part.size for part in parts)
    if len(parts) < 2:
        return Kruskal(NAN, NAN, NAN, len(parts), n)
    if np.unique(np.concatenate(parts)).size == 1:
        return Kruskal(0.0, 1.0, 0.0, len(parts), n)
    statistic, p = stats.kruskal(*parts)
    return Kruskal(float(statistic), float(p), float(statistic / (n - 1)), len(parts), n)


def pairwise_mann_whitney(values: Any, groups: Labels, adjust: str = "holm") -> pd.DataFrame:
    """Two-sided Mann-Whitney test of every pair of groups, adjusted over all pairs by "holm" or "bh".

    Columns: first, second, n_first, n_second, u, p, p_adjusted, cliffs_delta, which is P(first > second) - P(first <
    second) (Cliff, Psychol Bull 1993;114:494). SciPy's own choice of exact or tie-corrected normal p.
    """
    rows = []
    for (first, ours), (second, theirs) in combinations(by_group(values, groups).items(), 2):
        u, p = stats.mannwhitneyu(ours, theirs, alternative="two-sided")
        delta = 2 * u / (ours.size * theirs.size) - 1
        rows.append((first, second, ours.size, theirs.size, float(u), float(p), NAN, float(delta)))
    names = ["first", "second", "n_first", "n_second", "u", "p", "p_adjusted", "cliffs_delta"]
    table = pd.DataFrame(rows, columns=names)
    table["p_adjusted"] = ADJUSTMENTS[adjust](table["p"])
    return table


def compare_models(
    scores: Mapping[str, Any],
    centers: Labels | None,
    clusters: Labels | None = None,
    adjust: str = "holm",
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every pair of models on the same cases: two-sided, paired, clustered by center, adjusted over all pairs.

    `scores`: one value a case and model, None or NaN where there is none. Columns: first, second, centers, cases,
    difference, low, high, p, p_adjusted, method (see `gaps.paired_gap`).
    """
    rows = []
    for first, second in combinations(scores, 2):
        gap = paired_gap(scores[first], scores[second], centers, clusters, draws, seed)
        rows.append((first, second, gap.seen_centers, gap.cases, gap.value, gap.low, gap.high, gap.p, NAN, gap.method))
    names = ["first", "second", "centers", "cases", "difference", "low", "high", "p", "p_adjusted", "method"]
    table = pd.DataFrame(rows, columns=names)
    table["p_adjusted"] = ADJUSTMENTS[adjust](table["p"])
    return table


def touchstone_wilcoxon(scores: Mapping[str, Any]) -> pd.DataFrame:
    """Touchstone's preset: one-sided Wilcoxon signed-rank test that each model beats each other, Holm over all.

    Bassi et al., Touchstone, NeurIPS 2024 (its plot/SignificanceMaps.py): both directions of each pair are in the family;
    equal scores give p = 1. Cases are taken as independent, which scans of one center are not: for comparison only.
    Columns: better, worse, n, rank_biserial (of signed ranks: 1 if all favor the first; Kerby, Compr Psychol 2014;3:11.IT.3.1),
    p, p_adjusted.
    """
    rows = []
    for better, worse in permutations(scores, 2):
        ours, theirs = as_floats(scores[better]), as_floats(scores[worse])
        whole = ~np.isnan(ours) & ~np.isnan(theirs)
        apart = ours[whole] - theirs[whole]
        p = float(stats.wilcoxon(apart, alternative="greater").pvalue) if apart.any() else 1.0
        rows.append((better, worse, int(whole.sum()), _rank_biserial(apart), p))
    table = pd.DataFrame(rows, columns=["better", "worse", "n", "rank_biserial", "p"])
    table["p_adjusted"] = holm(table["p"])
    return table


def _rank_biserial(apart: np.ndarray) -> float:
    """Share of the ranks of differences that are above 0 less that of those below; 0 where there are none."""
    apart = apart[apart != 0]
    ranks = stats.rankdata(np.abs(apart))
    return float((ranks * np.sign(apart)).sum() / ranks.sum()) if apart.size else 0.0
