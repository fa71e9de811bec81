"""Rows as an evaluation writes them, of a made-up cohort whose centers differ in prevalence, protocol and difficulty."""

import numpy as np
import pandas as pd

LESION = "pancreatic_lesion"


def scored_rows(centers: int = 8, each: int = 40, seed: int = 0, skill: float = 1.5) -> pd.DataFrame:
    """`each` cases of each center; the last third of the centers is held out. Lesion logits differ by `skill` when present.

    Every tenth scan is of the patient of the one before it.
    """
    rng, rows = np.random.default_rng(seed), []
    for number in range(centers * each):
        center = number % centers
        lesion = bool(rng.random() < (center + 1) / (centers + 1))
        logit = float(rng.normal(skill * lesion - 1, 1))
        voxels = int(max(0, rng.normal(900, 300))) if logit > 0 else 0
        ease = 0.85 - 0.02 * center
        rows.append({
            "case": f"PanTS_{number + 1:08d}", "center": f"Hospital {'ABCDEFGHIJKLMNOP'[center]}", "center_kind": "single",
            "seen": center < centers - centers // 3, "split": "val_seen" if center < centers - centers // 3 else "held_out",
            "status": "scored", "patient": f"p{number - (number % 10 == 9)}", "phase": ("venous", "arterial")[center % 2],
            "spacing_z_mm": float(rng.choice([1.0, 2.5, 5.0])), "n_voxels": int(rng.integers(10**6, 10**7)),
            "lesion_present": lesion, "lesion_predicted": voxels > 0, "lesion_max_logit": logit,
            f"predicted_voxels/{LESION}": voxels, f"predicted_mm3/{LESION}": voxels * 0.9,
            "lesion_components": int(lesion), "lesion_components_hit": int(lesion and logit > 0.3),
            "lesion_components_false": int(logit > 0 and not (lesion and logit > 0.3)),
            "lesion_component_logits": [logit] if logit > 0 else [],
            "lesion_component_matched": [lesion and logit > 0.3] if logit > 0 else [],
            "dsc/liver": float(np.clip(rng.normal(ease + 0.08, 0.03), 0, 1)),
            "dsc/pancreas": float(np.clip(rng.normal(ease, 0.06), 0, 1)),
            f"dsc/{LESION}": float(np.clip(rng.normal(ease - 0.3, 0.15), 0, 1)) if lesion else np.nan,
            "nsd/pancreas": float(np.clip(rng.normal(ease + 0.05, 0.05), 0, 1)),
        })  # fmt: skip
    return pd.DataFrame(rows)
