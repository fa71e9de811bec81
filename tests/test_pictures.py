from pathlib import Path

import numpy as np
from matplotlib.image import imread

from pants_dist.pictures import PREDICTION_COLOR, REFERENCE_COLOR, as_seen, body_of, draw_case, focus_of, near_of


def masks() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    pancreas, lesion = np.zeros((2, 10, 40, 60), bool)
    pancreas[2:8, 10:30, 20:50] = True
    lesion[6, 12:20, 22:30] = True
    prediction = {"pancreas": np.roll(pancreas, 4, 2), "pancreatic_lesion": np.zeros_like(lesion)}
    return {"pancreas": pancreas, "pancreatic_lesion": lesion}, prediction


def test_the_slice_is_where_most_is_wrong() -> None:
    """What matters most decides: the lesion, else the organ; with nothing at all it is the middle of the scan."""
    reference, prediction = masks()
    empty = np.zeros((10, 40, 60), bool)
    assert focus_of(reference, prediction) == ("pancreatic_lesion", 6)
    organ = {"pancreas": reference["pancreas"]}
    assert focus_of(organ, {"pancreas": reference["pancreas"] & (np.arange(10) != 5)[:, None, None]}) == ("pancreas", 5)
    assert focus_of(organ, organ) == ("pancreas", 2)
    assert focus_of({"pancreas": empty}, {"pancreas": reference["pancreatic_lesion"]}) == ("pancreas", 6)
    assert focus_of({"pancreas": empty}, {"pancreas": empty}) == ("pancreas", 5)


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


def test_what_is_wrong_is_shown_larger() -> None:
    """80 mm around it, at the scan's edge less; all of it where it is larger; nothing where there is nothing."""
    mask = np.zeros((200, 200), bool)
    mask[100:110, 20:30] = True
    rows, columns = near_of(mask, (1.0, 0.5)) or ((), ())
    assert (rows.start, rows.stop, columns.start, columns.stop) == (64, 146, 0, 106)
    mask[5:195, 20:30] = True
    assert (near_of(mask, (1.0, 0.5)) or [slice(0)])[0] == slice(2, 198)
    assert near_of(mask & False, (1.0, 1.0)) is None


def test_both_outlines_are_on_the_picture(tmp_path: Path) -> None:
    """The PNG has pixels of the reference's color and of the prediction's, and keeps the scan's proportions."""
    reference, prediction = masks()
    image = np.random.default_rng(0).normal(0, 30, (10, 40, 60)).astype(np.int16)
    draw_case(image, reference, prediction, (5.0, 1.0, 2.0), tmp_path / "case.png", "case <1>")
    pixels = imread(tmp_path / "case.png")[..., :3]
    for color in (REFERENCE_COLOR, PREDICTION_COLOR):
        rgb = np.array([int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(axis=-1) < 0.1).sum() > 20
    assert ((pixels[..., 1] > pixels[..., 0] + 0.1) & (pixels[..., 1] < 0.75)).sum() > 500  # missed: filled, see-through
    assert pixels.shape[1] > 2.4 * (pixels.shape[0] - 0.35 * 110)
