"""The phantom cohort: what conversion, training and evaluation rely on when they run on it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from conversion.layouts import recognise
from pants_dist.anatomy import GLAND
from pants_dist.cases import read_metadata
from pants_dist.errors import UserError
from pants_dist.phantom import COLUMNS, SHEET, Cohort, draw_case, make_phantom, plan_cases, plan_centers
from pants_dist.scanner import PHASES, mask
from pants_dist.structures import LESION, PANCREAS, PANCREAS_PARTS, PANTS

RELEASED = Path(__file__).resolve().parents[2] / "shared" / "data" / "pants_released" / "metadata.xlsx"
SMALL: dict[str, Any] = {"cases": 3, "centers": 2, "seed": 5, "scale": 0.08}
OFTEN_OUT_OF_VIEW = {"bladder", "prostate", "femur_left", "femur_right"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 cases of 4 centers at the scale of the demo: every orientation, every phase."""
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    assert make_phantom(out, cases=8, centers=4) == [f"PanTS_{n:08d}" for n in range(1, 9)]
    return out


def image(cohort: Path, case: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(cohort / "ImageTr" / case / "ct.nii.gz")


def label(cohort: Path, case: str, name: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(cohort / "LabelTr" / case / "segmentations" / f"{name}.nii.gz")


def voxels(cohort: Path, case: str, name: str) -> np.ndarray:
    return np.asarray(label(cohort, case, name).dataobj) > 0.5


def middle_mm(cohort: Path, case: str, name: str) -> np.ndarray:
    """The mean position of a structure in RAS mm."""
    file = label(cohort, case, name)
    return nib.affines.apply_affine(file.affine, np.argwhere(voxels(cohort, case, name)).mean(axis=0))


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def cases_of(cohort: Path) -> list[str]:
    return sorted(path.name for path in (cohort / "ImageTr").iterdir())


def test_same_arguments_give_the_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    """One worker or two, today or tomorrow: every file is the same, metadata.xlsx included."""
    for workers in (1, 2):
        make_phantom(tmp_path / str(workers), **SMALL, workers=workers)
    one, two = (contents(tmp_path / name) for name in ("1", "2"))
    assert len(one) == 2 + 3 * 29
    assert one == two
    make_phantom(tmp_path / "other", **{**SMALL, "seed": 6})
    other = contents(tmp_path / "other")
    assert all(other[name] != one[name] for name in one if name.endswith("ct.nii.gz"))


def test_a_killed_run_is_completed_by_the_same_call(tmp_path: Path) -> None:
    """Killed when its first case was there, it leaves no metadata; the same call then gives what an uncut one gives."""
    make_phantom(tmp_path / "uncut", **SMALL)
    program = (
        "import os, sys, pathlib; from pants_dist.phantom import make_phantom\n"
        f"make_phantom(pathlib.Path(sys.argv[1]), **{SMALL}, workers=1, on_case=lambda case: os.kill(os.getpid(), 9))"
    )
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    cut = tmp_path / "cut"
    killed = subprocess.run([sys.executable, "-c", program, str(cut)], env={**os.environ, "PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL
    assert not (cut / "metadata.xlsx").exists()
    first = cut / "ImageTr" / "PanTS_00000001" / "ct.nii.gz"
    written_ns = first.stat().st_mtime_ns
    told: list[str] = []
    make_phantom(cut, **SMALL, on_case=told.append)
    assert first.stat().st_mtime_ns == written_ns
    assert sorted(told) == cases_of(cut)
    assert contents(cut) == contents(tmp_path / "uncut")


def test_metadata_has_the_columns_and_cells_of_the_released_file(cohort: Path) -> None:
    """14 columns of text on the sheet PanTS_metadata; shape, spacing and orientation are those of the files."""
    book = openpyxl.load_workbook(cohort / "metadata.xlsx")
    assert book.sheetnames == [SHEET]
    header, *rows = book[SHEET].iter_rows(values_only=True)
    assert header == COLUMNS
    assert all(isinstance(cell, str) for row in rows for cell in row)
    table = read_metadata(cohort / "metadata.xlsx")
    for case, row in table.iterrows():
        ct = image(cohort, str(case))
        assert ct.get_data_dtype() == np.int16
        assert row["shape"] == str(ct.shape)
        spacing = [float(mm) for mm in row["spacing"].strip("()").split(", ")]
        np.testing.assert_allclose(spacing, ct.header.get_zooms(), rtol=1e-6)


def test_columns_are_those_of_the_released_metadata() -> None:
    """The released metadata.xlsx has the same columns in the same order on a sheet of the same name."""
    if not RELEASED.exists() and not os.environ.get("CI"):
        pytest.skip(f"{RELEASED} is not there")
    book = openpyxl.load_workbook(RELEASED, read_only=True)
    assert tuple(next(book[SHEET].iter_rows(values_only=True))) == COLUMNS


def test_it_is_recognised_as_pants_with_single_centers(cohort: Path) -> None:
    """The reader of PanTS's layout finds every case, all 28 masks and a center of its own for each hospital."""
    found = recognise(cohort)
    assert found.layout == "pants"
    assert [source.case for source in found.sources] == cases_of(cohort)
    assert all(set(source.annotated) == set(PANTS) for source in found.sources)
    centers = {(source.about["center"], source.about["center_kind"]) for source in found.sources}
    assert centers == {(f"Phantom Hospital {letter}", "single") for letter in "ABCD"}


def test_masks_overlap_as_in_pants(cohort: Path) -> None:
    """Head, body and tail are disjoint and make up the pancreas, which holds nearly all of lesion and duct, and some
    of the veins; no other two organs share a voxel with it but the bile duct."""
    for case in cases_of(cohort):
        masks = {name: voxels(cohort, case, name) for name in PANTS}
        parts = np.stack([masks[name] for name in PANCREAS_PARTS])
        assert parts.any(axis=(1, 2, 3)).all() and parts.sum(axis=0).max() == 1
        gland = masks[PANCREAS]
        assert (parts.any(axis=0) == gland).all()
        for name in (LESION, "pancreatic_duct"):
            if masks[name].any():
                assert (masks[name] & gland).sum() >= 0.85 * masks[name].sum(), (case, name)
        assert 0 < (masks["veins"] & gland).sum() < 0.5 * masks["veins"].sum()
        guests = GLAND | {LESION, "pancreatic_duct", "common_bile_duct", "veins"}
        others = np.stack([masks[name] for name in PANTS if name not in guests])
        assert others.sum(axis=0).max() == 1
        assert not (others.any(axis=0) & gland).any()


def test_every_structure_is_there_unless_the_scan_ends_above_it(cohort: Path) -> None:
    """All masks have voxels in every case, but those of the pelvis and the lesion; the pelvis is in some scan."""
    seen = {name: [voxels(cohort, case, name).any() for case in cases_of(cohort)] for name in PANTS}
    assert {name for name in PANTS if not all(seen[name])} <= OFTEN_OUT_OF_VIEW | {LESION}
    assert all(any(seen[name]) for name in OFTEN_OUT_OF_VIEW)
    assert not all(seen["bladder"])


def test_left_is_left_in_every_orientation(cohort: Path) -> None:
    """In RAS millimetres the liver lies right, the spleen left, the lungs on top, the kidneys behind the pancreas,
    and masks share their CT's grid, whichever way the axes of the files run."""
    met = set()
    for case in cases_of(cohort):
        ct = image(cohort, case)
        met.add("".join(nib.aff2axcodes(ct.affine)))
        assert all(np.array_equal(label(cohort, case, name).affine, ct.affine) for name in PANTS)
        x, y, z = (
            {name: middle_mm(cohort, case, name)[axis] for name in PANTS if voxels(cohort, case, name).any()}
            for axis in range(3)
        )
        assert x["liver"] > x["aorta"] > x["spleen"] and x["postcava"] > x["aorta"]
        for pair in ("kidney", "lung", "adrenal_gland"):
            assert x[f"{pair}_right"] > x[f"{pair}_left"]
        assert x["pancreas_head"] > x["pancreas_body"] > x["pancreas_tail"]
        assert y["pancreas_body"] > y["aorta"] and y["stomach"] > y["kidney_left"]
        assert z["lung_left"] > z["liver"] > z["kidney_right"] and z["pancreas_tail"] > z["pancreas_head"]
        assert np.abs(ct.affine[:3, 3]).max() > 20  # the scanner's origin is not a corner of the volume
    assert met == {"RAS", "LPS", "LAS", "IPL"}


def test_tumor_flag_is_what_the_mask_says(cohort: Path) -> None:
    """`tumor?` is 1 where the lesion has voxels, in half of all cases, and each center has both kinds."""
    table = read_metadata(cohort / "metadata.xlsx")
    for case, flag in table["tumor?"].items():
        assert flag == str(int(voxels(cohort, str(case), LESION).any()))
    assert (table["tumor?"] == "1").mean() == 0.5
    assert (table.groupby("site detail")["tumor?"].nunique() == 2).all()


def test_lesions_are_darker_than_the_gland_but_not_by_much(cohort: Path) -> None:
    """A lesion is 10 to 110 HU below the rest of its pancreas: there to be learned, and not given away."""
    for case in cases_of(cohort):
        lesion, gland = voxels(cohort, case, LESION), voxels(cohort, case, PANCREAS)
        if lesion.any():
            hu = np.asarray(image(cohort, case).dataobj)
            assert 10 < hu[gland & ~lesion].mean() - hu[lesion].mean() < 110, case


def test_organs_have_their_hu(cohort: Path) -> None:
    """Lungs are air, the liver is soft tissue and enhanced arteries are bright, within a center's offset."""
    table = read_metadata(cohort / "metadata.xlsx")
    for case in cases_of(cohort):
        hu = np.asarray(image(cohort, case).dataobj)
        lung, liver, aorta = (np.median(hu[voxels(cohort, case, name)]) for name in ("lung_left", "liver", "aorta"))
        assert lung < -500 and 25 < liver < 150
        low, high = {"Arterial": (200, 400), "Non-contrast": (15, 75)}.get(table.at[case, "ct phase"], (75, 200))
        assert low < aorta < high


def test_no_two_cases_have_the_same_anatomy(cohort: Path) -> None:
    """Liver volume, and where the spleen lies against the liver, differ from case to case."""
    cases = cases_of(cohort)
    ml = [voxels(cohort, c, "liver").sum() * abs(np.linalg.det(image(cohort, c).affine)) / 1000 for c in cases]
    assert 600 < min(ml) and max(ml) < 3000 and len(set(np.round(ml))) == len(cases)
    apart = [tuple(np.round(middle_mm(cohort, c, "liver") - middle_mm(cohort, c, "spleen"))) for c in cases]
    assert len(set(apart)) == len(cases)


def test_centers_differ() -> None:
    """Six centers have six noises, offsets and voxel sizes, well apart, and among them every contrast phase."""
    centers = plan_centers(Cohort(cases=24, centers=6, seed=0, scale=0.25))
    for values in (
        [center.scanner.noise_hu for center in centers],
        [center.scanner.offset_hu for center in centers],
        [center.scanner.grain_voxels_xyz[0] for center in centers],
        [center.in_plane_mm for center in centers],
        [center.slice_mm for center in centers],
    ):
        gaps = np.diff(sorted(values))
        assert gaps.min() > 0.08 * (max(values) - min(values))
    assert {phase for center in centers for phase in center.phases} == set(PHASES)
    assert len({center.name for center in centers}) == len({center.nationality for center in centers}) == 6


def test_demo_arrays_stay_small() -> None:
    """At scale 0.25 a volume has 96-128 x 80-112 x 40-64 voxels (x, y, z), for any seed."""
    for seed in range(10):
        for case in plan_cases(Cohort(24, 6, seed, 0.25)):
            x, y, z = case.shape_xyz
            assert 96 <= x <= 128 and 80 <= y <= 112 and 40 <= z <= 64


def test_a_lesion_survives_a_very_coarse_grid() -> None:
    """Even with voxels of several centimeters the lesion has a voxel where the metadata promise one."""
    for plan in plan_cases(Cohort(cases=4, centers=1, seed=1, scale=0.02)):
        _, bits = draw_case(plan)
        assert mask(bits, LESION).any() == plan.patient.lesion


def test_parts_of_the_pancreas_carry_the_released_slope(cohort: Path) -> None:
    """Head, body and tail load as 1.0000001, as the released ones do, and all other masks as exactly 1."""
    case = cases_of(cohort)[0]
    for name in PANTS:
        highest = np.asarray(label(cohort, case, name).dataobj).max()
        expected = np.float64(np.float32(1.0000001)) if name in PANCREAS_PARTS else 1
        assert highest in (0, expected), name


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"cases": 0}, "--cases 0"),
        ({"cases": 9001}, "--cases 9001"),
        ({"centers": 0}, "--centers 0"),
        ({"cases": 2, "centers": 3}, "--centers 3: 2 cases"),
        ({"scale": 0}, "--scale 0"),
        ({"scale": 1.5}, "--scale 1.5"),
        ({"scale": float("nan")}, "--scale nan"),
        ({"seed": -1}, "--seed -1"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_arguments_that_make_no_cohort_are_refused(tmp_path: Path, wrong: dict, words: str) -> None:
    """The message names the argument and its value, and nothing is written."""
    with pytest.raises(UserError, match=words):
        make_phantom(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    """A file, a folder with other files, and a phantom of other arguments are left as they are."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for name in ("file", "mine"):
        with pytest.raises(UserError, match="new or empty folder"):
            make_phantom(tmp_path / name, **SMALL)
    (tmp_path / "out").mkdir()
    make_phantom(tmp_path / "out", cases=1, centers=1, scale=0.05)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="made with seed 0, not 3"):
        make_phantom(tmp_path / "out", cases=1, centers=1, seed=3, scale=0.05)
    assert contents(tmp_path / "out") == before
