"""The bootstrap that this project's intervals use: draw centers, then clusters of cases within each drawn center.

Cases of one center are alike, and scans of one patient more so, so a bootstrap of single cases gives intervals that are
too narrow (Davison & Hinkley, Bootstrap Methods and their Application 1997, 3.8). Everything is a function of the seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pants_dist.stats import Labels

DRAWS = 2000
BLOCK = 4_000_000  # cluster draws made at once


@dataclass(frozen=True)
class Nest:
    """Cases in clusters in centers: `center` and `cluster` number each case, `clusters_of` lists a center's clusters.

    `members[k]` holds the cases of center k. Without given clusters each case is one; a cluster never spans two centers.
    """

    names: tuple[Any, ...]
    center: np.ndarray
    cluster: np.ndarray
    clusters_of: tuple[np.ndarray, ...]
    members: tuple[np.ndarray, ...]


def nest(centers: Labels, clusters: Labels | None = None, keep: np.ndarray | None = None) -> Nest:
    """Number centers and clusters of n cases; centers in order of their names as text. `keep` (n,) picks cases first."""
    if keep is not None:
        centers = list(np.asarray(centers, object)[keep])
        clusters = None if clusters is None else list(np.asarray(clusters, object)[keep])
    names = sorted({center for center in centers}, key=str)
    place = {name: number for number, name in enumerate(names)}
    center = np.array([place[name] for name in centers], int)
    labels = range(len(center)) if clusters is None else clusters
    pairs: dict[tuple[int, Any], int] = {}
    cluster = np.array([pairs.setdefault((int(k), label), len(pairs)) for k, label in zip(center, labels, strict=True)], int)
    members = tuple(np.flatnonzero(center == k) for k in range(len(names)))
    return Nest(tuple(names), center, cluster, tuple(np.unique(cluster[rows]) for rows in members), members)


def cluster_sums(values: np.ndarray, groups: Nest) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of cases of each cluster."""
    count = int(groups.cluster.max(initial=-1)) + 1
    return (
        np.bincount(groups.cluster, weights=values, minlength=count),
        np.bincount(groups.cluster, minlength=count),
    )


def resampled_means(values: np.ndarray, groups: Nest, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean over centers of center means in each of `draws` resamples of as many centers and clusters; shape (draws,)."""
    sums, counts = cluster_sums(values, groups)
    size = len(groups.names)
    drawn = rng.integers(0, size, (draws, size))
    means = np.empty((draws, size))
    for k, own in enumerate(groups.clusters_of):
        places = np.argwhere(drawn == k)
        for start, stop in _blocks(len(places), own.size):
            pick = own[rng.integers(0, own.size, (stop - start, own.size))]
            rows = places[start:stop]
            means[rows[:, 0], rows[:, 1]] = sums[pick].sum(axis=1) / counts[pick].sum(axis=1)
    return means.mean(axis=1)


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(BLOCK // max(width, 1), 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def resampled_weights(groups: Nest, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each case is in each resample of centers and then clusters; integers, shape (draws, n)."""
    size = len(groups.names)
    times = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    count = int(groups.cluster.max(initial=-1)) + 1
    weights = np.zeros((draws, count), np.int32)
    for k, own in enumerate(groups.clusters_of):
        weights[:, own] = rng.multinomial(times[:, k] * own.size, np.full(own.size, 1 / own.size))
    return weights[:, groups.cluster]


def percentile_interval(resamples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a statistic's resamples, without the NaN ones."""
    found = resamples[~np.isnan(resamples)]
    if not found.size:
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_sided_p(resamples: np.ndarray) -> float:
    """Bootstrap p value that the statistic is 0: twice the smaller tail, never 0 (Davison & Hinkley 1997, 4.2.1)."""
    found = resamples[~np.isnan(resamples)]
    smaller = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return float(min(2 * (smaller + 1) / (found.size + 1), 1.0))
