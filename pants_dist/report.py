"""Tables and figures from rows, one a case: by center on the terminal, as parquet, and as one self-contained HTML page."""

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pants_dist import __version__, figures
from pants_dist.detection import named
from pants_dist.disk import replacing
from pants_dist.scores import UNIT
from pants_dist.stats import FEWEST, Estimate, Labels, outermost, sensitivity_specificity, t_interval
from pants_dist.tables import shown

if TYPE_CHECKING:
    from rich.console import Console

    from pants_dist.checklist import Item
    from pants_dist.sections import Section

FEWEST_FOR_A_GAP = (5, 5)  # seen and held-out centers, below which no verdict on a gap is given
CONFOUNDED = "Center is confounded with source dataset: scanner, protocol, patients and annotators differ together."
SHORT = {"pancreatic_lesion": "lesion"}
NAN = float("nan")


def center_table(rows: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """One row a center: kind, seen, n, positives, mean Dice and surface Dice with t-intervals, sensitivity, specificity.

    Positive means any voxel of lesion: in the reference for `positives`, in the prediction for the two shares, which are
    of patients and NaN where there is none to count. Intervals are over suspected patients where the rows name them. Where
    nobody knows which centers were trained on, `seen` is None. Sorted by seen, then by name.
    """
    known = [f"{metric}/{name}" for metric in ("dsc", "nsd") for name in structures if f"{metric}/{name}" in rows]
    table = [
        _center_row(center, None if seen != seen else bool(seen), part, known)
        for (seen, center), part in rows.groupby(["seen", "center"], dropna=False)
    ]
    return pd.DataFrame(table).sort_values(["seen", "center"], ascending=[False, True], ignore_index=True)


def patients_of(rows: pd.DataFrame) -> pd.Series | None:
    """The suspected patient of each case; None where the rows do not name them, so that each case is one."""
    return rows["patient"] if "patient" in rows else None


def centers_known(rows: pd.DataFrame) -> bool:
    """Whether anyone says which center each case is from: groups by another column, such as sex, are no centers."""
    return UNIT not in rows or bool(rows[UNIT].notna().any())


def centers_of(rows: pd.DataFrame) -> list[str]:
    """The center of each case whatever the groups in the column `center` are; "" for all where nobody names them."""
    return (rows[UNIT].fillna("") if UNIT in rows else rows["center"]).tolist()


def witnesses_of(rows: pd.DataFrame) -> Labels | None:
    """What an interval over these rows counts as one: centers if there are FEWEST, for their cases are alike; else patients."""
    return outermost(centers_of(rows), patients_of(rows))


def _center_row(center: str, seen: bool | None, part: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    kind = "" if UNIT in part else part["center_kind"].iloc[0]  # groups of several centers are of no kind
    row = {"center": center, "center_kind": kind, "seen": seen, "n": len(part)}
    row |= detection(part)
    for column in columns:
        found = t_interval(part[column], witnesses_of(part), bounds=(0, 1))
        row |= {column: found.value, f"{column}/low": found.low, f"{column}/high": found.high}
    return row


def tolerances_of(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """The tolerance of surface Dice in mm that each structure was scored with, as far as the rows tell."""
    columns = {name: rows[f"tolerance_mm/{name}"].dropna() for name in names if f"tolerance_mm/{name}" in rows}
    return {name: float(values.iloc[0]) for name, values in columns.items() if len(values)}


def detection(rows: pd.DataFrame) -> dict[str, Any]:
    """Patients with a lesion, sensitivity and specificity over patients, each with interval and n; NaN where there is none."""
    nothing = Estimate(NAN, NAN, NAN, 0)
    sensitivity, specificity = nothing, nothing
    if "lesion_present" in rows and "lesion_predicted" in rows:
        given = (rows["lesion_present"], rows["lesion_predicted"], patients_of(rows), centers_of(rows))
        sensitivity, specificity = sensitivity_specificity(*given)
    return {"positives": sensitivity.n, **named("sensitivity", sensitivity), **named("specificity", specificity)}


def shown_structures(structures: Sequence[str]) -> list[str]:
    """Pancreas, lesion and liver first, then up to six columns in all."""
    first = [name for name in ("pancreas", "pancreatic_lesion", "liver") if name in structures]
    return (first + [name for name in structures if name not in first])[:6]


def verdict(centers: pd.DataFrame) -> str:
    """One sentence on the gap between seen and held-out hospitals, or why none can be given; pools do not count."""
    known = figures.hospitals(centers)
    counts = [int((known["seen"] == seen).sum()) for seen in (True, False)]
    if not any(counts):
        return "Nobody says which of them were trained on, so there is no gap to speak of."
    if min(counts) == 0:
        return "Only one kind of center here, so there is no gap to speak of."
    if counts[0] < FEWEST_FOR_A_GAP[0] or counts[1] < FEWEST_FOR_A_GAP[1]:
        return (
            f"No verdict on a gap: {counts[0]} seen and {counts[1]} held-out centers are too few; "
            f"it takes at least {FEWEST_FOR_A_GAP[0]} of each."
        )
    return "The gap is descriptive: mean over seen centers less mean over held-out ones."


def print_table(centers: pd.DataFrame, structures: Sequence[str], console: "Console", by: str = "center") -> None:
    """The table by center (or what else the groups are) on a terminal, with a line for all seen and all held-out ones."""
    from rich import box
    from rich.table import Table

    names = fitting(structures, console.width)
    title = f"Dice by {by} (95 % t-interval from {FEWEST} cases on)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(by, overflow="fold", min_width=16, max_width=34)
    table.add_column("", no_wrap=True)
    for heading in ("n", *(SHORT.get(name, name).replace("_", "\n") for name in names), "sens.", "spec."):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in centers.to_dict("records"):
        scores = [_with_interval(row, f"dsc/{name}").replace(" ", "\n") for name in names]
        table.add_row(row["center"], _kind(row["seen"]), str(row["n"]), *scores, *_shares(row))
    table.add_section()
    for seen, part in figures.hospitals(centers).groupby("seen", sort=False, dropna=False):
        means = [_number(part[f"dsc/{name}"].mean()) for name in names]
        table.add_row(f"mean of {len(part)}", _kind(seen), str(part["n"].sum()), *means, "", "")
    console.print(table)
    more = len(structures) - len(names)
    console.print(
        "Sensitivity and specificity count patients; positive: any predicted lesion voxel. "
        + (f"{more} more structure{'s' * (more > 1)}: in the report. " if more else "")
        + f"{verdict(centers)} {CONFOUNDED}", style="dim"
    )  # fmt: skip


def fitting(structures: Sequence[str], columns: int) -> list[str]:
    """As many of `shown_structures` as a terminal of so many columns has room for beside names, counts and shares."""
    return shown_structures(structures)[: max((columns - 52) // 11, 1)]


def _kind(seen: Any) -> str:
    return "" if seen is None or seen != seen else "seen" if seen else "held-out"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.2f}"


def _with_interval(row: dict[str, Any], column: str) -> str:
    low, high = row[f"{column}/low"], row[f"{column}/high"]
    return _number(row[column]) + (f" {low:.2f}-{high:.2f}" if low == low else "")


def _shares(row: dict[str, Any]) -> list[str]:
    """Sensitivity and specificity as patients, "2/3"."""
    pairs = [(row[name], row[f"{name}/n"]) for name in ("sensitivity", "specificity")]
    return ["" if share != share else f"{round(share * n)}/{n}" for share, n in pairs]


def write_report(
    out: Path,
    rows: pd.DataFrame,
    structures: Sequence[str],
    facts: dict[str, str],
    pictures: Sequence[tuple[str, Path]],
    by: str = "center",
    sections: Sequence["Section"] = (),
    checks: Sequence["Item"] = (),
    primary: str | None = None,
) -> Path:
    """Write OUT/report.html, one file that needs no other, from rows of cases; returns its path.

    `facts` are shown at its head; `pictures` are titles and PNG files of the worst cases, worst first. `by` is what the
    groups in the column `center` are called; `sections` and `checks` (a guideline's items) follow the table by group;
    figures by group are of the score `primary`, or of the first structure's Dice.
    """
    from jinja2 import Environment

    centers = center_table(rows, structures)
    names = shown_structures(structures)
    template = resources.files("pants_dist").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        facts=facts, cards=_cards(rows, names), verdict=verdict(centers), version=__version__, by=by,
        confounded=CONFOUNDED, memorised=set(rows["split"]) == {"train"},
        headings=[SHORT.get(name, name).replace("_", " ") for name in names],
        centers=[_cells(row, names) for row in centers.to_dict("records")],
        cases=[_case_cells(row, names) for row in rows.sort_values("case").to_dict("records")],
        figures=[_inlined_figure(picture) for picture in figures.of_centers(rows, centers, names, by, primary)],
        sections=[_section(section) for section in sections], checks=checks,
        tolerances=", ".join(f"{name} {mm:g}" for name, mm in tolerances_of(rows, structures).items()),
        pictures=[(title, _inlined(path)) for title, path in pictures],
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    with replacing(path) as file:
        file.write(text.encode())
    return path


def _section(section: "Section") -> dict[str, Any]:
    tables = [(title, *shown(table)) for name, title, table in section.tables if name not in section.hidden]
    drawn = [_inlined_figure(picture) for picture in section.pictures]
    return {"title": section.title, "remark": section.remark, "tables": tables, "figures": drawn}


def _inlined_figure(picture: figures.Picture) -> tuple[str, str, str]:
    """(title, caption, SVG text) of a figure."""
    return picture.title, picture.caption, figures.inlined(picture)


def _cards(rows: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Key figures: (name, value, remark)."""
    cards = []
    for seen, title in ((True, "seen centers"), (False, "held-out centers"), (None, "all")):
        part = rows[rows["seen"].isin([seen])]
        for name in names[:2] if len(part) else ():
            count = int(part[f"dsc/{name}"].notna().sum())
            remark = f"{title}, {count} cases" if count else f"{title}, no case has one"
            cards.append((f"Dice, {SHORT.get(name, name)}", _number(part[f"dsc/{name}"].mean()) or "-", remark))
    found = detection(rows)
    for name in ("sensitivity", "specificity") if found["sensitivity/n"] + found["specificity/n"] else ():
        cards.append((f"Patient {name}", _number(found[name]) or "-", f"{found[f'{name}/n']} patients"))
    return cards


def _cells(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    scores = [(_number(row[f"dsc/{name}"]), _with_interval(row, f"dsc/{name}")[4:]) for name in names]
    positives = row["positives"] if row["sensitivity/n"] + row["specificity/n"] else ""
    return {"name": row["center"], "kind": _kind(row["seen"]), "what": _not_single(row), "n": row["n"], "positives": positives,
            "scores": scores, "shares": _shares(row)}  # fmt: skip


def _not_single(row: dict[str, Any]) -> str:
    """What a center is where it is no single hospital."""
    kind = row["center_kind"]
    return "pool of hospitals" if kind == "pool" else "unknown" if kind == "unknown" and row["center"] != "unknown" else ""


def _case_cells(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    lesion = row.get("lesion_present")
    scores = [(_number(row[f"dsc/{name}"]), _number(row.get(f"nsd/{name}", NAN))) for name in names]
    return {"name": row["case"], "center": row["center"], "kind": _kind(row["seen"]), "split": row["split"], "scores": scores,
            "lesion": "" if lesion is None or lesion != lesion else "yes" if lesion else "no"}  # fmt: skip


def _inlined(path: Path) -> str:
    """The data address of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
