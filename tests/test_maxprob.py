import math

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from pants_dist.maxprob import strongest_at_1mm


def by_scipy(odds: np.ndarray, spacing: tuple[float, float, float], inside: np.ndarray | None) -> float:
    """All of the grid, by scipy's interpolator."""
    axes = [np.arange(count) * mm for count, mm in zip(odds.shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*[np.arange(0, axis[-1] + 1e-9, 1.0) for axis in axes], indexing="ij"), axis=-1)
    clear = RegularGridInterpolator(axes, 1 / (1 + np.exp(odds)), bounds_error=False, fill_value=None)(grid)
    if inside is not None:
        nearest = np.floor(grid / spacing + 0.5).astype(int).reshape(-1, 3)
        clear = np.where(inside[tuple(nearest.T)].reshape(clear.shape), clear, np.inf)
    return math.nan if np.isinf(clear).all() else float(np.log1p(-clear.min()) - np.log(clear.min()))


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_largest_of_the_whole_grid(seed: int) -> None:
    """Against scipy on random scans, smooth and rough, thick and thin slices, with and without a region."""
    rng = np.random.default_rng(seed)
    spacing = tuple(rng.uniform(0.4, 3.0, 3))
    odds = rng.normal(0, 6, rng.integers(3, 14, 3))
    inside = rng.random(odds.shape) < 0.3 if seed % 2 else None
    assert strongest_at_1mm(odds, spacing, inside) == pytest.approx(by_scipy(odds, spacing, inside), abs=1e-9)


def test_probabilities_near_one_stay_apart() -> None:
    """At 1 mm the voxels are the grid; logits of 40 and 60 are both probability 1 to float64."""
    odds = np.full((4, 4, 4), -3.0)
    for logit in (40.0, 60.0):
        odds[1, 2, 2] = logit
        assert strongest_at_1mm(odds, (1.0, 1.0, 1.0)) == pytest.approx(logit)


def test_a_peak_between_the_grid_points_counts_less() -> None:
    """By hand: voxels 2 mm apart, p = 0.9 beside p = 0.1, so 0.5 in the middle and 0.9 at the voxel; one slice counts, too."""
    odds = np.log(np.array([0.1, 0.9, 0.1]) / np.array([0.9, 0.1, 0.9]))[None, None]
    assert strongest_at_1mm(odds, (1.0, 1.0, 2.0)) == pytest.approx(math.log(9))
    assert strongest_at_1mm(odds, (1.0, 1.0, 0.8)) == pytest.approx(math.log(0.7 / 0.3))  # at 1 mm: 1.25 voxels on
    assert math.isnan(strongest_at_1mm(odds, (1.0, 1.0, 2.0), np.zeros((1, 1, 3), bool)))
