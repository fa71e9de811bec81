import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from test_repack import AFFINE, write_source

from conversion import nifti
from conversion.audit import pancreas_notes
from conversion.components import components
from conversion.nifti import BadImage
from conversion.reading import Digests
from conversion.repack import convert_case
from pants_dist.structures import LESION

SHAPE = (24, 20, 16)
BODY_HU = 50
PIXDIM = 80  # byte of the NIfTI header at which the three voxel sizes stand


def mask_at(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        mask[box] = 1
    return mask


LIVER = mask_at(np.s_[2:12, 2:10, 2:12])


def converted(tmp_path: Path, ct: np.ndarray, masks: dict[str, np.ndarray], **about: Any) -> dict[str, Any]:
    """The row of a case that is written as files and converted; `about` goes into its metadata."""
    source = write_source(tmp_path, ct, masks)
    (tmp_path / "cases").mkdir(exist_ok=True)
    return convert_case(type(source)(**vars(source) | {"about": dict(source.about) | about}), tmp_path / "cases")


def body() -> np.ndarray:
    return np.full(SHAPE, BODY_HU, np.int16)


def test_an_ordinary_case_has_no_notes(tmp_path: Path) -> None:
    """Liver at 50 HU and an aorta without contrast, as its phase says: nothing to note; measures are kept."""
    row = converted(tmp_path, body(), {"liver": LIVER, "aorta": mask_at(np.s_[14:16, 14:16, :]), "colon": mask_at()},
                    phase="Non-contrast")  # fmt: skip
    audit = json.loads(row["audit"])
    assert row["notes"] == [] and audit["empty_masks"] == ["colon"]
    assert audit["largest"] == ["liver", pytest.approx(800 * 0.7 * 0.8 * 2.5, abs=0.1)]
    assert audit["median_hu"] == {"liver": 50.0, "aorta": 50.0} and audit["lesions"] == 0
    assert sum(audit["histogram"]) == pytest.approx(1) and audit["histogram"][4] == 1


def test_lesion_components_have_volume_and_density(tmp_path: Path) -> None:
    """Voxels that touch at a corner are one lesion of 26 neighbours; volumes in mm3, mean HU, the largest first."""
    one, two, three = np.s_[2:4, 2:4, 2:4], np.s_[4:5, 4:5, 4:5], np.s_[10:14, 10:14, 10:14]
    ct = body()
    ct[one], ct[two], ct[three] = 10, 100, 30
    whole = mask_at(np.s_[0:20, 0:20, 0:16])
    row = converted(tmp_path, ct, {LESION: mask_at(one, two, three), "pancreas": whole}, tumor_flag=True)
    audit = json.loads(row["audit"])
    assert audit["lesions"] == 2 and row["notes"] == []
    assert audit["lesion_mm3_and_hu"] == [[64 * 1.4, 30.0], [pytest.approx(9 * 1.4, abs=1e-3), 20.0]]
    assert audit["lesion_outside_share"] == 0.0


def test_components_of_thin_masks() -> None:
    """Every shape down to one voxel thin, where cc3d alone fails: pieces, sizes and densities as scipy has them."""
    rng = np.random.default_rng(0)
    for shape in itertools.product((1, 2, 3, 17), repeat=3):
        mask = np.asfortranarray(rng.random(shape) < 0.5).astype(np.uint8)
        mask[0, 0, 0] = 1
        image = np.asfortranarray(rng.integers(-100, 200, shape).astype(np.int16))
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        found = components(mask > 0, 0, image)
        expected = sorted((int((labels == n).sum()), float(image[labels == n].mean())) for n in range(1, count + 1))
        assert np.allclose(sorted(zip(found.voxels.tolist(), found.mean_hu.tolist(), strict=True)), expected)
        assert sorted(labels.reshape(-1, order="F")[found.positions]) == list(range(1, count + 1))


def test_what_metadata_and_voxels_say_apart_is_noted(tmp_path: Path) -> None:
    """tumor? against the mask, the phase against the aorta, an organ of the wrong density: one note each."""
    ct = body()
    ct[14:16, 14:16] = 250
    ct[LIVER > 0] = -700
    masks = {"liver": LIVER, "aorta": mask_at(np.s_[14:16, 14:16, :]), LESION: mask_at(np.s_[20:22, 2:4, 2:4])}
    row = converted(tmp_path, ct, masks, phase="Non-contrast", tumor_flag=False)
    assert [note.partition(":")[0] for note in row["notes"]] == [
        "tumor? is 0 and the lesion mask is not empty", "phase against the aorta", "largest structure implausible"
    ]  # fmt: skip
    assert "Non-contrast, median 250 HU" in row["notes"][1] and "liver" in row["notes"][2]


def test_pancreas_against_its_parts_by_hand() -> None:
    """10 voxels of pancreas, 8 of head, 6 of both: Dice 12/18; 3 of 5 lesion voxels lie outside."""
    names = ["pancreas", "pancreas_head", LESION, "pancreas_body", "pancreas_tail"]
    palette, voxels = [0, 0b001, 0b010, 0b011, 0b100, 0b101], [99, 2, 2, 6, 3, 2]
    measured, notes = pancreas_notes(palette, voxels, names)
    assert measured == {"pancreas_parts_dice": 0.6667, "lesion_outside_share": 0.6}
    assert [note.partition(":")[2] for note in notes] == [" Dice 0.67", " 60 % of its voxels"]
    assert pancreas_notes([0, 0b011], [9, 5], names) == ({"pancreas_parts_dice": 1.0, "lesion_outside_share": None}, [])


def rewrite(path: Path, affine: np.ndarray) -> None:
    volume = nifti.read(path, scaled=False)
    nifti.write(path, volume.array_ijk.copy(), affine)


def test_geometry_that_is_odd_is_kept_and_noted(tmp_path: Path) -> None:
    """A sheared affine of image and masks is kept and noted; zooms that are not its columns too."""
    source = write_source(tmp_path, body(), {"liver": LIVER})
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.08
    for path in source.files:
        rewrite(path, sheared)
    content = bytearray(gzip.decompress(source.image.read_bytes()))
    content[PIXDIM : PIXDIM + 12] = np.array([0.9, 0.8, 2.5], "<f4").tobytes()
    source.image.write_bytes(gzip.compress(content))
    (tmp_path / "cases").mkdir()
    row = convert_case(source, tmp_path / "cases")
    assert [note.partition(":")[0] for note in row["notes"]] == [
        "header zooms differ from the affine", "axes not at right angles"
    ]  # fmt: skip
    assert "0.9 x 0.8 x 2.5 and" in row["notes"][0] and "5.71 degrees" in row["notes"][1]
    assert row["source_affine"] == sheared.astype(np.float32).ravel().tolist()


@pytest.mark.parametrize(("millimetres", "noted"), [(0.3, 0), (5.0, 1)])
def test_masks_that_lie_elsewhere_by_their_affine(tmp_path: Path, millimetres: float, noted: int) -> None:
    """Index order counts: a shift within half a voxel is taken in silence, a larger one with a note."""
    source = write_source(tmp_path, body(), {"liver": LIVER})
    shifted = AFFINE.copy()
    shifted[0, 3] += millimetres
    rewrite(source.masks["liver"], shifted)
    (tmp_path / "cases").mkdir()
    row = convert_case(source, tmp_path / "cases")
    assert len(row["notes"]) == noted and json.loads(row["voxels"]) == {"liver": 800}
    assert all("1 mask(s), by up to 5.0 mm" in note for note in row["notes"])


def test_masks_turned_against_the_ct_are_refused_where_organs_show_it(tmp_path: Path) -> None:
    """Flipped masks with a flipped affine: refused where only the flip gives liver HU, kept where both do."""
    flip = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    ct = np.full(SHAPE, -900, np.int16)
    ct[LIVER > 0] = BODY_HU
    for name, image in (("telling", ct), ("silent", body())):
        folder = tmp_path / name
        source = write_source(folder, image, {"liver": LIVER[::-1].copy()})
        rewrite(source.masks["liver"], flip)
        (folder / "cases").mkdir()
        if name == "silent":
            assert "taken index by index" in convert_case(source, folder / "cases")["notes"][0]
            continue
        with pytest.raises(BadImage, match=r"turned against the CT: .* 0 % .* 100 % by the masks' affine; write the masks"):
            convert_case(source, folder / "cases")


def test_read_masks_of_npz_have_no_affine(tmp_path: Path) -> None:
    """An npz says nothing of where it lies, so nothing is compared."""
    from conversion.reading import read_masks

    source = write_source(tmp_path, body(), {"liver": LIVER})
    np.savez(tmp_path / "liver.npz", data=LIVER)
    source = type(source)(**vars(source) | {"masks": {"liver": tmp_path / "liver.npz"}})
    assert [mask.affine for mask in read_masks(source, ["liver"], SHAPE, Digests())] == [None]
