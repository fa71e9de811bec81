"""The 28 structures of PanTS. A structure's position here is its bit in every palette; the order is part of the format."""

PANTS: tuple[str, ...] = (
    "adrenal_gland_left",
    "adrenal_gland_right",
    "aorta",
    "bladder",
    "celiac_artery",
    "colon",
    "common_bile_duct",
    "duodenum",
    "femur_left",
    "femur_right",
    "gall_bladder",
    "kidney_left",
    "kidney_right",
    "liver",
    "lung_left",
    "lung_right",
    "pancreas",
    "pancreas_body",
    "pancreas_head",
    "pancreas_tail",
    "pancreatic_duct",
    "pancreatic_lesion",
    "postcava",
    "prostate",
    "spleen",
    "stomach",
    "superior_mesenteric_artery",
    "veins",
)
PANCREAS = "pancreas"
PANCREAS_PARTS = ("pancreas_body", "pancreas_head", "pancreas_tail")
LESION = "pancreatic_lesion"


def bit_order(names: set[str]) -> tuple[str, ...]:
    """Names by bit: PanTS's 28 always, then a dataset's own structures in alphabetical order."""
    return PANTS + tuple(sorted(names - set(PANTS)))
