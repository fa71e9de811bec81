"""What `pants-dist report` adds to the page by center: each section with its tables and figures, for the page and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pants_dist import bycenter, comparisons, curves, shortcuts
from pants_dist.breakdown import breakdown
from pants_dist.cases import UNKNOWN
from pants_dist.detection import absent_table, amounts_of, truth_of
from pants_dist.figures import Picture, spoken
from pants_dist.metrics import DEFAULT_TOLERANCE_MM
from pants_dist.presets import carried_over, detection_table
from pants_dist.protocol import Analysis
from pants_dist.protocol import spoken as spoken_choices
from pants_dist.report import center_table, centers_known, centers_of, patients_of, tolerances_of, witnesses_of
from pants_dist.roc import clustered_difference, delong, delong_difference
from pants_dist.stats import as_floats, brier, calibration, mcnemar, t_interval
from pants_dist.structures import LESION

DETECTION = (
    "auc", "hollow", "scan_auc", "sensitivity", "specificity", "tuned_sensitivity", "tuned_specificity", "component_sensitivity"
)  # fmt: skip
CARRIED = ("preset", "truth", "cases", "set", "threshold", "sensitivity", "specificity")
CALIBRATION = ("calibration_intercept", "calibration_slope", "brier")
SPOKEN = {name: name.replace("_", " ").partition("/")[0] for name in bycenter.SCORES} | {bycenter.LOGIT: "largest logit"}
MOST_GROUPS = 12  # above so many, pairs of groups go to the files only


@dataclass
class Section:
    """A heading, what to know before reading, and below it tables (name, title, table) and figures."""

    title: str
    remark: str
    tables: list[tuple[str, str, pd.DataFrame]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)  # tables that are files only


def sections_of(
    models: Mapping[str, pd.DataFrame], structures: Sequence[str], analysis: Analysis, by: str, centers: bool
) -> list[Section]:
    """All sections for the first model's rows and the comparison with the others.

    `by` is what the groups are called; `centers` says that they are centers, so that they are a sample of more.
    """
    rows = next(iter(models.values()))
    found = [_groups(rows, structures, analysis, by)]
    if centers:
        found.append(_across(models, structures, analysis))
    if bycenter.truth_known(rows) and bycenter.score_known(rows):
        found.append(_detection(rows, structures, analysis, by))
    if parts := _subgroups(rows, structures, analysis):
        found.append(parts)
    if len(models) > 1:
        found.append(_models(models, structures, analysis))
    return found


def analysis_section(analysis: Analysis, others: Sequence[tuple[str, list[str]]], declared: bool) -> Section:
    """What was chosen, its digest, and which choices other analyses reported in the same folder made differently."""
    source = "analysis.yaml" if declared else "no analysis.yaml was given, so these are defaults"
    remark = f"Chosen by {source}; SHA-256 {analysis.digest}. "
    if others:
        said = (f"{digest[:12]}, unlike in {', '.join(names) or 'choices of another version'}" for digest, names in others)
        remark += f"In this folder other analyses were reported before: {'; '.join(said)}."
    table = pd.DataFrame(spoken_choices(analysis), columns=["choice", "value"])
    return Section("The analysis", remark, [("analysis", "Choices", table)])


def _subgroups(rows: pd.DataFrame, structures: Sequence[str], analysis: Analysis) -> Section | None:
    tables = breakdown(rows, structures, primary_of(rows, structures, analysis), analysis)
    remark = (
        "What is not known is a subgroup of its own. Subgroups of few cases have a mean and no interval. Tests: "
        f"Kruskal-Wallis, adjusted over all columns ({analysis.adjust}). PPV and NPV carry sensitivity and specificity over to "
        "people who were not scanned: that both stay as they are is an assumption. Adjusted means: least squares on center "
        "and phase, tumor size and slice spacing; a center that shares no phase with the others has none."
    )
    return Section("Subgroups and case mix", remark, tables, hidden={"subgroups"}) if tables else None


def _groups(rows: pd.DataFrame, structures: Sequence[str], analysis: Analysis, by: str) -> Section:
    primary = primary_of(rows, structures, analysis)
    score = spoken(primary)
    values, groups = rows[primary], rows["center"].tolist()
    test = comparisons.kruskal(values, groups)
    pairs = comparisons.pairwise_mann_whitney(values, groups, analysis.adjust)
    remark = (
        f"Is {score} alike in every {by}? Kruskal-Wallis over {test.groups} groups and {test.n} cases: "
        f"H = {test.statistic:.2f}, p = {test.p:.2g}, effect size epsilon squared = {test.epsilon2:.3f}. Pairs: two-sided "
        f"Mann-Whitney, adjusted over all pairs ({analysis.adjust}), with Cliff's delta. Cases are taken as independent here."
    )
    section = Section(
        f"Every structure, every {by}",
        remark if test.p == test.p else f"One {by} alone has a value of {score}: nothing to compare.",
        [("groups", f"Dice by {by}", bycenter.group_table(rows, structures)), ("pairs", f"{score}, pair by pair", pairs)],
    )
    if surface := [name for name in structures if f"nsd/{name}" in rows and rows[f"nsd/{name}"].notna().any()]:
        section.tables += _surface(rows, surface, analysis, by)
    if not (absent := absent_table(rows, structures)).empty:
        section.tables.append(("false_positives", "Structures predicted where the reference has none", absent))
    section.hidden = {"groups"} | ({"pairs"} if test.groups > MOST_GROUPS or pairs.empty else set())
    if test.groups:
        caption = "Median and quartiles; whiskers to the 5th and 95th percentile of cases. Below five cases: the cases."
        section.pictures.append(Picture("boxes", f"{score} by {by}", caption, curves.box_plot(values, groups, score)))
    return section


def _surface(rows: pd.DataFrame, names: list[str], analysis: Analysis, by: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Surface Dice by group, and of every structure surface Dice and HD95 with how often it is undefined."""
    centers = center_table(rows, names)
    within = tolerances_of(rows, names)
    said = ", ".join(f"{name} {within.get(name, analysis.tolerances_mm.get(name, DEFAULT_TOLERANCE_MM)):g}" for name in names)
    words = f"tolerance in mm{'' if within else ' as declared'}: {said}"
    table = _with_intervals(centers.rename(columns={"center": by}), [by, "n", *(f"nsd/{name}" for name in names)])
    found = [("surface_dice", f"Surface Dice by {by} ({words})", table)]
    if any(f"hd95_mm/{name}" in rows for name in names):
        found.append(("distances", "Distances of surfaces, all cases", bycenter.distance_table(rows, names)))
    return found


def primary_of(rows: pd.DataFrame, structures: Sequence[str], analysis: Analysis) -> str:
    """The column of the primary endpoint; where the rows have no value of it, the first structure's Dice that has one."""
    columns = [analysis.primary, *(f"dsc/{name}" for name in structures)]
    return next((name for name in columns if name in rows and rows[name].notna().any()), columns[1])


def _across(models: Mapping[str, pd.DataFrame], structures: Sequence[str], analysis: Analysis) -> Section:
    rows = next(iter(models.values()))
    remark = (
        "The unit is the center; pools and unknown ones are left out here. The gap is descriptive: mean of seen centers less "
        "mean of held-out ones, by Welch's t below 20 centers a side, else by a bootstrap of centers and then patients. "
        'Spread by random effects (REML, Hartung-Knapp); "new center": where the mean of one more center is expected. The '
        'worst center is drawn towards the others as its "shrunken" estimate; "by chance" is what the worst of as many equal '
        "centers would show. "
    )
    paired, sizes = bycenter.generalization_gap(models, structures, analysis)
    remark += sizes
    rows = rows[~rows["center_kind"].isin(["pool", UNKNOWN]) & (rows["center"] != UNKNOWN)]
    if rows.empty:
        return Section("What the centers say together", "No case is from a center that is known.")
    gap = bycenter.gap_table(rows, structures, analysis)
    given = not gap.empty and (gap["method"] != "none").any()
    tables = [("gap", "Descriptive gap: seen less held-out centers", gap)] if given else []
    if not paired.empty:
        tables.append(("generalization_gap", "Generalization gap: trained with the center less without it, same cases", paired))
    spread, worst = bycenter.spread_tables(rows, structures)
    tables.append(("spread", "Mean over centers, and where a new one is expected", spread))
    tables.append(("worst_center", "Worst center", worst))
    return Section("What the centers say together", remark, tables)


def _detection(rows: pd.DataFrame, structures: Sequence[str], analysis: Analysis, by: str) -> Section:
    truth, score = bycenter.truth_known(rows), bycenter.score_known(rows)
    assert truth and score
    centers = bycenter.full_center_table(rows, structures, analysis)
    remark = (
        f"Truth by {truth}, score {score}; a patient is positive above {analysis.lesion_voxels} predicted voxels. "
        f"{bycenter.aucs_left(rows)} An AUC over all cases also rewards knowing the center, so it stands beside shortcuts "
        "that never look at the scan; within centers each case with a lesion is compared with the others of its own center "
        f"only. tuned_*: at the threshold with specificity {analysis.specificity:.2f} on seen tuning cases, carried over. "
        "Intervals of shares are over centers, of fewer than 5 over suspected patients; of AUCs over centers and FROC scores "
        "by a bootstrap of centers, then patients."
    )
    marked = _auc_marked(centers).rename(columns={"center": by})
    counts = bycenter.auc_counts(rows).rename(columns={"centers": "centers" if by == "center" else "groups"})
    tables = [
        ("auc_counts", f"AUCs by {by}: firm from 20 with and 20 without a lesion, hollow from 10 and 10", counts),
        ("shortcuts", "AUC of the model and of shortcuts", shortcuts.auc_table(rows, analysis)),
        ("detection", f"Detection by {by}", _with_intervals(marked, [by, "set", "positives", *DETECTION])),
        ("calibration_table", f"Calibration by {by}", _with_intervals(marked, [by, "set", "n", *CALIBRATION])),
        ("auc_weights", "Weight of each center in the AUC within centers", shortcuts.weight_table(rows, analysis)),
    ]
    if _presets_apply(rows):
        patients, apart = patients_of(rows), rows.assign(center=centers_of(rows))
        presets = detection_table(apart, patients, analysis.draws, analysis.seed, analysis.specificity)
        presets = shortcuts.with_shortcut_areas(presets, rows)
        carried = _with_intervals(carried_over(apart, patients, analysis.specificity), CARRIED)
        tables.append(("presets", "Every definition of detection by its name", presets))
        tables.append(("carried_over", "Thresholds of seen tuning cases, carried over to other cases", carried))
    shown = [entry for entry in tables if not entry[2].empty]
    return Section("Lesion detection", remark, shown, _curves(rows, truth, score))


def _auc_marked(centers: pd.DataFrame) -> pd.DataFrame:
    """Centers with the column `hollow`: "○" where their AUC rests on less than 20 and 20."""
    hollow = centers["auc"].notna() & ~centers["auc/firm"].astype(bool)
    marks = hollow.map({True: "○", False: ""})
    return centers.assign(hollow=marks, set=centers["seen"].map({True: "seen", False: "held-out"}).fillna(""))


def _with_intervals(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """These columns, as far as they are there, each followed by its limits."""
    return table[[column for name in names for column in (name, f"{name}/low", f"{name}/high") if column in table]]


def _presets_apply(rows: pd.DataFrame) -> bool:
    return f"predicted_voxels/{LESION}" in rows or "lesion_max_logit" in rows


def _curves(rows: pd.DataFrame, truth: str, score: str) -> list[Picture]:
    present = truth_of(rows, truth)
    known = [name for name in bycenter.SCORES if name in rows and rows[name].notna().any()]
    amounts = {name: amounts_of(rows, name, present) for name in known[:2]}
    pictures = []
    if 0 < np.nansum(present) < (~np.isnan(present)).sum():
        caption = f"All cases pooled, truth by {truth}. Gray: shortcuts that never look at the scan."
        others = shortcuts.shortcut_scores(rows, present)
        said = {SPOKEN.get(name, name): values for name, values in amounts.items()}
        ours, theirs = ({_with_area(name, present, score): score for name, score in part.items()} for part in (said, others))
        pictures.append(Picture("roc", "ROC", caption, curves.roc_plot(present, ours, theirs)))
    if "lesion_component_logits" in rows and as_floats(rows["lesion_components"]).max(initial=0) > 0:
        parts = dict(bycenter.sides(rows))
        caption = "Components (26-neighborhood) matched one to one, IoU at least 0.1."
        pictures.append(Picture("froc", "FROC", caption, curves.froc_plot(parts)))
    if score == bycenter.LOGIT:
        caption = "Tenths of cases by the largest lesion probability, with Wilson's intervals; the dotted line is perfect."
        figure = curves.calibration_plot(present, amounts[score], _calibration_words(rows, present))
        pictures.append(Picture("calibration", "Calibration", caption, figure))
    return pictures


def _calibration_words(rows: pd.DataFrame, present: np.ndarray) -> str:
    logits, witnesses = as_floats(rows[bycenter.LOGIT]), witnesses_of(rows)
    weak = calibration(present, logits, witnesses)
    square = brier(present, 1 / (1 + np.exp(-np.clip(logits, -500, 500))), witnesses)
    named = {"Intercept": weak.intercept, "Slope": weak.slope, "Brier score": square}
    known = {name: one for name, one in named.items() if one.value == one.value}
    return "\n".join(f"{name} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for name, one in known.items())


def _models(models: Mapping[str, pd.DataFrame], structures: Sequence[str], analysis: Analysis) -> Section:
    """Every declared pair on the cases that all models have."""
    tables = {name: rows.set_index("case") for name, rows in models.items()}
    common = sorted(set.intersection(*(set(table.index) for table in tables.values())))
    if not common:
        return Section("Models compared", "No case that all models have: nothing to compare.")
    tables = {name: table.loc[common] for name, table in tables.items()}
    first = next(iter(tables.values()))
    primary = primary_of(first.reset_index(), structures, analysis)
    units = centers_of(first) if centers_known(first) else None
    given: dict[str, Any] = {"centers": units, "clusters": patients_of(first), "draws": analysis.draws}
    scores = {name: table[primary].to_numpy() for name, table in tables.items() if primary in table}
    pairs = comparisons.compare_models(scores, **given, adjust=analysis.adjust, seed=analysis.seed)
    pairs = declared(pairs, analysis).rename(columns={"low": "difference/low", "high": "difference/high"})
    remark = (
        f"{spoken(primary)} on the {len(common):,} cases that all {len(models)} models have, two-sided, paired, "
        f"{'clustered by center' if units else 'cases taken as independent, for nobody names their centers'}, "
        f"adjusted over all declared pairs, {len(pairs)} ({analysis.adjust}). "
        "Touchstone's one-sided Wilcoxon test with Holm stands beside it for comparison: it takes cases as independent."
    )
    found = [("comparisons", "Pairs of models", pairs)]
    found.append(("touchstone", "Touchstone's preset", comparisons.touchstone_wilcoxon(scores)))
    if not (lesions := detection_pairs(tables, pairs, analysis)).empty:
        found.append(("detection_comparisons", "Pairs of models, lesion detection", lesions))
    said = "Model of the row less model of the column; bold: adjusted p below 0.05."
    figure = curves.significance_plot(pairs, list(scores), spoken(primary))
    pictures = [Picture("significance", f"Who is better in {spoken(primary)}", said, figure)]
    return Section("Models compared", remark, found, [*pictures, *_models_roc(tables)])


def _models_roc(tables: Mapping[str, pd.DataFrame]) -> list[Picture]:
    """ROC curves of all models on the cases of all, if all have the same score of lesions."""
    first = next(iter(tables.values()))
    truth, score = bycenter.truth_known(first), bycenter.score_known(first)
    if not truth or not score or not all(score in table for table in tables.values()):
        return []
    present = truth_of(first, truth)
    if not 0 < np.nansum(present) < (~np.isnan(present)).sum():
        return []
    amounts = {name: amounts_of(table, score, present) for name, table in tables.items()}
    amounts = {_with_area(name, present, values): values for name, values in amounts.items()}
    caption = f"Cases that all models have, truth by {truth}, score {score}."
    return [Picture("roc_models", "ROC of every model", caption, curves.roc_plot(present, amounts))]


def _with_area(name: str, present: np.ndarray, values: np.ndarray) -> str:
    return f"{name}: AUC {delong(present, [values])[0][0]:.3f}"


def declared(pairs: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """The pairs that the analysis declares (all, if none), with p adjusted over these alone."""
    if analysis.comparisons:
        wanted = {frozenset(pair) for pair in analysis.comparisons}
        keep = [frozenset(pair) in wanted for pair in zip(pairs["first"], pairs["second"], strict=True)]
        pairs = pairs[keep].reset_index(drop=True)
    return pairs.assign(p_adjusted=comparisons.ADJUSTMENTS[analysis.adjust](pairs["p"]))


def detection_pairs(tables: Mapping[str, pd.DataFrame], pairs: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """AUC difference (bootstrap of centers and patients) and McNemar's test of sensitivities, for the same pairs.

    Where no patient has two cases DeLong's test stands beside it, which takes the cases of a center as independent.
    `tables` are indexed by the same cases. Empty where a model has no truth or no score of lesions.
    """
    first = next(iter(tables.values()))
    truth, score = bycenter.truth_known(first), bycenter.score_known(first)
    if not truth or not score or not all(score in table for table in tables.values()):
        return pd.DataFrame()
    present, centers, lines = truth_of(first, truth), centers_of(first), []
    independent = score == bycenter.LOGIT and first.get("patient", first.index.to_series()).is_unique
    for pair in zip(pairs["first"], pairs["second"], strict=True):
        ours, theirs = (tables[name] for name in pair)
        one, other = (amounts_of(table, score, present) for table in (ours, theirs))
        apart = clustered_difference(present, one, other, centers, patients_of(first), analysis.draws, analysis.seed)
        line = {"first": pair[0], "second": pair[1], "auc difference": apart.value, "auc difference/low": apart.low}
        line |= {"auc difference/high": apart.high, "p": apart.p}
        if independent:
            line["p (DeLong)"] = delong_difference(present, one, other).p
        if "lesion_predicted" in ours and "lesion_predicted" in theirs:
            hits = [np.where(present == 1, as_floats(table["lesion_predicted"]), np.nan) for table in (ours, theirs)]
            found = mcnemar(*hits)
            more = t_interval(hits[0] - hits[1], witnesses_of(first.reset_index()))
            line |= {"sensitivity difference": more.value, "sensitivity difference/low": more.low}
            line |= {"sensitivity difference/high": more.high, "only first finds": found.only_first}
            line |= {"only second finds": found.only_second, "p (McNemar)": found.p}
        lines.append(line)
    table = pd.DataFrame(lines)
    for name in [name for name in ("p", "p (DeLong)", "p (McNemar)") if name in table]:
        table[f"{name} adjusted"] = comparisons.ADJUSTMENTS[analysis.adjust](table[name])
    return table
