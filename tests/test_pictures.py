from pathlib import Path

import numpy as np
from matplotlib.image import imread

from pants_dist.pictures import PREDICTION_COLOR, REFERENCE_COLOR, as_seen, body_of, draw_case, slice_to_show


def masks() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    pancreas, lesion = np.zeros((2, 10, 40, 60), bool)
    pancreas[2:8, 10:30, 20:50] = True
    lesion[6, 12:20, 22:30] = True
    return {"pancreas": pancreas, "pancreatic_lesion": lesion}, {"pancreas": np.roll(pancreas, 4, 2)}


def test_the_slice_shows_the_lesion_else_the_organ_else_the_prediction() -> None:
    """What matters most decides the slice; with nothing at all it is the middle one."""
    reference, prediction = masks()
    empty = {"pancreas": np.zeros((10, 40, 60), bool)}
    assert slice_to_show(reference, prediction) == 6
    assert slice_to_show({"pancreas": reference["pancreas"]}, prediction) == 2
    assert slice_to_show(empty, {"pancreas": reference["pancreatic_lesion"]}) == 6
    assert slice_to_show(empty, empty) == 5


def test_a_picture_is_seen_as_radiologists_see_it() -> None:
    """RAS grows to the right and to the front: anterior goes up, and the patient's right to the left."""
    plane = np.zeros((4, 6))
    plane[3, 5] = 1  # the most anterior, rightmost voxel
    assert as_seen(plane)[0, 0] == 1


def test_only_the_patient_is_shown() -> None:
    """The plane is cut to the body with a margin, and left whole where there is only air."""
    plane = np.full((50, 60), -1000)
    plane[10:20, 30:50] = 0
    assert body_of(plane) == (slice(8, 22), slice(28, 52))
    assert body_of(np.full((5, 5), -1000)) == (slice(None), slice(None))


def test_both_outlines_are_on_the_picture(tmp_path: Path) -> None:
    """The PNG has pixels of the reference's color and of the prediction's, and keeps the scan's proportions."""
    reference, prediction = masks()
    image = np.random.default_rng(0).normal(0, 30, (10, 40, 60)).astype(np.int16)
    draw_case(image, reference, prediction, (5.0, 1.0, 2.0), tmp_path / "case.png", "case <1>")
    pixels = imread(tmp_path / "case.png")[..., :3]
    for color in (REFERENCE_COLOR, PREDICTION_COLOR):
        rgb = np.array([int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(axis=-1) < 0.1).sum() > 20
    assert pixels.shape[1] > 2.4 * (pixels.shape[0] - 0.35 * 110)
