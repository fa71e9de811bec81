"""The report of one model: by center on the terminal, and as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pants_dist import canvas, figures, page
from pants_dist.stats import FEWEST, t_interval
from pants_dist.tables import (
    FALSE_ALARM,
    FEWEST_CENTERS,
    MISSED,
    cases_to_see,
    center_table,
    detected,
    gap_table,
    interval,
    label,
    mean_dice,
    number,
    points,
    scored_first,
    share,
    shown_structures,
    side,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["center_table", "print_table", "verdict", "write_report"]
CARDS = 3  # structures that have a card


def print_table(centers: pd.DataFrame, structures: Sequence[str], console: "Console") -> None:
    """The table by center on a terminal, with a line for all seen and all held-out ones."""
    from rich import box
    from rich.table import Table

    names = shown_structures(structures)
    title = f"Dice by center, with a 95 % t-interval from {FEWEST} scored cases on"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("center", overflow="fold", max_width=34)
    table.add_column("", no_wrap=True)
    for heading in ("n", *map(label, names), "sens.", "spec."):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in centers.to_dict("records"):
        table.add_row(row["center"], side(row["seen"]), f"{row['n']:,}", *_printed(row, names))
    table.add_section()
    for seen, part in centers.groupby("seen", sort=False):
        counted = "1 center" if len(part) == 1 else f"mean of {len(part)} centers"
        table.add_row(counted, side(bool(seen)), f"{part['n'].sum():,}", *_printed(_summed(part, names), names))
    console.print(table, markup=False)
    said = f"Sensitivity and specificity count patients; positive: any predicted lesion voxel. {verdict(centers, structures)}"
    console.print(said, style="dim", markup=False, highlight=False)


def _printed(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    scores = [f"{number(row[f'dsc/{name}'])}\n{interval(row, f'dsc/{name}')}".strip() for name in names]
    return scores + [share(row, name).replace(" of ", "/") for name in ("sensitivity", "specificity")]


def _summed(centers: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Mean over centers of each Dice, with its t-interval; sensitivity and specificity over all their patients."""
    row: dict[str, Any] = {}
    for name in names:
        found = t_interval(centers[f"dsc/{name}"], bounds=(0, 1))
        row |= {f"dsc/{name}": found.value, f"dsc/{name}/low": found.low, f"dsc/{name}/high": found.high}
    for name in ("sensitivity", "specificity"):
        n = int(centers[f"{name}/n"].sum())
        right = (centers[name] * centers[f"{name}/n"]).sum()
        row |= {name: right / n if n else float("nan"), f"{name}/n": n}
    return row


def write_report(
    out: Path, rows: pd.DataFrame, structures: Sequence[str], facts: Mapping[str, str], pictures: Sequence[Path]
) -> Path:
    """Write OUT/report.html, one file that needs no other, from rows of cases; returns its path.

    `facts` are shown at its head; `pictures` are PNG files named by case, worst first.
    """
    centers, names = center_table(rows, structures), shown_structures(structures)
    worst = cases_to_see(rows)
    return page.write_page(
        out / "report.html", "report.html.j2", facts=facts, counted=_counted(rows, centers), cards=_cards(rows, centers, names),
        verdict=verdict(centers, structures), memorised=set(rows["split"]) == {"train"}, headings=[label(name) for name in names],
        figures=_figures(rows, centers, structures), pictures=[_pictured(path, rows, worst, names) for path in pictures],
        centers=[_center_cells(row, names) for row in centers.to_dict("records")], centers_csv=page.csv(centers),
        worst=[_worst_cells(row) for row in worst.to_dict("records")], worst_csv=page.csv(worst),
        cases=[_case_cells(row, names) for row in rows.sort_values("case").to_dict("records")], cases_csv=page.csv(rows),
        fewest=FEWEST, fewest_centers=FEWEST_CENTERS,
    )  # fmt: skip


def _counted(rows: pd.DataFrame, centers: pd.DataFrame) -> str:
    """How many cases, centers and patients with a lesion there are."""
    parts = [f"{int((centers['seen'] == seen).sum())} {side(seen)}" for seen in (True, False) if (centers["seen"] == seen).any()]
    noun = "center" if len(centers) == 1 else "centers"
    return f"{len(rows):,} case{'s' * (len(rows) > 1)} of {len(centers)} {noun} ({', '.join(parts)})"


def _cards(rows: pd.DataFrame, centers: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """Key figures: title, pairs of (which side, value), remark."""
    cards: list[dict[str, Any]] = []
    for gap in gap_table(rows, names[:CARDS]).to_dict("records"):
        pairs = [(seen, number(gap[key])) for seen, key in ((True, "seen"), (False, "held_out")) if gap[f"{key}/n"]]
        remark = f"gap {points(gap['gap'])} points" if gap["gap"] == gap["gap"] else f"mean of {gap['seen/n'] or gap['held_out/n']} centers"
        cards.append({"title": f"Dice of {label(gap['structure'])}", "pairs": pairs or [(None, "none")], "remark": remark})
    found = detected(rows)
    for name in ("sensitivity", "specificity"):
        limits = interval(found, name)
        remark = f"{share(found, name)} patients{f', {limits}' if limits else ''}" if found[f"{name}/n"] else "no patient to count"
        cards.append({"title": f"Patient {name}", "pairs": [(None, number(found[name]) or "none")], "remark": remark})
    cases = [f"{part['n'].sum():,} {side(bool(seen))}" for seen, part in centers.groupby("seen", sort=False)]
    return [*cards, {"title": "Cases scored", "pairs": [(None, f"{len(rows):,}")], "remark": ", ".join(cases)}]


def _figures(rows: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str]) -> list[dict[str, Any]]:
    names, first = shown_structures(structures), scored_first(centers, shown_structures(structures))
    wide = canvas.inline(lambda: figures.center_plot(rows, centers, names))
    drawn = [("Each center", "Mean with its 95 % interval, best center first; faint dots are cases, dashed lines the means over "
              "seen and over held-out centers. Hollow: fewer than 5 scored cases, read with care.", wide)]  # fmt: skip
    if centers["seen"].nunique() > 1:
        gap = canvas.inline(lambda: figures.gap_plot(rows, structures if len(structures) <= 12 else names))
        drawn.append(("Seen and held-out, by structure", "Mean over centers, 95 % interval; number: gap in Dice points.", gap))
    if (centers["sensitivity/n"] * centers["specificity/n"]).any():
        both = canvas.inline(lambda: figures.detection_plot(centers))
        drawn.append(("Sensitivity and specificity", "Of patients; a circle a center with both, area by cases.", both))
    funnel = canvas.inline(lambda: figures.funnel_plot(rows, centers, names))
    drawn.append(("Low score or small center?", f"Dice of {label(first)}; between the lines lie 95 % and 99.8 % of centers that "
                  "differ by chance alone.", funnel))  # fmt: skip
    return [{"title": title, "caption": caption, "svg": svg} for title, caption, svg in drawn]


def _pictured(path: Path, rows: pd.DataFrame, worst: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """A picture with its case's row, where there is one of that name."""
    row = next(iter(rows[rows["case"] == path.stem].to_dict("records")), {"center": "", "seen": True})
    kind = next(iter(worst.loc[worst["case"] == path.stem, "kind"]), "")
    scores = [(label(name), number(row.get(f"dsc/{name}"))) for name in names[:CARDS] if number(row.get(f"dsc/{name}"))]
    return {"case": path.stem, "center": row["center"], "seen": row["seen"], "kind": kind, "alert": kind in (MISSED, FALSE_ALARM),
            "scores": scores, "image": page.picture(path)}  # fmt: skip


def _score(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A cell: figure, limits as text, and places on a strip from 0 to 100 %."""
    low, high = row.get(f"{column}/low", float("nan")), row.get(f"{column}/high", float("nan"))
    span = f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%" if low == low else ""
    return {"value": number(row[column]), "limits": interval(row, column), "span": span, "hollow": row[f"{column}/n"] < FEWEST,
            "place": f"left:{100 * row[column]:.1f}%" if row[column] == row[column] else ""}  # fmt: skip


def _center_cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    shares = [{"text": share(row, name), "value": number(row[name], 4)} for name in ("sensitivity", "specificity")]
    return {"name": row["center"], "kind": row["center_kind"], "seen": row["seen"], "n": row["n"], "positives": row["positives"],
            "scores": [_score(row, f"dsc/{name}") for name in names], "shares": shares}  # fmt: skip


def _worst_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    volumes = [number(row[f"{name}_mm3"] / 1000) for name in ("reference", "predicted")]
    return {"kind": row["kind"], "alert": row["kind"] in (MISSED, FALSE_ALARM), "name": row["case"], "center": row["center"],
            "seen": row["seen"], "dice": number(row["mean_dice"]), "volumes": volumes}  # fmt: skip


def _case_cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    lesion = row.get("lesion_present")
    scores = [(number(row[f"dsc/{name}"]), number(row.get(f"nsd/{name}"))) for name in names]
    known = lesion is not None and lesion == lesion
    return {"name": row["case"], "center": row["center"], "seen": row["seen"], "split": row["split"], "scores": scores,
            "lesion": ("yes" if lesion else "no") if known else ""}  # fmt: skip
