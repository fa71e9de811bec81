"""Other datasets' structures by PanTS's 28 names where they mean the same voxels; the others keep their own names.

Equal means: one name for one thing that two annotators would outline alike. What follows from that and may surprise:

- Lung lobes are not merged into lungs, ribs not into anything: a union would lose which lobe a voxel belongs to.
- `portal_vein_and_splenic_vein` (TotalSegmentator, AbdomenAtlas) is not `veins`, which has the superior mesenteric
  vein too. PANORAMA's veins are those around the pancreas and go by that name in both.
- `celiac_trunk` is the anatomists' other name of the celiac artery.
- In MSD Task07 and PANORAMA the pancreas is cut up: one number for parenchyma, others for what lies inside it. PanTS's
  pancreas contains lesion and duct, so it is their union, and each part remains readable from the others.
- MSD's "cancer" beside "pancreas" includes cysts and neuroendocrine tumors, as PanTS's lesion does.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pants_dist.errors import UserError
from pants_dist.structures import LESION, PANCREAS

SYNONYMS = {
    "gallbladder": "gall_bladder",
    "urinary_bladder": "bladder",
    "inferior_vena_cava": "postcava",
    "celiac_trunk": "celiac_artery",
    "left_kidney": "kidney_left", "right_kidney": "kidney_right",
    "left_adrenal_gland": "adrenal_gland_left", "right_adrenal_gland": "adrenal_gland_right",
    "left_lung": "lung_left", "right_lung": "lung_right",
    "left_femur": "femur_left", "right_femur": "femur_right",
    "pancreas_lesion": LESION,
}  # fmt: skip
PANORAMA = {  # github.com/DIAGNijmegen/panorama_labels, "Label Legend"
    LESION: (1,), "veins": (2,), "arteries": (3,), PANCREAS: (1, 4, 5), "pancreatic_duct": (5,), "common_bile_duct": (6,),
}  # fmt: skip
BACKGROUND = "background"


def structure(name: str) -> str:
    """PanTS's name of a dataset's structure, else its own, fit to name a file."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.strip()).strip("._")
    return SYNONYMS.get(plain.lower(), plain)


def renamed(masks: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """The same, by `structure`. Raises UserError where two names become one."""
    found: dict[str, Any] = {}
    for name in masks:
        if not (plain := structure(name)):
            raise UserError(f"{where}: a structure named {name!r}; name it with letters or digits")
        if plain in found:
            raise UserError(f"{where}: two structures would be called {plain}, one of them is {name!r}; rename one")
        found[plain] = masks[name]
    return found


def label_values(labels: Any, where: Any) -> dict[str, tuple[int, ...]]:
    """Structure -> the numbers that mean it, from `labels` of a dataset.json: {"1": "pancreas"} or {"pancreas": 1}.

    A list of numbers is a region. Raises UserError for anything else.
    """
    try:
        turned = all(re.fullmatch(r"\d+", key) and isinstance(labels[key], str) for key in labels)
        pairs = {labels[key]: (int(key),) for key in labels} if turned else {key: _numbers(labels[key]) for key in labels}
        if not pairs or any(not 0 <= value < 1 << 16 for values in pairs.values() for value in values):
            raise ValueError
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: labels {str(labels)[:80]!r} are not names with numbers from 0 to 65535") from error
    if len(pairs) < len(labels):
        raise UserError(f"{where}: two labels have one name; give each its own")
    pairs = {name: values for name, values in pairs.items() if name.lower() != BACKGROUND and values != (0,)}
    return renamed(_whole_pancreas(pairs), where)


def _numbers(given: Any) -> tuple[int, ...]:
    values = given if isinstance(given, list) else [given]
    if not values or any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise ValueError
    return tuple(sorted(values))


def _whole_pancreas(values: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """MSD Task07 as it was released or as nnU-Net took it: pancreas without the cancer inside it, and the cancer."""
    if set(values) != {"pancreas", "cancer"}:
        return values
    return {PANCREAS: tuple(sorted({*values["pancreas"], *values["cancer"]})), LESION: values["cancer"]}


def parsed_labels(text: str, where: Any) -> dict[str, tuple[int, ...]]:
    """`label_values` of JSON text. Raises UserError."""
    try:
        return label_values(json.loads(text), where)
    except json.JSONDecodeError as error:
        raise UserError(f'{where}: {text[:60]!r} is no JSON; write labels as {{"pancreas": 1}}') from error
