"""Datasets that keep all structures of a case in one label map: nnU-Net raw, MSD and PANORAMA."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conversion.mapping import PANORAMA, label_values
from conversion.source import ABOUT, Found, as_json, counted, images_in, label_map_source, number_in, subfolders
from conversion.tables import read_rows
from pants_dist.errors import UserError
from pants_dist.structures import LESION

PARTS = {"Tr": "train", "Ts": "test"}  # imagesTr, labelsTr, ...
CHANNEL = "_0000"
PANORAMA_CASE = re.compile(rf"((\d+)_\d+){CHANNEL}")
PANORAMA_LABELS = ("automatic_labels", "manual_labels")  # the later one wins
PANORAMA_TABLES = ("clinical_information.csv", "clinical_information.xlsx")


# --- nnU-Net raw and MSD: dataset.json, imagesTr/, labelsTr/ and perhaps imagesTs/, labelsTs/


def nnunet_recognises(root: Path) -> bool:
    """Whether there is a dataset.json and images are named <case>_0000."""
    return _has_dataset(root) and any(name.endswith(CHANNEL) for name in images_in(root / "imagesTr"))


def msd_recognises(root: Path) -> bool:
    """Whether there is a dataset.json and no image is named <case>_0000."""
    return _has_dataset(root) and not nnunet_recognises(root)


def _has_dataset(root: Path) -> bool:
    return (root / "dataset.json").is_file() and (root / "imagesTr").is_dir()


def nnunet_read(root: Path, metadata: Path | None) -> Found:
    """Cases of nnU-Net's raw data with one channel, which is taken to be CT whatever it is called."""
    described = _described(root)
    channels = described.get("channel_names") or described.get("modality") or {}
    if len(channels) > 1:
        raise UserError(f"{root / 'dataset.json'}: {len(channels)} channels; a dataset with one, of CT, can be converted")
    if (ending := described.get("file_ending", ".nii.gz")) not in (".nii.gz", ".nii"):
        raise UserError(f"{root / 'dataset.json'}: files end in {ending}; convert them to .nii.gz first")
    found = _read(root, "nnunet", described, CHANNEL)
    if other := [str(name) for name in channels.values() if str(name).lower() != "ct"]:
        found.notes.append(f"the channel is called {other[0]!r}: its values are taken as HU")
    return found


def msd_read(root: Path, metadata: Path | None) -> Found:
    """Cases of a task of the Medical Segmentation Decathlon, such as Task07_Pancreas."""
    return _read(root, "msd", _described(root), "")


def _described(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); give the dataset's top folder") from error
    if not isinstance(described, dict) or "labels" not in described:
        raise UserError(f'{path}: has no "labels"; they say what the numbers of the label maps mean')
    return described


def _read(root: Path, layout: str, described: Mapping[str, Any], suffix: str) -> Found:
    values = label_values(described["labels"], root / "dataset.json")
    found = Found(layout, root)
    alone = lonely = 0
    name = str(described.get("name") or root.name)
    for part, split in PARTS.items():
        labels = images_in(root / f"labels{part}")
        images = images_in(root / f"images{part}")
        cases = {stem.removesuffix(suffix): path for stem, path in images.items() if stem.endswith(suffix)}
        for case in sorted(cases.keys() & labels.keys()):
            about = {**ABOUT, "official_split": split}
            found.sources.append(label_map_source(case, name, root, (cases[case], labels[case]), values, about))
        alone, lonely = alone + len(cases.keys() - labels.keys()), lonely + len(labels.keys() - cases.keys())
    found.notes = _notes(alone, lonely)
    if "ignore" in values:
        found.notes.append('"ignore" is kept as a structure: no voxel of it says anything about the others')
    return found


def _notes(alone: int, lonely: int) -> list[str]:
    return counted(
        {
            "image(s) have no labels here: left out": alone,
            "label set(s) have no image here: normal for a part download": lonely,
        }
    )


# --- PANORAMA: <patient>_<study>_0000.nii.gz in images/ or batch_1/ ..., labels in automatic_labels/ and manual_labels/


def panorama_recognises(root: Path) -> bool:
    """Whether there are folders automatic_labels/ or manual_labels/, here or one folder down, as in a clone."""
    return bool(_label_folders(root))


def panorama_read(root: Path, metadata: Path | None) -> Found:
    """Cases of PANORAMA; a manual label map is taken before an automatic one.

    Only PDAC was drawn, and scans without it may show other tumors: a scan without a lesion voxel has lesion unknown.
    """
    labels = {name: path for folder in _label_folders(root) for name, path in images_in(folder).items()}
    images = {found[1]: (found[2], path) for found, path in _panorama_images(root)}
    rows = _panorama_rows(root, metadata)
    found = Found("panorama", root)
    for case in sorted(images.keys() & labels.keys()):
        patient, image = images[case]
        about = _panorama_about(patient, labels[case].parent.name, rows.get(case, {}))
        found.sources.append(
            label_map_source(case, "PANORAMA", root, (image, labels[case]), PANORAMA, about, unsure=(LESION,))
        )
    manual = sum(source.masks[LESION].parent.name == PANORAMA_LABELS[-1] for source in found.sources)
    found.notes = _notes(len(images.keys() - labels.keys()), len(labels.keys() - images.keys()))
    return Found("panorama", root, found.sources, [f"{manual:,} case(s) have manual labels", *found.notes])


def _label_folders(root: Path) -> list[Path]:
    """Automatic ones first."""
    near = [root, *subfolders(root)]
    return [folder / name for name in PANORAMA_LABELS for folder in near if (folder / name).is_dir()]


def _panorama_images(root: Path) -> Iterator[tuple[re.Match[str], Path]]:
    for folder in [root, *(folder for folder in subfolders(root) if folder.name not in PANORAMA_LABELS)]:
        for name, path in images_in(folder).items():
            if found := PANORAMA_CASE.fullmatch(name):
                yield found, path


def _panorama_rows(root: Path, metadata: Path | None) -> dict[str, dict[str, str]]:
    near = [folder / name for folder in [root, *subfolders(root)] for name in PANORAMA_TABLES]
    path = metadata or next((path for path in near if path.is_file()), None)
    return read_rows(path, "study_id") if path else {}


def _panorama_about(patient: str, labels: str, row: Mapping[str, str]) -> dict[str, Any]:
    known = {"age": number_in(row.get("age")), "sex": row.get("sex", "")[:1].upper(), "official_split": "train"}
    return {**ABOUT, **known, "metadata": as_json({**row, "patient": patient, "labels": labels})}
