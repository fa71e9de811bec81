"""Rows that were scored earlier, read back: from runs' folders, or from tables of other people; then the report of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pants_dist import tables
from pants_dist.bycenter import full_center_table, group_table
from pants_dist.cases import listing
from pants_dist.checklist import Study, checklist, checklist_table
from pants_dist.config import Settings, load
from pants_dist.errors import UserError
from pants_dist.figures import of_centers, write_picture
from pants_dist.metrics import DEFAULT_TOLERANCE_MM
from pants_dist.protocol import Analysis, keep_analysis, read_analysis
from pants_dist.report import shown_structures, tolerances_of, write_report
from pants_dist.scores import (
    UNIT,
    by_case,
    checked,
    grouped,
    joined,
    prevalence_elsewhere,
    read_cells,
    read_metadata,
    read_scores,
    separator,
)
from pants_dist.sections import Section, analysis_section, primary_of, sections_of
from pants_dist.shortcuts import with_shortcut
from pants_dist.structures import LESION
from pants_dist.tracking import read_summary
from pants_dist.worst import pictures_of, worst_table

ABSENT = {"seen": None, "center_kind": "", "split": ""}  # columns that a table may leave out


@dataclass
class Results:
    """Rows by model, the first being the one that the report is about, and what the page says of where they are from."""

    models: dict[str, pd.DataFrame] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    pictures: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def rows(self) -> pd.DataFrame:
        return next(iter(self.models.values()))


def structures_of(rows: pd.DataFrame) -> list[str]:
    """The structures that rows have a Dice of, in the order of their columns."""
    return [name.removeprefix("dsc/") for name in rows if name.startswith("dsc/")]


def report_results(
    results: Sequence[Path],
    out: Path,
    metadata: Path | None = None,
    group: str | None = None,
    analysis: Path | None = None,
) -> Results:
    """Write OUT/report.html with its tables and figures as files; returns rows and facts.

    Each of `results` is one model: a run's folder, a folder with cases.parquet, or a table (parquet or CSV) with a case
    column and a column a structure. `group` names the column, of the rows or of `metadata`, that takes the center's place.
    Raises UserError where there are no rows, a case comes twice, or there is nothing to group by.
    """
    plan = read_analysis(analysis)
    found = read_results(results, metadata, group, plan)
    _check_models(found, plan, declared=analysis is not None)
    found.models = {name: with_shortcut(rows, plan) for name, rows in found.models.items()}
    by, rows, structures = group or "center", found.rows, structures_of(found.rows)
    parts = sections_of(found.models, structures, plan, by, centers=UNIT not in rows)
    out.mkdir(parents=True, exist_ok=True)
    others = keep_analysis(out, plan)
    found.facts["Analysis"] = plan.digest[:12] + ("" if analysis else ", no file: defaults")
    if others:
        said = (f"{digest[:12]} ({', '.join(names) or 'choices of another version'})" for digest, names in others)
        found.facts["Changed"] = f"reported here before by {listing(list(said))}"
    parts.append(analysis_section(plan, others, declared=analysis is not None))
    _write_files(out, found, plan, by, parts)
    run = results[0]
    study = Study(
        rows, len(found.models), plan, analysis is not None, _settings_of(run), read_summary(run), found.facts.get("Left out")
    )
    checks = checklist(study)
    tables.write_table(out, "checklist", checklist_table(checks))
    primary = primary_of(rows, structures, plan)
    write_report(out, rows, structures, found.facts, found.pictures, by, parts, checks, primary)
    return found


def _settings_of(run: Path) -> Settings | None:
    """What a run was trained with; None of what is no run folder, or of one whose settings this version does not know."""
    try:
        return load(run / "config.yaml", []) if (run / "config.yaml").is_file() else None
    except UserError:
        return None


def _write_files(out: Path, found: Results, plan: Analysis, by: str, parts: Sequence[Section]) -> None:
    """Tables as CSV, Markdown and LaTeX, figures as SVG and PNG; of further models the tables by group."""
    structures = structures_of(found.rows)
    centers = full_center_table(found.rows, structures, plan)
    tables.write_table(out, "centers", centers)
    tables.write_table(out, "worst_cases", worst_table(found.rows, structures, primary_of(found.rows, structures, plan)))
    for name, _, table in (entry for part in parts for entry in part.tables):
        tables.write_table(out, name, table)
    for name, rows in list(found.models.items())[1:]:
        (out / name).mkdir(exist_ok=True)
        tables.write_table(out / name, "groups", group_table(rows, structures_of(rows)))
    pictures = [picture for part in parts for picture in part.pictures]
    primary = primary_of(found.rows, structures, plan)
    for picture in (*of_centers(found.rows, centers, shown_structures(structures), by, primary), *pictures):
        write_picture(out, picture)


def read_results(results: Sequence[Path], metadata: Path | None, group: str | None, plan: Analysis) -> Results:
    """Rows of every model with their group as `center`; see `report_results`."""
    found, known, folded = Results(), read_metadata(metadata) if metadata else None, dict[str, str]()
    for name, result in zip(model_names(results), results, strict=True):
        files = tables_of(result)
        rows = pd.concat([read_rows(path) for path in files], ignore_index=True)
        if (twice := rows["case"].duplicated()).any():
            case = rows.loc[twice, "case"].iloc[0]
            raise UserError(f"results: case {case} stands in more than one of {_listed(files)}; keep one of them")
        if known is not None and metadata:
            rows, lost = joined(rows, known, metadata)
            if (shares := prevalence_elsewhere(known, rows)) is not None:
                rows["center_prevalence"] = shares
            if lost:
                found.facts["Left out"] = f"{len(lost)} cases of {name} that are not in the metadata: {listing(lost, 3)}"
        found.models[name], names = _grouped(rows, group, result, plan)
        folded |= names
        if len(found.models) == 1:
            found.pictures = pictures_of(found.models[name], [path.parent / "worst" for path in files])
    read = {"Rows": _listed([path for result in results for path in tables_of(result)])}
    found.facts = read | ({"Metadata": str(metadata)} if metadata else {}) | found.facts
    if folded:
        said = listing([f"{name} is {center}" for name, center in folded.items()], 3)
        found.facts["Centers"] = f"{len(folded)} spellings folded into {len(set(folded.values()))} centers: {said}"
    if versions := _scored_by(found.models):
        found.facts["Scored by"] = versions
    if len(found.models) > 1:
        first, *others = found.models
        found.facts["Report on"] = f"{first}, compared with {listing(others)}"
    return found


def _scored_by(models: dict[str, pd.DataFrame]) -> str | None:
    """Which version of scoring made the rows of each model, where it is not one for all; None where it is."""
    versions = {
        name: sorted(f"version {int(one)}" for one in rows.get("scoring", pd.Series(dtype=float)).dropna().unique())
        for name, rows in models.items()
    }
    parts = {name: " and ".join(found) or "somebody else, or an older version" for name, found in versions.items()}
    if len(set(parts.values())) == 1 and all(len(found) < 2 for found in versions.values()):
        return None
    said = "; ".join(f"{name} by {part}" for name, part in parts.items())
    return f"{said}: figures may differ in definition; pants-dist evaluate scores a run's cases again"


def _grouped(rows: pd.DataFrame, group: str | None, result: Path, plan: Analysis) -> tuple[pd.DataFrame, dict[str, str]]:
    if group is None and "center" not in rows:
        raise UserError(f"results {result}: no column center; give --metadata FILE --group COLUMN")
    rows = rows.assign(**{name: value for name, value in ABSENT.items() if name not in rows})
    rows, folded = grouped(rows, group or "center", f"{result} and the metadata")
    if (amount := f"predicted_voxels/{LESION}") in rows:
        rows["lesion_predicted"] = (rows[amount] > plan.lesion_voxels).astype(object).where(rows[amount].notna(), None)
    return rows, folded


def _check_models(found: Results, plan: Analysis, declared: bool) -> None:
    """Raises UserError where a model shares no case with any other, the analysis compares one that is not there, or it
    declares another tolerance than surface Dice was scored with."""
    cases = {name: set(rows["case"]) for name, rows in found.models.items()}
    for name in cases if len(cases) > 1 else ():
        if not any(cases[name] & theirs for other, theirs in cases.items() if other != name):
            others = listing(sorted(set(cases) - {name}))
            raise UserError(f"results {name}: no case in common with {others}; each of RESULTS is one model")
    for name in (name for pair in plan.comparisons for name in pair):
        if name not in found.models:
            raise UserError(f"analysis: comparisons name {name}; the models are {', '.join(found.models)}")
    for model, rows in found.models.items() if declared else ():
        for name, used in tolerances_of(rows, structures_of(rows)).items():
            if used != (wanted := plan.tolerances_mm.get(name, DEFAULT_TOLERANCE_MM)):
                raise UserError(
                    f"analysis: tolerances_mm of {name} is {wanted:g}, but {model} was scored with {used:g}; score it again: "
                    "pants-dist evaluate RUN --analysis FILE"
                )


def model_names(results: Sequence[Path]) -> list[str]:
    """A name for each result: the file's without its ending, or the folder's; with the folder above where two are alike."""
    places = [path.parent if path.name == "cases.parquet" else path for path in map(Path.absolute, results)]
    short = [path.stem if path.is_file() else path.name for path in places]
    names = [f"{path.parent.name}-{name}" if short.count(name) > 1 else name for path, name in zip(places, short, strict=True)]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"results {results[number]}: a second one of this name; rename one of them")
    return names


def tables_of(result: Path) -> list[Path]:
    """The tables of rows in a file or folder; of a run's folder, one for each split that was scored."""
    if result.is_file() or result.suffix.lower() in (".csv", ".parquet", ".pq", ".xlsx"):
        return [result]
    for pattern in ("evaluation/*/cases.parquet", "cases.parquet", "*/cases.parquet"):
        if found := sorted(result.glob(pattern)):
            return found
    raise UserError(
        f"results {result}: no cases.parquet there; give a run's folder after "
        f'"pants-dist evaluate {result}", or a table with a case column and a column a structure'
    )


def read_rows(path: Path) -> pd.DataFrame:
    """Rows of one table, ours (dsc/<structure>) or anyone's (<structure>). Raises UserError where it has none."""
    table = read_cells(path, "results")
    if not structures_of(table):
        return read_scores(path, table)
    if path.suffix.lower() == ".csv":
        table = pd.read_csv(path, sep=separator(path), encoding="utf-8-sig", skipinitialspace=True)
    return checked(by_case(table, path, "results"), path)


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
