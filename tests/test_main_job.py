"""The main job as a user runs it, by the command line, on real and on phantom data. The long ones must really learn."""

import filecmp
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

SMALL = ["--data.patch_zyx", "[16, 32, 32]", "--model.channels", "[4, 8, 16]", "--train.steps", "2"]


def pants_dist(*words: str | Path, folder: Path) -> str:
    """What the command printed; it must end with 0 and say what is next."""
    command = [sys.executable, "-m", "pants_dist", *(str(word) for word in words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Next:" in done.stdout and "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_real_scan_from_files_to_report(shared_data: Path, tmp_path: Path) -> None:
    """A real CT converts, is equal to its source, exports voxel-equal, trains on two ranks fed by Ray, and is scored."""
    source = shared_data / "real_ct_pants"
    pants_dist("convert", source, "store", folder=tmp_path)
    assert "whole" in pants_dist("verify", "store", "--against", source, folder=tmp_path)
    pants_dist("export", "store", "PanTS_00000001", "out", folder=tmp_path)
    for exported, original in [("ct", source / "ImageTr/PanTS_00000001/ct.nii.gz")] + [
        (f"segmentations/{path.name[:-7]}", path) for path in sorted(source.glob("LabelTr/*/segmentations/*.nii.gz"))
    ]:
        ours, theirs = nib.load(tmp_path / "out" / f"{exported}.nii.gz"), nib.load(original)
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert np.allclose(ours.affine, theirs.affine)
    pants_dist("train", "--config", "memorise.yaml", "--data.store", "store", *SMALL, folder=tmp_path)
    pants_dist("evaluate", "runs/memorise", "--split", "train", folder=tmp_path)
    assert "Memorisation" in (tmp_path / "runs/memorise/evaluation/train/report.html").read_text()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_one_real_scan_is_memorised(shared_data: Path, tmp_path: Path) -> None:
    """docs/memorise.md: liver Dice above 0.9 on the scan that was trained on."""
    pants_dist("convert", shared_data / "real_ct_pants", "store", folder=tmp_path)
    pants_dist("train", "--config", "memorise.yaml", "--data.store", "store", folder=tmp_path)
    pants_dist("evaluate", "runs/memorise", "--split", "train", folder=tmp_path)
    assert pd.read_parquet(tmp_path / "runs/memorise/evaluation/train/cases.parquet")["dsc/liver"].iloc[0] > 0.9


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demo_learns_and_resumes(tmp_path: Path) -> None:
    """Mean liver Dice above 0.85 and pancreas above 0.5 on cases not trained on; the second call only reads what is there."""
    printed = pants_dist("demo", "--out", "demo", folder=tmp_path)
    assert "No verdict on a gap" in " ".join(printed.split())
    folder = tmp_path / "demo/runs/demo/evaluation"
    rows = pd.concat([pd.read_parquet(folder / split / "cases.parquet") for split in ("val_seen", "held_out")])
    assert len(rows) == 40 and rows["center"].nunique() == 6
    assert rows["dsc/liver"].mean() > 0.85 and rows["dsc/pancreas"].mean() > 0.5
    checkpoint = tmp_path / "demo/runs/demo/checkpoints/last.ckpt"
    before = checkpoint.read_bytes()
    pants_dist("demo", "--out", "demo", folder=tmp_path)
    assert checkpoint.read_bytes() == before


@pytest.mark.timeout(120)
def test_a_phantom_is_the_same_every_time(tmp_path: Path) -> None:
    """The command writes the same files for the same seed."""
    for name in ("a", "b"):
        pants_dist("phantom", name, "--cases", "2", "--centers", "2", "--scale", "0.1", folder=tmp_path)
    ct = "ImageTr/PanTS_00000001/ct.nii.gz"
    assert filecmp.cmp(tmp_path / "a" / ct, tmp_path / "b" / ct, shallow=False)
