import json
import shutil
from pathlib import Path

import pytest
from sources import SHARED, need, write_pants

from conversion.layouts import recognise
from pants_dist.errors import UserError
from pants_dist.structures import PANTS


@pytest.fixture(scope="module")
def pants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pants(tmp_path_factory.mktemp("layouts") / "PanTS", [1, 2, 9001])


def test_pants_folders_are_recognised(pants: Path) -> None:
    """Train and test folders give one list of cases by id, with all 28 masks, center, split and patient."""
    found = recognise(pants)
    assert (found.layout, found.notes) == ("pants", [])
    assert [source.case for source in found.sources] == ["PanTS_00000001", "PanTS_00000002", "PanTS_00009001"]
    first, _, test = found.sources
    assert sorted(first.masks) == list(PANTS) == list(first.annotated)
    assert first.names[:2] == [
        "ImageTr/PanTS_00000001/ct.nii.gz",
        "LabelTr/PanTS_00000001/segmentations/adrenal_gland_left.nii.gz",
    ]
    about = first.about
    assert (about["center"], about["center_kind"], about["official_split"]) == ("Hospital B", "single", "train")
    assert (about["sex"], about["age"], about["phase"], about["tumor_flag"]) == ("M", 41.0, "Venous", True)
    assert json.loads(about["metadata"])["site"] == "1 Site"
    assert test.about["official_split"] == "test"


def test_a_flat_label_tree_and_images_without_masks(pants: Path, tmp_path: Path) -> None:
    """Labels may all lie in LabelAll, mixing train and test; what has no partner is counted in a note."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    shutil.move(root / "LabelTr", root / "LabelAll")
    shutil.move(root / "LabelTe" / "PanTS_00009001", root / "LabelAll")
    shutil.rmtree(root / "ImageTr" / "PanTS_00000001")
    shutil.rmtree(root / "LabelAll" / "PanTS_00000002")
    found = recognise(root)
    assert {source.case: len(source.masks) for source in found.sources} == {"PanTS_00000002": 0, "PanTS_00009001": 28}
    assert found.notes == [
        "1 image(s) have no masks here: refused one by one",
        "1 label set(s) have no image here: normal for a part download",
        "1 metadata row(s) have no image here: normal for a part download",
    ]


def test_combined_labels_are_never_a_mask(pants: Path, tmp_path: Path) -> None:
    """combined_labels.nii.gz, hidden files and strangers' files beside the masks are not masks."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    folder = root / "LabelTr" / "PanTS_00000001"
    for name in ("combined_labels.nii.gz", "segmentations/._liver.nii.gz", "segmentations/notes.txt"):
        (folder / name).write_bytes(b"")
    assert sorted(recognise(root).sources[0].masks) == list(PANTS)


def test_without_metadata_the_center_is_unknown(pants: Path, tmp_path: Path) -> None:
    """A dataset without its table is read; --metadata names one that lies elsewhere."""
    root = Path(shutil.copytree(pants, tmp_path / "PanTS"))
    table = Path(shutil.move(root / "metadata.csv", tmp_path / "table.csv"))
    found = recognise(root)
    assert {source.about["center"] for source in found.sources} == {"unknown"}
    assert found.sources[-1].about["official_split"] == "test"
    assert found.notes == ["3 case(s) have no metadata row: their center is unknown"]
    assert recognise(root, metadata=table).sources[0].about["center"] == "Hospital B"


def test_the_released_metadata_names_28_centers_in_the_data(pants: Path) -> None:
    """All 9,901 released rows are read; ours are found among them and the rest are a note."""
    released = need(SHARED / "data" / "pants_released" / "metadata.xlsx")
    found = recognise(pants, metadata=released)
    assert found.notes == ["9,898 metadata row(s) have no image here: normal for a part download"]
    assert found.sources[0].about["center_kind"] == "pool" and found.sources[0].about["age"] == 66.0


def test_bad_sources_are_refused_in_one_line(pants: Path, tmp_path: Path) -> None:
    """Missing, empty and unknown folders, unknown layouts and a case that is there twice say what to do."""
    with pytest.raises(UserError, match="no such folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(UserError, match="folder is empty"):
        recognise(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="like no layout known: pants"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="use auto or one of pants"):
        recognise(pants, layout="pantz")
    (tmp_path / "ImageTr").mkdir()
    with pytest.raises(UserError, match="no case found"):
        recognise(tmp_path)
    (tmp_path / "ImageTr" / "PanTS_00000001").mkdir()
    (tmp_path / "ImageTe" / "PanTS_00000001").mkdir(parents=True)
    with pytest.raises(UserError, match="PanTS_00000001 is both in .*ImageTe and in .*ImageTr"):
        recognise(tmp_path)
