import json
from typing import Any

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from pants_dist import metrics, surface
from pants_dist.metrics import dice, hd95_monai_mm, match_components, score_case
from pants_dist.structures import LESION, PANTS

SPACING = (3.0, 0.8, 0.7)


def blob(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random smooth mask, or noise, or one of the degenerate ones: empty, one voxel, a plane, a line, everything."""
    kind = rng.integers(10)
    mask = np.zeros(shape, bool)
    if kind < 5:
        field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.8, 2.5))
        mask = field > np.quantile(field, rng.uniform(0.5, 0.97))
    elif kind == 5:
        mask = rng.random(shape) < rng.uniform(0.02, 0.5)
    elif kind == 6:
        mask[tuple(rng.integers(0, shape))] = True
    elif kind == 7:
        mask[rng.integers(shape[0])] = True
    elif kind == 8:
        mask[:, rng.integers(shape[1]), rng.integers(shape[2])] = True
    elif rng.random() < 0.5:
        mask[:] = True
    return mask


def pairs(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float], float]]:
    """Pairs of masks, a spacing and a tolerance that is often a whole number of voxels."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shape = tuple(int(n) for n in rng.integers(1, 20, 3))
        ours = blob(rng, shape)
        shifted = np.roll(ours, rng.integers(-2, 3, 3), (0, 1, 2))
        theirs = (blob(rng, shape), ours, shifted, shifted)[rng.integers(4)]
        spacing = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.8, 0.8, 5.0), tuple(rng.uniform(0.4, 5, 3))][rng.integers(4)]
        found.append((ours, theirs, spacing, float(rng.choice([0.0, 1.0, 2.0, 5.0, rng.uniform(0, 6)]))))
    return found


def deepmind(monkeypatch: pytest.MonkeyPatch) -> Any:
    """surface-distance 0.1, which asks NumPy and SciPy for names that have since been renamed."""
    monkeypatch.setattr(np, "bool", np.bool_, raising=False)
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    for old in ("filters", "morphology"):
        monkeypatch.setattr(ndimage, old, ndimage, raising=False)
    return surface_distance


@pytest.mark.filterwarnings("ignore")
def test_surface_dice_and_hd95_equal_deepminds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surface Dice and HD95 equal those of DeepMind's surface-distance on 200 random and degenerate pairs."""
    theirs = deepmind(monkeypatch)
    for ours, other, spacing, tolerance in pairs(200, seed=1):
        expected = theirs.compute_surface_distances(ours, other, spacing)
        found = surface.surfaces(ours, other, spacing)
        np.testing.assert_allclose(
            surface.surface_dice(found, tolerance),
            theirs.compute_surface_dice_at_tolerance(expected, tolerance),
            atol=1e-6,
        )
        np.testing.assert_allclose(surface.hausdorff_mm(found), theirs.compute_robust_hausdorff(expected, 95), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_surface_dice_and_the_named_hd95_equal_monais() -> None:
    """nsd equals MONAI's with use_subvoxels=True, and hd95_monai_mm its Hausdorff distance, on 200 pairs."""
    for ours, other, spacing, tolerance in pairs(200, seed=2):
        first, second = (torch.from_numpy(mask)[None, None] for mask in (other, ours))
        expected = compute_surface_dice(first, second, [tolerance], True, spacing=spacing, use_subvoxels=True)
        found = surface.surface_dice(surface.surfaces(ours, other, spacing), tolerance)
        np.testing.assert_allclose(found, float(expected), atol=1e-6)
        if ours.any() and other.any():
            named = compute_hausdorff_distance(first, second, True, percentile=95, spacing=spacing)
            np.testing.assert_allclose(hd95_monai_mm(ours, other, spacing), float(named), atol=1e-4)
            row = score_case({LESION: ours}, {LESION: other}, spacing, {LESION})
            assert row[f"hd95_monai_mm/{LESION}"] == hd95_monai_mm(ours, other, spacing)


@pytest.mark.parametrize("at_once", [50, 1 << 20])
@pytest.mark.parametrize("share", [1e-3, 0.03, 0.5])
@pytest.mark.parametrize("crowded", [0, 1 << 40])
def test_nearest_targets_are_those_of_a_distance_transform(
    at_once: int, share: float, crowded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many points are looked at together, and whether a tree or a transform is asked for what lies far away."""
    monkeypatch.setattr(surface, "AT_ONCE", at_once)
    monkeypatch.setattr(surface, "CROWDED", crowded)
    rng, grid, spacing = np.random.default_rng(5), (21, 30, 17), np.array([2.5, 0.7, 0.9])
    free = rng.random(grid) >= share
    points = np.flatnonzero(rng.random(grid) < 0.2)
    expected = ndimage.distance_transform_edt(free, spacing).ravel()[points]
    found = surface.nearest_mm(points, np.flatnonzero(~free), grid, spacing)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_area_of_a_box_and_a_ball() -> None:
    """A box of n voxels an edge has its six faces less the clipped edges and corners; a ball nears 4 pi r^2."""
    box = np.zeros((6, 7, 8), bool)
    box[1:5, 1:6, 1:7] = True
    found = surface.surfaces(box, box, (1, 1, 1))
    faces = 2 * (3 * 4 + 3 * 5 + 4 * 5)
    edges = 4 * (3 + 4 + 5) * np.sqrt(0.5)
    assert found.reference_mm2.sum() == pytest.approx(faces + edges + 8 * np.sqrt(3) / 8)
    z, y, x = np.mgrid[:45, :45, :45] - 22.0
    ball = z**2 + y**2 + x**2 <= 400
    area = surface.surfaces(ball, ball, (1, 1, 1)).reference_mm2.sum()
    assert area == pytest.approx(4 * np.pi * 400, rel=0.1)  # patches of voxels overestimate a curved surface


def test_planes_apart_by_hand() -> None:
    """Two plates 3 slices of 2 mm apart: HD95 is 6 mm; surface Dice is 1 at 6 mm and below 1 at 5.9 mm."""
    ours, theirs = np.zeros((12, 30, 30), bool), np.zeros((12, 30, 30), bool)
    ours[2, 3:27, 3:27], theirs[5, 3:27, 3:27] = True, True
    found = surface.surfaces(ours, theirs, (2.0, 1.0, 1.0))
    assert surface.hausdorff_mm(found) == 6
    assert surface.surface_dice(found, 6.0) == 1
    assert 0 < surface.surface_dice(found, 5.9) < 0.6


def test_dice_by_hand() -> None:
    """Three and two voxels that share one have Dice 2 / 5; two empty masks have none."""
    ours, theirs = np.array([1, 1, 1, 0], bool), np.array([0, 0, 1, 1], bool)
    assert dice(ours, theirs) == 0.4
    assert np.isnan(dice(ours & False, theirs & False))


def row_of(reference: np.ndarray, prediction: np.ndarray, annotated: set[str], **more: Any) -> dict[str, Any]:
    return score_case({LESION: reference}, {LESION: prediction}, SPACING, annotated, **more)


def test_rules_for_absent_empty_and_unannotated() -> None:
    """Absent: no score but a false-positive volume. Empty prediction: 0 and no HD95. Not annotated: nothing."""
    mask = np.zeros((5, 6, 7), bool)
    mask[2:4, 2:4, 2:5] = True
    volume = 12 * 3.0 * 0.8 * 0.7
    absent = row_of(mask & False, mask, {LESION})
    assert np.isnan([absent[f"{score}/{LESION}"] for score in ("dsc", "nsd", "hd95_mm", "hd95_monai_mm")]).all()
    assert absent[f"predicted_mm3/{LESION}"] == pytest.approx(volume)
    assert (absent["lesion_present"], absent["lesion_predicted"], absent["lesion_components_false"]) == (False, True, 1)
    missed = row_of(mask, mask & False, {LESION}, lesion_max_logit=-2.5)
    assert missed[f"dsc/{LESION}"] == missed[f"nsd/{LESION}"] == 0
    assert np.isnan(missed[f"hd95_mm/{LESION}"]) and np.isnan(missed[f"hd95_monai_mm/{LESION}"])
    assert missed[f"reference_voxels/{LESION}"] == 12
    assert missed["lesion_max_logit"] == -2.5
    unknown = row_of(mask, mask, set())
    assert all(np.isnan(value) for name, value in unknown.items() if "/" in name)
    assert unknown["lesion_present"] is None and unknown["lesion_components_hit"] is None
    assert unknown["lesion_predicted"]
    neither = row_of(mask & False, mask & False, {LESION})
    assert np.isnan(neither[f"dsc/{LESION}"]) and neither[f"predicted_mm3/{LESION}"] == 0
    json.dumps([absent, missed, unknown, neither])


def test_a_full_match_scores_one() -> None:
    """A prediction equal to its reference has Dice 1, surface Dice 1 and HD95 0, also where it fills the volume."""
    row = row_of(np.ones((4, 4, 4), bool), np.ones((4, 4, 4), bool), {LESION})
    assert [row[f"{score}/{LESION}"] for score in ("dsc", "nsd", "hd95_mm")] == [1, 1, 0]


def test_tolerances_by_default() -> None:
    """Pancreas and lesion have 5 mm, ducts and vessels 1 mm, everything else 2 mm; the caller may give others."""
    tolerance = {name: metrics.TOLERANCES_MM.get(name, metrics.DEFAULT_TOLERANCE_MM) for name in PANTS}
    assert set(metrics.TOLERANCES_MM) <= set(PANTS)
    assert {tolerance[name] for name in ("pancreas", "pancreas_head", LESION)} == {5}
    assert {tolerance[name] for name in ("pancreatic_duct", "common_bile_duct", "aorta", "veins")} == {1}
    assert {tolerance[name] for name in ("liver", "spleen", "stomach")} == {2}
    ours, theirs = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    ours[1:4, 1:4, 1:4], theirs[5:8, 1:4, 1:4] = True, True
    assert row_of(ours, theirs, {LESION}, tolerances_mm={LESION: 20.0})[f"nsd/{LESION}"] == 1
    assert row_of(ours, theirs, {LESION}, tolerances_mm={LESION: 0.0})[f"nsd/{LESION}"] < 0.5


def test_masks_of_two_grids_are_refused() -> None:
    """A prediction on another grid than the reference is an error that names both shapes."""
    with pytest.raises(ValueError, match=r"\(3, 3, 3\).*\(3, 3, 4\)"):
        row_of(np.ones((3, 3, 3), bool), np.ones((3, 3, 4), bool), {LESION})


def line(*runs: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((1, 1, 60), bool)
    for start, stop in runs:
        mask[0, 0, start:stop] = True
    return mask


def test_matching_is_one_to_one_and_maximum() -> None:
    """One prediction over two lesions hits one; where a greedy match by IoU would find one pair, two are found."""
    found = match_components(line((0, 5), (8, 13)), line((0, 13)))
    assert (found.reference_hit.sum(), found.prediction_hit.sum()) == (1, 1)
    # The second lesion meets only the second prediction, which is also the best partner of the first lesion.
    found = match_components(line((0, 10), (12, 30)), line((0, 2), (3, 16)))
    assert found.reference_voxels.tolist() == [10, 18]
    assert found.reference_hit.tolist() == [True, True]


def test_matching_needs_an_iou_of_a_tenth() -> None:
    """Overlap of 1 in 10 voxels is a hit and of 1 in 11 is none; voxels that touch at a corner are one component."""
    assert match_components(line((0, 10)), line((9, 10))).reference_hit.tolist() == [True]
    assert match_components(line((0, 11)), line((10, 11))).reference_hit.tolist() == [False]
    corner = np.zeros((2, 2, 2), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert match_components(corner, corner).reference_voxels.tolist() == [2]


def test_matching_counts_are_a_maximum() -> None:
    """On random masks no other one-to-one choice of pairs with IoU >= 0.1 has more of them."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        ours, theirs = (ndimage.gaussian_filter(rng.normal(size=(12, 12, 12)), 1) > 0.25 for _ in range(2))
        found = match_components(ours, theirs)
        assert found.reference_hit.sum() == found.prediction_hit.sum() == most_pairs(ours, theirs)


def most_pairs(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Maximum matching by augmenting paths over components labeled by SciPy."""
    (first, n), (second, m) = (ndimage.label(mask, np.ones((3, 3, 3))) for mask in (ours, theirs))
    partners = [[j for j in range(m) if iou(first == i + 1, second == j + 1) >= 0.1] for i in range(n)]
    owner: dict[int, int] = {}

    def find(i: int, tried: set[int]) -> bool:
        for j in partners[i]:
            if j not in tried:
                tried.add(j)
                if j not in owner or find(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    return sum(find(i, set()) for i in range(n))


def iou(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours & theirs).sum() / (ours | theirs).sum())


def test_each_predicted_component_keeps_its_largest_logit() -> None:
    """FROC columns list the largest logit of each predicted component, in order, and whether it was matched."""
    logits = np.linspace(-1, 1, 60, dtype=np.float32).reshape(1, 1, 60)
    row = row_of(line((0, 5)), line((1, 6), (20, 30)), {LESION}, lesion_logits_zyx=logits)
    assert row["lesion_component_matched"] == [True, False]
    assert row["lesion_component_logits"] == pytest.approx([logits[0, 0, 5], logits[0, 0, 29]])
