"""Every layout that is known, and which of them a folder has. One small reader a layout, in the order they are tried."""

from pathlib import Path

from conversion import archives, label_maps, pants, table, totalsegmentator
from conversion.source import ABOUT, CASE_ID, Found, Layout, Source
from pants_dist.errors import UserError

__all__ = ["ABOUT", "CASE_ID", "LAYOUTS", "Found", "Layout", "Source", "recognise"]

LAYOUTS: dict[str, Layout] = {
    "pants": Layout("PanTS as folders: ImageTr/<case>/ct.nii.gz", pants.recognises, pants.read),
    "archives": Layout("PanTS as downloaded: PanTSMini_ImageTr_*.tar.gz", archives.recognises, archives.read),
    "abdomenatlas": Layout("BDMAP_<number>/ct.nii.gz", pants.atlas_recognises, pants.atlas_read),
    "totalsegmentator": Layout(
        "s<number>/ct.nii.gz with segmentations/", totalsegmentator.recognises, totalsegmentator.read
    ),
    "nnunet": Layout(
        "nnU-Net raw: dataset.json, imagesTr/<case>_0000.nii.gz", label_maps.nnunet_recognises, label_maps.nnunet_read
    ),
    "msd": Layout("MSD: dataset.json, imagesTr/<case>.nii.gz", label_maps.msd_recognises, label_maps.msd_read),
    "panorama": Layout(
        "PANORAMA: images and automatic_labels/, manual_labels/", label_maps.panorama_recognises, label_maps.panorama_read
    ),
    "table": Layout("a CSV with columns case, image, masks or label_map", table.recognises, table.read),
}  # fmt: skip


def recognise(root: Path, layout: str = "auto", metadata: Path | None = None) -> Found:
    """The cases of one dataset folder (or table). Raises UserError where it is missing, empty or like no layout known."""
    if layout != "auto" and layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: no such layout; use auto or one of {', '.join(LAYOUTS)}")
    if not root.is_dir() and not table.recognises(root):
        raise UserError(f"source {root}: no such folder; give the folder that holds the dataset")
    if root.is_dir() and not any(root.iterdir()):
        raise UserError(f"source {root}: the folder is empty; give the folder that holds the dataset")
    name = layout if layout != "auto" else next((name for name in LAYOUTS if LAYOUTS[name].recognises(root)), None)
    if name is None:
        known = "; ".join(f"{name} ({layout.title})" for name, layout in LAYOUTS.items())
        raise UserError(f"source {root}: like no layout known: {known}; give the dataset's top folder, or --layout")
    found = LAYOUTS[name].read(root, metadata)
    if not found.sources:
        raise UserError(f"source {root}: no case found as {LAYOUTS[name].title}; give the dataset's top folder")
    return found
