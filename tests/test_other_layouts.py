"""A tiny real folder of each layout, converted: center, split, structures, what was annotated, and voxels out again."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import SHARED, need, write_pants

from conversion import nifti, npz
from conversion.choice import parse_cases
from conversion.export import export
from conversion.layouts import recognise
from conversion.mapping import label_values, structure
from conversion.nifti import BadImage
from conversion.run import convert
from conversion.verify import verify
from pants_dist.errors import UserError
from pants_dist.store import open_store
from pants_dist.structures import LESION, PANTS

AFFINE, SHAPE = np.diag([-0.7, 0.8, 2.5, 1.0]), (12, 14, 10)
CT = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def write_map(path: Path, *numbers: float) -> np.ndarray:
    """A label map with a box of each number; returns its voxels."""
    labels = np.zeros(SHAPE, np.float32 if any(n % 1 for n in numbers) else np.uint16)
    for place, number in enumerate(numbers):
        labels[place : place + 2, 2:6, 3:8] = number
    nifti.write(path, labels, AFFINE)
    return labels


def write_table(path: Path, *rows: list[str], delimiter: str = ",", encoding: str = "utf-8") -> None:
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def stored(root: Path, store: Path, layout: str = "auto", recognised: str = "") -> dict[str, dict[str, Any]]:
    """Convert, prove the voxels equal, and return the manifest's rows by case."""
    assert recognise(root).layout == (recognised or recognise(root, layout).layout)
    summary = convert([root], store, layout=layout, workers=1)
    assert summary.exit_code == 0, summary.refused
    assert verify(store, root, workers=1) == []
    return {row["case"]: row for row in open_store(store).table.to_pylist()}


def exported(store: Path, case: str, out: Path) -> dict[str, np.ndarray]:
    """Voxels of a case's structures as they come out again."""
    return {path.name[:-7]: nifti.read(path).array_ijk > 0 for path in export(store, case, out)[1:]}


def test_the_mirror_of_single_files(tmp_path: Path) -> None:
    """image_only/ and mask_only/ are PanTS, whichever split a case is of."""
    root = write_pants(tmp_path / "PanTS", [1, 9001], (12, 14, 10))
    (root / "ImageTr").rename(root / "image_only")
    (root / "LabelTr").rename(root / "mask_only")
    (root / "ImageTe" / "PanTS_00009001").rename(root / "image_only" / "PanTS_00009001")
    (root / "LabelTe" / "PanTS_00009001").rename(root / "mask_only" / "PanTS_00009001")
    rows = stored(root, tmp_path / "store", recognised="pants")
    assert [row["official_split"] for row in rows.values()] == ["train", "test"]
    assert {row["center"] for row in rows.values()} == {"Hospital B"}
    assert rows["PanTS_00009001"]["annotated"] == list(PANTS)


def test_the_first_release_as_npz(tmp_path: Path) -> None:
    """ct.npz and <structure>.npz are read; the spacing comes from the metadata, and a case that it lacks is refused."""
    root = tmp_path / "PanTS"
    for case in ("PanTS_00000035", "PanTS_00000036"):
        for folder, name in (("ImageTr", "ct"), ("LabelTr", "liver"), ("LabelTr", LESION)):
            (root / folder / case).mkdir(parents=True, exist_ok=True)
            np.savez_compressed(root / folder / case / f"{name}.npz", data=CT if name == "ct" else (CT > 0).astype(np.uint8))
    write_table(root / "metadata.csv", ["PanTS ID", "site", "spacing"], ["PanTS_00000035", "C", "(0.625, 0.7, 0.8)"])
    summary = convert([root], tmp_path / "store", workers=1)
    assert list(summary.refused) == ["PanTS_00000036"] and "voxel size" in summary.refused["PanTS_00000036"]
    assert verify(tmp_path / "store", root, workers=1) == [f"PanTS_00000036: in {root}, not in the store"]
    row = open_store(tmp_path / "store").table.to_pylist()[0]
    assert (row["center"], row["official_split"]) == ("University Hospital Basel", "train")
    assert row["spacing_mm_zyx"] == [0.8, 0.7, 0.625] and row["annotated"] == ["liver", LESION]
    assert np.array_equal(exported(tmp_path / "store", "PanTS_00000035", tmp_path / "out")["liver"], CT > 0)


def test_a_released_npz_and_broken_ones() -> None:
    """A released mask has its voxels; what is no npz, or lacks the array, is refused."""
    path = need(SHARED / "data" / "pants_released" / "labels" / "PanTS_00000035" / f"{LESION}.npz")
    assert int((npz.decode(path.read_bytes()).array_ijk > 0.5).sum()) == 937
    for data in (b"", b"no npz", path.read_bytes()[:300]):
        with pytest.raises(BadImage):
            npz.decode(data)


def test_totalsegmentator(tmp_path: Path) -> None:
    """The real case: 117 structures, equal ones by PanTS's names; meta.csv with `;` and a byte order mark."""
    root = Path(shutil.copytree(need(SHARED / "data" / "real_ct_totalsegmentator"), tmp_path / "ts"))
    header = ["image_id", "age", "gender", "institute", "study_type", "split", "manufacturer", "scanner_model"]
    values = ["s0011", "81", "m", "A", "ct abdomen", "test", "Siemens", "Force"]
    write_table(root / "meta.csv", header, values, delimiter=";", encoding="utf-8-sig")
    row = stored(root, tmp_path / "store", recognised="totalsegmentator")["s0011"]
    assert (row["center"], row["center_kind"]) == ("TotalSegmentator institute A", "single")
    assert (row["official_split"], row["sex"], row["age"], row["manufacturer"]) == ("test", "M", 81.0, "Siemens")
    assert len(row["annotated"]) == 117
    assert {"gall_bladder", "bladder", "postcava", "lung_lower_lobe_left"} <= set(row["annotated"])
    assert not {"gallbladder", "lung_left", "veins", LESION} & set(row["annotated"])


def test_msd_pancreas(tmp_path: Path) -> None:
    """1 is the pancreas around the cancer, 2 the cancer; ._ files are nothing; images without labels are a note."""
    root = tmp_path / "Task07_Pancreas"
    nifti.write(root / "imagesTr" / "pancreas_001.nii.gz", CT, AFFINE)
    nifti.write(root / "imagesTs" / "pancreas_002.nii.gz", CT, AFFINE)
    labels = write_map(root / "labelsTr" / "pancreas_001.nii.gz", 1, 2)
    (root / "imagesTr" / "._pancreas_001.nii.gz").write_bytes(b"Mac")
    (root / "labelsTr" / "._pancreas_001.nii.gz").write_bytes(b"Mac")
    described = {"name": "Pancreas", "labels": {"0": "background", "1": "pancreas", "2": "cancer"}}
    (root / "dataset.json").write_text(json.dumps(described))
    row = stored(root, tmp_path / "store", recognised="msd")["pancreas_001"]
    assert (row["dataset"], row["official_split"], row["center"]) == ("Pancreas", "train", "unknown")
    assert row["annotated"] == ["pancreas", LESION] and len(json.loads(row["sources"])) == 2
    out = exported(tmp_path / "store", "pancreas_001", tmp_path / "out")
    assert np.array_equal(out["pancreas"], labels > 0) and np.array_equal(out[LESION], labels == 2)
    assert recognise(root).notes == ["1 image(s) have no labels here: left out"]


def test_nnunet_raw(tmp_path: Path) -> None:
    """Names with numbers, regions and other names; numbers above 255; other numbers make the case again."""
    root = tmp_path / "Dataset001_Abdomen"
    nifti.write(root / "imagesTr" / "case_1_0000.nii.gz", CT, AFFINE)
    labels = write_map(root / "labelsTr" / "case_1.nii.gz", 1, 2, 300)
    described: dict[str, Any] = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    described["labels"] = {"background": 0, "left kidney": [1, 2], "kidney cyst": 2, "spleen": 300}
    (root / "dataset.json").write_text(json.dumps(described))
    row = stored(root, tmp_path / "store", recognised="nnunet")["case_1"]
    assert (row["dataset"], row["official_split"]) == ("Dataset001_Abdomen", "train")
    assert row["annotated"] == ["kidney_left", "spleen", "kidney_cyst"]
    out = exported(tmp_path / "store", "case_1", tmp_path / "out")
    assert np.array_equal(out["kidney_left"], (labels == 1) | (labels == 2))
    assert np.array_equal(out["spleen"], labels == 300) and np.array_equal(out["kidney_cyst"], labels == 2)
    assert convert([root], tmp_path / "store", workers=1).kept == ["case_1"]
    described["labels"]["left kidney"] = 1
    (root / "dataset.json").write_text(json.dumps(described))
    assert convert([root], tmp_path / "store", workers=1).converted == ["case_1"]
    assert not (exported(tmp_path / "store", "case_1", tmp_path / "again")["kidney_left"] & (labels == 2)).any()


@pytest.mark.parametrize(("numbers", "reason"), [((1, 7), "do not name, 7"), ((1, 1.5), "not whole numbers")])
def test_label_maps_that_say_more_than_the_labels_are_refused(tmp_path: Path, numbers: tuple, reason: str) -> None:
    """A number that means nothing, or no number, is not dropped in silence."""
    nifti.write(tmp_path / "imagesTr" / "a.nii.gz", CT, AFFINE)
    write_map(tmp_path / "labelsTr" / "a.nii.gz", *numbers)
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "1": "liver"}}')
    assert reason in convert([tmp_path], tmp_path / "store", workers=1).refused["a"]


def test_abdomenatlas(tmp_path: Path) -> None:
    """BDMAP_* with image and masks in one folder; celiac_trunk is the celiac artery, combined_labels is nothing."""
    folder = tmp_path / "atlas" / "BDMAP_00000001"
    nifti.write(folder / "ct.nii.gz", CT, AFFINE)
    write_map(folder / "combined_labels.nii.gz", 1, 2)
    for name in ("liver", "celiac_trunk", "liver_lesion"):
        write_map(folder / "segmentations" / f"{name}.nii.gz", 1)
    row = stored(tmp_path / "atlas", tmp_path / "store", recognised="abdomenatlas")["BDMAP_00000001"]
    assert (row["dataset"], row["official_split"], row["center_kind"]) == ("AbdomenAtlas", "", "unknown")
    assert row["annotated"] == ["celiac_artery", "liver", "liver_lesion"]


def test_panorama(tmp_path: Path) -> None:
    """Manual labels win over automatic ones; no PDAC drawn leaves the lesion unknown; the patient is in the name."""
    root = tmp_path / "panorama"
    for case in ("100000_00001", "100001_00002"):
        nifti.write(root / "images" / f"{case}_0000.nii.gz", CT, AFFINE)
        write_map(root / "automatic_labels" / f"{case}.nii.gz", 2, 3, 4)
    labels = write_map(root / "manual_labels" / "100000_00001.nii.gz", 1, 4, 5, 6)
    rows = stored(root, tmp_path / "store", recognised="panorama")
    others = {"veins", "arteries", "pancreas", "pancreatic_duct", "common_bile_duct"}
    assert set(rows["100000_00001"]["annotated"]) == {*others, LESION}
    assert set(rows["100001_00002"]["annotated"]) == others
    about = json.loads(rows["100000_00001"]["metadata"])
    assert (about["patient"], about["labels"]) == ("100000", "manual_labels")
    assert rows["100000_00001"]["official_split"] == "train" and rows["100000_00001"]["center"] == "unknown"
    out = exported(tmp_path / "store", "100000_00001", tmp_path / "out")
    assert np.array_equal(out["pancreas"], np.isin(labels, [1, 4, 5]))


def test_a_table_of_a_hospital(tmp_path: Path) -> None:
    """Masks in a folder or a label map, labels in the cell or a file, center, split; further columns are kept."""
    root = tmp_path / "ours"
    for case in "ab":
        nifti.write(root / "ct" / f"{case}.nii.gz", CT, AFFINE)
    write_map(root / "masks_a" / "urinary_bladder.nii.gz", 1)
    labels = write_map(root / "b.nii.gz", 1, 2)
    header = ["case", "image", "masks", "label_map", "labels", "center", "split", "age", "ward"]
    meaning = json.dumps({"pancreas": [1, 2], LESION: 2})
    first = ["a", "ct/a.nii.gz", "masks_a", "", "", "St. Mary's", "train", "61", "7"]
    second = ["b", "ct/b.nii.gz", "", "b.nii.gz", meaning, "Charité", "test", "", ""]
    write_table(root / "cases.csv", header, first, second)
    rows = stored(root, tmp_path / "store", layout="table", recognised="table")
    assert [(row["center"], row["official_split"]) for row in rows.values()] == [("St. Mary's", "train"), ("Charité", "test")]
    assert rows["a"]["annotated"] == ["bladder"] and rows["b"]["annotated"] == ["pancreas", LESION]
    assert rows["a"]["age"] == 61.0 and json.loads(rows["a"]["metadata"])["ward"] == "7"
    assert np.array_equal(exported(tmp_path / "store", "b", tmp_path / "out")[LESION], labels == 2)
    (root / "labels.json").write_text(meaning)
    write_table(root / "cases.csv", header, [*second[:4], "labels.json", *second[5:]])
    assert recognise(root / "cases.csv").sources[0].values == {"pancreas": (1, 2), LESION: (2,)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a", "", "m", "", "", ""], "column image is empty"),
        (["a", "a.nii", "", "", "", ""], "either masks"),
        (["a", "a.nii", "", "l.nii", "", ""], "needs labels"),
        (["a", "a.nii", "", "l.nii", "{1", ""], "is no JSON"),
        (["a", "a.nii", "", "l.nii", "gone.json", ""], "gone.json cannot be read"),
        (["a", "a.nii", "", "l.nii", '{"x": -1}', ""], "numbers from 0 to 65535"),
        (["a", "a.nii", "m", "", "", "validation"], "split is train, test or empty"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path: Path, row: list[str], message: str) -> None:
    """What is wrong in a hospital's table is said with its case, before anything is converted."""
    write_table(tmp_path / "cases.csv", ["case", "image", "masks", "label_map", "labels", "split"], row)
    with pytest.raises(UserError, match=message):
        recognise(tmp_path)


def test_names_stay_apart() -> None:
    """Only equals are mapped; two names never become one; a name cannot leave the folder that it is exported to."""
    assert structure("portal_vein_and_splenic_vein") == "portal_vein_and_splenic_vein"
    assert structure("../../etc/passwd") == "etc_passwd"
    with pytest.raises(UserError, match="two structures would be called bladder"):
        label_values({"bladder": 1, "urinary bladder": 2}, "dataset.json")


def test_chosen_cases(tmp_path: Path) -> None:
    """--cases takes ids with commas or a file; the others stay as they are; one that is missing is named."""
    root = write_pants(tmp_path / "PanTS", [1, 2, 3], (12, 14, 10))
    (tmp_path / "list.txt").write_text("PanTS_00000003\n\nPanTS_00000001\n")
    ids = parse_cases(str(tmp_path / "list.txt"))
    assert convert([root], tmp_path / "store", cases=ids, workers=1).converted == sorted(ids)
    assert convert([root], tmp_path / "store", cases=parse_cases("PanTS_00000002"), workers=1).converted == ["PanTS_00000002"]
    assert len(open_store(tmp_path / "store").cases) == 3
    with pytest.raises(UserError, match="no case PanTS_9 in the sources"):
        convert([root], tmp_path / "store", cases=["PanTS_9"])
    with pytest.raises(UserError, match="names no case"):
        parse_cases(" , ")
