"""What centers can be compared by: the metrics that there are, what they are called, and the cases behind each. Pure."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pants_dist.report import patients_of
from pants_dist.stats import as_floats, t_interval

KINDS = {"dsc": "Dice", "nsd": "Surface Dice", "hd95_mm": "HD95 in mm"}  # of each structure
SHARES = ("sensitivity", "specificity")
MEAN = "dsc"  # over structures


def label_of(metric: str) -> str:
    """What a metric is called on the page."""
    kind, _, structure = metric.partition("/")
    if metric == MEAN:
        return "Dice, mean"
    return f"{KINDS[kind]}, {structure.replace('_', ' ')}" if structure else kind


def lower_is_better(metric: str) -> bool:
    return metric.startswith("hd95_mm")


def metrics_of(centers: pd.DataFrame) -> list[str]:
    """Every metric that any center has a value of."""
    kinds = tuple(f"{kind}/" for kind in KINDS)
    found = [name for name in centers if name.startswith(kinds) and not name.endswith(("/low", "/high"))]
    return [name for name in (MEAN, *SHARES, *found) if name in centers and centers[name].notna().any()]


def choices(centers: pd.DataFrame) -> list[dict[str, Any]]:
    """`metrics_of` as the groups of a select box."""
    groups: dict[str, list[dict[str, str]]] = {}
    for metric in metrics_of(centers):
        kind = KINDS.get(metric.partition("/")[0], "Lesions found")
        groups.setdefault(kind, []).append({"value": metric, "label": label_of(metric)})
    return [{"group": group, "items": items} for group, items in groups.items()]


def cases_of(cases: pd.DataFrame, metric: str) -> pd.Series:
    """The value of each case that a center's is the mean of; NaN where the case says nothing.

    Sensitivity is the mean of hits among cases with a lesion, specificity of clears among those without.
    """
    if metric not in SHARES:
        return cases[metric].astype(float)
    truth, found = as_floats(cases["lesion_present"]), as_floats(cases["lesion_predicted"])
    wanted = 1.0 if metric == "sensitivity" else 0.0
    return pd.Series(found == wanted, cases.index, float).where(truth == wanted)


def counts_of(cases: pd.DataFrame, centers: pd.DataFrame, metric: str) -> list[int]:
    """How many cases of each center have a value of the metric."""
    known = cases_of(cases, metric).notna()
    return [int(known[cases_in(cases, center)].sum()) for center in centers.to_dict("records")]


def cases_in(cases: pd.DataFrame, center: dict[str, Any]) -> pd.Series:
    """Which cases are those of a row of the table of centers."""
    return (cases["center"] == center["center"]) & cases["seen"].isin([center["seen"]])


def with_more(cases: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """The table of centers with mean Dice and HD95 besides, with Student's 95 % intervals over patients."""
    bounds = {MEAN: (0.0, 1.0)} | {f"hd95_mm/{name}": (0.0, float("inf")) for name in structures}
    parts = [cases[cases_in(cases, center)] for center in centers.to_dict("records")]
    more = {}
    for metric, limits in bounds.items():
        if metric in cases:
            found = [t_interval(part[metric], patients_of(part), bounds=limits) for part in parts]
            for name, values in ((metric, "value"), (f"{metric}/low", "low"), (f"{metric}/high", "high")):
                more[name] = [getattr(one, values) for one in found]
    return pd.concat([centers, pd.DataFrame(more, centers.index)], axis=1)
