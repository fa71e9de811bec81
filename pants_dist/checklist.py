"""What reporting guidelines ask of an evaluation, and what this report answers; what it cannot know is left to the authors.

The items are in guidelines.csv, in our words after Metrics Reloaded (Maier-Hein, Reinke et al., Nat Methods 2024;21:195) and
the 2024 update of CLAIM (Tejani et al., Radiol Artif Intell 2024;6:e240300), whose own lists are what a journal wants to see.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import pandas as pd

from pants_dist.cases import UNKNOWN, listing
from pants_dist.protocol import Analysis
from pants_dist.report import CONFOUNDED, tolerances_of
from pants_dist.settings import Settings
from pants_dist.structures import LESION
from pants_dist.subgroups import texts_of

Facts = dict[str, str | None]  # of an item of guidelines.csv what is known, None for nothing


class Item(NamedTuple):
    """One line of the list: who asks, in which part of a paper, for what; whether it is here, and how it is answered.

    `here` is "yes", "in part" (as far as rows and run tell; authors complete it), "no" (could be, and is not) or "authors".
    """

    guideline: str
    part: str
    asks: str
    here: str
    answer: str


@dataclass(frozen=True)
class Study:
    """What the list is filled from: rows of the first model, and if they are a run's also its settings and summary.json."""

    rows: pd.DataFrame
    models: int
    analysis: Analysis
    declared: bool  # the analysis was given as a file
    settings: Settings | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    left_out: str | None = None  # cases that the metadata do not know

    def has(self, *columns: str) -> bool:
        """Whether the rows have a value in any of these columns."""
        return any(name in self.rows and not texts_of(self.rows[name]).isin(["", UNKNOWN]).all() for name in columns)

    def counts(self, column: str) -> str:
        """Each value with its number of cases."""
        return listing([f"{name} {count:,}" for name, count in texts_of(self.rows[column]).value_counts().items()], 6)

    def structures(self, metric: str) -> list[str]:
        """The structures that have a value of dsc, nsd or predicted_mm3."""
        return [name.partition("/")[2] for name in self.rows if name.startswith(f"{metric}/") and self.rows[name].notna().any()]


def checklist(study: Study) -> list[Item]:
    """All items for these rows."""
    facts = _metrics(study) | _data(study) | _model(study) | _evaluation(study)
    with resources.files("pants_dist").joinpath("guidelines.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [_item(line, facts[line["fact"]] if line["fact"] else None) for line in lines]


def _item(line: Mapping[str, str], fact: str | None) -> Item:
    head = (line["guideline"], line["part"], line["asks"])
    if fact is None:
        return Item(*head, line["else here"], line["otherwise"])
    return Item(*head, line["here"], f"{fact}; {line['otherwise']}" if line["here"] == "in part" else fact)


def checklist_table(items: Iterable[Item]) -> pd.DataFrame:
    """The list as a table that authors can go on with."""
    return pd.DataFrame(items).rename(columns={"asks": "asked for", "answer": "how"})


def _metrics(study: Study) -> Facts:
    rows, analysis = study.rows, study.analysis
    within = [f"{name} {mm:g}" for name, mm in tolerances_of(rows, study.structures("dsc")).items()]
    lesions, components = study.has("lesion_present", "tumor_flag"), study.has("lesion_components")
    scored = lesions and study.has("lesion_max_logit", f"predicted_voxels/{LESION}", f"predicted_mm3/{LESION}")
    lost = f"{int(rows['status'].eq('no prediction').sum()):,} of {len(rows):,}" if "status" in rows else None
    tuned = f"the threshold of specificity {analysis.specificity:g} on seen tuning cases: carried_over.csv"
    prevalence = f"PPV and NPV at {100 * analysis.prevalence:g} %: subgroup_detection.csv"
    return {
        "tasks": f"segmentation by structure{'; lesions also by patient and by component, each by its name' * scored}",
        "surface": "Dice and surface Dice" if study.structures("nsd") else None,
        "tolerances": f"in mm: {', '.join(within)}" if within else None,
        "volumes": "predicted where there is none: false_positives.csv" if study.structures("predicted_mm3") else None,
        "sizes": "by tumor size: subgroups.csv" if study.has(f"reference_mm3/{LESION}") else None,
        "detection": "sensitivity, specificity, AUC, FROC: presets.csv" if scored and components else None,
        "matching": "26-neighborhood, one to one, IoU of 0.1 or more" if components else None,
        "tuned": tuned if scored and rows["split"].eq("val_seen").any() else None,
        "prevalence": prevalence if lesions and study.has("lesion_predicted") else None,
        "empty": "no reference: not scored; no prediction: 0, or a miss",
        "lost": f"{lost}, against the system" if lost else None,
        "units": "patients within a center, centers over several; structures apart" if study.has("patient") else None,
        "spread": "quartiles and cases by group: boxes.svg; medians: groups.csv",
        "calibration": "intercept, slope, Brier: calibration_table.csv" if lesions and study.has("lesion_max_logit") else None,
        "implementation": "this software's tests hold it equal to surface-distance, MONAI, SciPy and scikit-learn"
        if study.has("scoring")
        else None,
    }


def _data(study: Study) -> Facts:
    rows, settings = study.rows, study.settings
    sources = [f"{len(rows):,} cases of {rows.loc[rows['center'] != UNKNOWN, 'center'].nunique():,} centers or groups"]
    sources += [f"{name}s {study.counts(column)}" for name, column in (("dataset", "dataset"), ("year", "study_year"))
                if study.has(column)]  # fmt: skip
    known = [name for name in ("sex", "age", "phase", "manufacturer") if study.has(name)]
    blank = [UNKNOWN, "0", "0.0"]  # an age of 0 is none
    unknown = ", ".join(f"{name} {int(texts_of(study.rows[name]).isin(blank).sum()):,}" for name in known)
    acquired = [f"{name}s {study.counts(name)}" for name in ("manufacturer", "phase") if study.has(name)]
    if study.has("spacing_z_mm"):
        low, middle, high = pd.to_numeric(rows["spacing_z_mm"], errors="coerce").quantile([0, 0.5, 1])
        acquired.append(f"slices {middle:g} mm apart ({low:g} to {high:g})")
    truth = None
    if study.has("lesion_present") and study.has("tumor_flag"):
        both = rows[["lesion_present", "tumor_flag"]].dropna().astype(bool)
        unlike = int((both["lesion_present"] != both["tumor_flag"]).sum())
        truth = f"lesions by mask and by flag, which differ in {unlike:,} of {len(both):,} cases"
    prepared = None
    if settings:
        spacing = settings.data.spacing_mm_zyx
        prepared = f"HU at {' x '.join(f'{mm:g}' for mm in spacing)} mm (z, y, x)" if spacing else "HU in each scan's spacing"
    return {
        "sources": "; ".join(sources),
        "prepared": prepared,
        "subset": f"data.subset: {settings.data.subset or 'none'}" if settings else None,
        "missing": f"unknown: {unknown}; subgroups of their own" if unknown else None,
        "acquired": "; ".join(acquired) or None,
        "truth": truth,
        **_partitions(study),
    }  # fmt: skip


def _partitions(study: Study) -> Facts:
    rows, settings, split = study.rows, study.settings, study.has("split")
    how = settings and (f"frozen file {settings.data.split_file}" if settings.data.split_file else "by hashes of case ids")
    disjoint = (
        ["hospitals held out whole; suspected patients of held-out and test cases are not trained on"] if settings else []
    )
    if split and study.has("patient"):
        disjoint.append(f"{int((rows.groupby('patient')['split'].nunique() > 1).sum()):,} patients in two splits of these rows")
    size = f"{len(rows):,} cases"
    if study.has("lesion_present"):
        size += f", {int(rows['lesion_present'].eq(True).sum()):,} with a lesion"
    if study.has("trained_cases"):
        size += f", trained on {int(rows['trained_cases'].max()):,}"
    return {
        "assigned": f"{study.counts('split')}{f', {how}' if how else ''}" if split else None,
        "disjoint": "; ".join(disjoint) or None,
        "size": size,
    }


def _model(study: Study) -> Facts:
    """What a run's settings say of it."""
    settings, machine = study.settings, study.summary.get("machine") or {}
    if settings is None:
        return dict.fromkeys(("network", "software", "weights", "training", "chosen", "ensemble"))
    data, model, optim, train, grow = settings.data, settings.model, settings.optim, settings.train, settings.augment
    changed = f"turned by {grow.rotation_degrees:g} degrees, zoomed by {grow.scale[0]:g} to {grow.scale[1]:g}, mirrored along "
    changed += f"{grow.mirror or 'no axis'}, intensities {'changed' if grow.intensity else 'as they are'}"
    where = f"{machine.get('ranks', train.ranks)} ranks on {machine.get('gpu') or 'CPUs'}"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "cuda") if machine.get(name))
    best = f"best.ckpt by {settings.validation.best} of seen validation cases, if there is one, else the last"
    return {
        "network": f"{model.name}, channels {', '.join(map(str, model.channels))}, patches "
                   f"of {' x '.join(map(str, data.patch_zyx))} (z, y, x); {model.target}: "
                   f"{', '.join(model.outputs.structures)}",
        "software": versions or None,
        "weights": f"of {train.init_from}" if train.init_from else f"random, seed {settings.seed}",
        "training": f"Dice and cross-entropy; {optim.name}, rate {optim.lr:g} ({optim.schedule}), {train.steps:,} steps "
                    f"of {train.batch} patches, {train.precision}; {changed}; {where}; every setting: config.yaml",
        "chosen": best,
        "ensemble": "one model",
    }  # fmt: skip


def _evaluation(study: Study) -> Facts:
    rows, analysis = study.rows, study.analysis
    inside, outside = (rows[rows["seen"].isin([seen])] for seen in (True, False))
    lost = f", {int(rows['status'].eq('no prediction').sum()):,} of them without a prediction" if "status" in rows else ""
    people = [f"sex {study.counts('sex')}"] if study.has("sex") else []
    if study.has("age"):
        ages = pd.to_numeric(rows["age"], errors="coerce")
        people.append(f"age {ages[ages > 0].mean():.1f} (SD {ages[ages > 0].std():.1f}, 0 not counted)")
    apart = study.has("sex", "age", "phase", "manufacturer", "spacing_z_mm", f"reference_mm3/{LESION}")
    held = f"{len(outside):,} cases of {outside['center'].nunique():,} held-out centers or groups"
    return {
        "measures": "by name in docs/evaluation.md; tolerances in analysis.json",
        "uncertainty": f"95 % intervals; {analysis.draws:,} resamples, seed {analysis.seed}; p adjusted ({analysis.adjust})",
        "beforehand": f"{analysis.primary}, digest {analysis.digest[:12]}: analysis.json" if study.declared else None,
        "robustness": "by group and subgroup: subgroups.csv" if apart else None,
        "internal": f"{len(inside):,} cases of seen centers" if len(inside) else None,
        "external": held if len(outside) else None,
        "flow": f"{len(rows):,} cases{lost}{f'; left out: {study.left_out}' if study.left_out else ''}",
        "people": "; ".join(people) or None,
        "performance": "centers.csv, groups.csv",
        "diagnostic": "sensitivity, specificity: centers.csv" if study.has("lesion_present", "tumor_flag") else None,
        "comparison": f"{study.models} models, paired: comparisons.csv" if study.models > 1 else None,
        "failures": "worst_cases.csv",
        "limits": CONFOUNDED.rstrip("."),
        "protocol": f"analysis {analysis.digest[:12]}: analysis.json" if study.declared else None,
    }  # fmt: skip
