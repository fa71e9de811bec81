"""A NIfTI through models out of run folders and back to NIfTI, against the same network called by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from conversion import nifti
from pants_dist import cli, config
from pants_dist.inference import segmented
from pants_dist.model import Intensity, Segmenter
from pants_dist.predict import load_model, open_checkpoint

AFFINE = np.array([[0.8, 0, 0, -50], [0, 0.8, 0, -60], [0, 0, 2, -70], [0, 0, 0, 1.0]])
SHAPE_XYZ = (30, 40, 20)


def make_run(folder: Path, seed: int, *more: str) -> Path:
    """A run folder with a checkpoint of random weights."""
    small = ["--data.store=s", "--data.patch_zyx=[16, 24, 24]", "--data.spacing_mm_zyx=[1.5, 1, 1]", "--model.channels=[4, 8]"]
    settings, intensity = config.load("debug", [*small, *more]), Intensity(-100.0, 300.0, 60.0, 80.0)
    torch.manual_seed(seed)
    state = Segmenter(settings, intensity).state_dict()
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump(settings))
    torch.save({"state_dict": state, "intensity": asdict(intensity), "global_step": 1}, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("predict") / "r", 0)


@pytest.fixture(scope="module")
def hu_xyz() -> np.ndarray:
    return np.random.default_rng(0).normal(50, 200, SHAPE_XYZ).astype(np.int16)


def expected(runs: list[Path], hu_xyz: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (x, y, z) of the mean of the runs' models."""
    models, in_plane_mm = [load_model(*open_checkpoint(run)) for run in runs], float(np.float32(0.8))
    masks = segmented(models, np.ascontiguousarray(hu_xyz.T), (2.0, in_plane_mm, in_plane_mm)).masks
    return {name: mask.T for name, mask in masks.items()}


def turned(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same image in another order: axes z, x, y of which z and x run backwards."""
    back = np.eye(4)
    back[[0, 2], [0, 2]] = -1
    back[[0, 2], 3] = array.shape[0] - 1, array.shape[2] - 1
    return array[::-1, :, ::-1].transpose(2, 0, 1), (affine @ back)[:, [2, 0, 1, 3]]


@pytest.mark.parametrize("orientation", ["RAS", "ILA"])
def test_masks_lie_on_the_image_as_it_came(run: Path, hu_xyz: np.ndarray, tmp_path: Path, orientation: str) -> None:
    """In any orientation the masks are the network's, in the image's own shape, order and affine."""
    array, affine = (hu_xyz, AFFINE) if orientation == "RAS" else turned(hu_xyz, AFFINE)
    nifti.write(tmp_path / "ct.nii.gz", array, affine)
    assert nifti.read(tmp_path / "ct.nii.gz").orientation == orientation
    assert cli.main(["predict", str(run), str(tmp_path / "ct.nii.gz"), str(tmp_path / "out")]) == 0
    for name, mask in expected([run], hu_xyz).items():
        found = nifti.read(tmp_path / "out" / "segmentations" / f"{name}.nii.gz")
        np.testing.assert_allclose(found.affine, affine, atol=1e-6)
        np.testing.assert_array_equal(found.array_ijk, mask if orientation == "RAS" else turned(mask, AFFINE)[0])
        assert found.array_ijk.dtype == np.uint8 and 0 < mask.mean() < 1
    assert not (tmp_path / "out" / "label_map.nii.gz").exists()


def test_several_checkpoints_and_a_label_map(run: Path, hu_xyz: np.ndarray, tmp_path: Path) -> None:
    """Two models decide together; in the map the later structure counts where two overlap, and the numbers are said."""
    other = make_run(tmp_path / "other", 1)
    nifti.write(tmp_path / "ct.nii.gz", hu_xyz, AFFINE)
    words = ["predict", str(run / "checkpoints" / "last.ckpt"), str(other), str(tmp_path / "ct.nii.gz"), str(tmp_path / "out")]
    assert cli.main([*words, "--label-map"]) == 0
    masks = expected([run, other], hu_xyz)
    alone = expected([run], hu_xyz)
    assert any((masks[name] != alone[name]).any() for name in masks)
    labels = nifti.read(tmp_path / "out" / "label_map.nii.gz").array_ijk
    assert json.loads((tmp_path / "out" / "label_map.json").read_text()) == {name: n for n, name in enumerate(masks, 1)}
    painted = np.zeros(SHAPE_XYZ, np.uint8)
    for number, (name, mask) in enumerate(masks.items(), 1):
        np.testing.assert_array_equal(nifti.read(tmp_path / "out" / "segmentations" / f"{name}.nii.gz").array_ijk, mask)
        painted = np.where(mask, number, painted)
    np.testing.assert_array_equal(labels, painted)


def test_what_does_not_fit_is_one_line(run: Path, hu_xyz: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Models of different recipes, mirroring that training did not do, no checkpoint, no run around it, no image."""
    nifti.write(tmp_path / "ct.nii.gz", hu_xyz, AFFINE)
    ct, out = str(tmp_path / "ct.nii.gz"), str(tmp_path / "out")
    other = make_run(tmp_path / "other", 1, "--model.structures=[liver]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone.ckpt").write_bytes(b"x")
    for words, says in (
        ([str(run), str(other), ct, out], "checkpoints: what is segmented is ("),
        ([str(run), ct, out, "--mirror"], "--mirror: training mirrored no patch"),
        ([str(tmp_path / "empty"), ct, out], "no config.yaml there, so it is no run folder"),
        ([str(tmp_path / "alone.ckpt"), ct, out], "no config.yaml there, so it is no run folder"),
        ([str(run), str(tmp_path / "none.nii.gz"), out], "none.nii.gz: cannot be read"),
    ):
        assert cli.main(["predict", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "out").exists()
