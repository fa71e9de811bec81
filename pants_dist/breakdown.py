"""The report's section on subgroups: scores and detection by what is known of cases, tests, and centers at one case mix."""

from collections.abc import Sequence

import pandas as pd

from pants_dist import comparisons
from pants_dist.bycenter import detection_row, score_known, truth_known
from pants_dist.detection import TRUTHS, tuned_threshold
from pants_dist.errors import UserError
from pants_dist.protocol import Analysis
from pants_dist.report import centers_known, centers_of, patients_of
from pants_dist.subgroups import (
    LESION_MM3,
    adjusted_means,
    detection_table,
    ordered,
    sphere_diameter_mm,
    subgroup_table,
    subgroups_of,
    with_bands,
)

SUBGROUPS = ("sex", "age_band", "phase", "manufacturer", "slice_band", "tumor_band", "nationality", "center_kind", "dataset")


def subgroup_rows(rows: pd.DataFrame, analysis: Analysis) -> tuple[pd.DataFrame, list[tuple[str, ...]]]:
    """Rows with bands, and what to break them down by: columns with two values or more, then the analysis's crossings.

    Raises UserError where the analysis declares a crossing of a column that there is not.
    """
    banded = with_bands(rows)
    known = [name for name in SUBGROUPS if name in banded and banded[name].astype(str).nunique() > 1]
    for name in (name for pair in analysis.crossings for name in pair):
        if name not in banded and analysis.crossings != Analysis().crossings:
            raise UserError(f"analysis: crossings name {name}; the rows and the metadata have {', '.join(known) or 'none'}")
    crossed = [pair for pair in analysis.crossings if set(pair) <= set(banded)]
    return banded, [*((name,) for name in known), *crossed]


def breakdown(
    rows: pd.DataFrame, structures: Sequence[str], primary: str, analysis: Analysis
) -> list[tuple[str, str, pd.DataFrame]]:
    """Tables (name, title, table): every score by subgroup, the primary one alone, its tests, detection with PPV and NPV at
    the analysis's prevalence, and each center's mean of the primary score at the case mix of all.
    """
    banded, groupings = subgroup_rows(rows, analysis)
    scores = [f"{kind}/{name}" for kind in ("dsc", "nsd") for name in structures]
    scores = [name for name in scores if name in rows and rows[name].notna().any()]
    witnesses = (patients_of(rows), centers_of(rows))
    parts = [subgroup_table(banded, by, scores, *witnesses).assign(by=" x ".join(by)) for by in groupings]
    tables = []
    if parts:
        every = pd.concat(parts, ignore_index=True)[["by", "subgroup", "score", "n", "value", "low", "high"]]
        one = every[(every["score"] == primary) & (every["n"] > 0)].drop(columns="score")
        one = one.rename(columns={"value": primary, "low": f"{primary}/low", "high": f"{primary}/high"})
        tables += [("subgroups", "Every score by subgroup", every), ("subgroups_primary", f"{primary} by subgroup", one)]
        tests = _tests(banded, groupings, primary, analysis)
        tables.append(("subgroup_tests", f"Is {primary} alike in every subgroup?", tests))
    if (truth := truth_known(rows)) and "lesion_predicted" in rows:
        title = f"Detection by subgroup; PPV and NPV if {100 * analysis.prevalence:g} % of those scanned had a lesion"
        tables.append(("subgroup_detection", title, _detection(banded, groupings, TRUTHS[truth], analysis)))
    if truth and (score := score_known(rows)) and groupings:
        title = "AUC, carried-over threshold, lesion components and calibration by subgroup"
        tables.append(("subgroup_calibration", title, _curves(banded, groupings, truth, score, analysis)))
    mixed = case_mix_table(banded, primary) if centers_known(rows) else pd.DataFrame()
    if not mixed.empty:
        tables.append(("adjusted", f"{primary} by center, as it is and at the case mix of all", mixed))
    return tables


def _tests(banded: pd.DataFrame, groupings: list[tuple[str, ...]], primary: str, analysis: Analysis) -> pd.DataFrame:
    """Kruskal-Wallis over the subgroups of each column, p adjusted over all columns."""
    lines = []
    for by in (by for by in groupings if len(by) == 1):
        found = comparisons.kruskal(banded[primary], banded[by[0]].fillna("unknown").astype(str).tolist())
        lines.append((by[0], found.groups, found.n, found.statistic, found.epsilon2, found.p))
    table = pd.DataFrame(lines, columns=["by", "groups", "cases", "H", "epsilon squared", "p"])
    return table.assign(p_adjusted=comparisons.ADJUSTMENTS[analysis.adjust](table["p"]))


def _detection(banded: pd.DataFrame, groupings: list[tuple[str, ...]], truth: str, analysis: Analysis) -> pd.DataFrame:
    """A line a subgroup, "all" first: sensitivity, specificity, PPV and NPV with their limits and n."""
    lines = []
    for by in [("all",), *groupings]:
        rows = banded.assign(all="all cases") if by == ("all",) else banded
        found = detection_table(rows, by, analysis.prevalence, truth, "lesion_predicted", patients_of(rows), centers_of(rows))
        for subgroup, part in found.groupby("subgroup", sort=False):
            line = {"by": " x ".join(by), "subgroup": subgroup}
            for row in part.to_dict("records"):
                name = row["figure"]
                line |= {name: row["value"], f"{name}/low": row["low"], f"{name}/high": row["high"], f"{name}/n": row["n"]}
            lines.append(line)
    return pd.DataFrame(lines)


def _curves(
    banded: pd.DataFrame, groupings: list[tuple[str, ...]], truth: str, score: str, analysis: Analysis
) -> pd.DataFrame:
    """A line a subgroup: `bycenter.detection_row`, which the table by center has, too."""
    threshold, lines = tuned_threshold(banded, truth, score, analysis.specificity), []
    for by in groupings:
        groups = subgroups_of(banded, by)
        for name in ordered(groups):
            part = banded[groups == name]
            head = {"by": " x ".join(by), "subgroup": name, "cases": len(part)}
            lines.append(head | detection_row(part, truth, score, threshold, analysis))
    return pd.DataFrame(lines).drop(columns=["auc/method", "auc/firm"])


def case_mix_table(rows: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Each center's mean of `primary` as it is, and adjusted to the phase, tumor size and slice spacing of all cases.

    Columns: center, n, mean, adjusted with limits; empty where nothing of the case mix is known.
    """
    mix = {name: rows[name] for name in ("phase", "spacing_z_mm") if name in rows and rows[name].nunique() > 1}
    if LESION_MM3 in rows and rows[LESION_MM3].nunique() > 1:
        mix["tumor_mm"] = pd.Series(sphere_diameter_mm(rows[LESION_MM3]), rows.index)
    if not mix:
        return pd.DataFrame()
    found = adjusted_means(rows[primary], centers_of(rows), mix, patients_of(rows))
    return found.rename(columns={"group": "center", "value": "adjusted", "low": "adjusted/low", "high": "adjusted/high"})
