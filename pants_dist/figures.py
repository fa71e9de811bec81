"""The report's figures, drawn with matplotlib, as SVG that stands inside the page. Seen is blue, held-out orange."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from pants_dist.disk import replacing
from pants_dist.stats import FEWEST

SEEN, HELD_OUT, UNKNOWN, INK = "#2f6fe0", "#d9730d", "#128a6b", "#7d8590"  # INK is read on white and on black
STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "pants-dist", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
         "xtick.color": INK, "ytick.color": INK}  # fmt: skip


class Picture(NamedTuple):
    """A figure with the name of its files, its title, and what to know before reading it."""

    name: str
    title: str
    caption: str
    figure: Figure


def of_centers(rows: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str], by: str = "center") -> list[Picture]:
    """The figures of Dice by center (or what else groups are): each, seen against held-out where known, and the funnel."""
    scored = next((name for name in structures if centers[f"dsc/{name}"].notna().any()), structures[0])
    with rc_context(STYLE):
        pictures = [
            Picture("centers", f"Dice of {scored} by {by}", f"Mean of each {by} with its 95 % interval where there are "
                    f"{FEWEST} cases or more; dots are cases. Hollow: fewer than {FEWEST} cases.",
                    dot_plot(rows, centers, scored)),
            Picture("gap", "Seen and held-out, by structure", "Mean over centers; the number is the gap in Dice points.",
                    gap_plot(centers, structures)),
            Picture("funnel", f"Low score or small {by}?", f"Dice of {scored} against cases of the {by}; the lines hold "
                    "95 % and 99.8 % of those that differ by chance alone.", funnel_plot(rows, centers, scored)),
        ]  # fmt: skip
    return [picture for picture in pictures if picture.name != "gap" or centers["seen"].notna().any()]


def inlined(picture: Picture) -> str:
    """The figure as SVG that stands inside a page."""
    text = io.StringIO()
    with rc_context(STYLE):
        picture.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def write_picture(out: Path, picture: Picture) -> None:
    """OUT/name.svg and OUT/name.png, on white."""
    with rc_context(STYLE):
        for ending, given in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200, "metadata": {"Software": None}})):
            with replacing(out / f"{picture.name}.{ending}") as file:
                picture.figure.savefig(file, format=ending, facecolor="white", **given)


def dot_plot(rows: pd.DataFrame, centers: pd.DataFrame, structure: str) -> Figure:
    """Centers from best to worst, each with its interval and its cases."""
    column = f"dsc/{structure}"
    ordered = centers.sort_values(column, ascending=False, na_position="last")
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for place, center in enumerate(ordered.to_dict("records")):
        color = color_of(center["seen"])
        values = rows.loc[(rows["center"] == center["center"]) & rows["seen"].isin([center["seen"]]), column]
        axes.plot(np.full(len(values), place), values, ".", color=color, alpha=0.25, markersize=5)
        if center[f"{column}/low"] == center[f"{column}/low"]:
            axes.plot([place, place], [center[f"{column}/low"], center[f"{column}/high"]], color=color, linewidth=1.4)
        axes.plot(place, center[column], "o", color=color, markersize=6, **_hollow(center["n"]))
    labels = [
        f"{name if len(name) < 26 else name[:24] + '…'} ({n})" for name, n in zip(ordered["center"], ordered["n"], strict=True)
    ]
    axes.set_xticks(range(len(ordered)), labels, rotation=30 if len(ordered) < 30 else 90, ha="right")
    axes.set_ylabel(f"Dice, {structure}")
    axes.set_ylim(-0.02, 1.02)
    return figure


def color_of(seen: bool | None) -> str:
    """Blue for seen centers, orange for held-out ones, green where nobody knows."""
    return UNKNOWN if seen is None else SEEN if seen else HELD_OUT


def _hollow(cases: int) -> dict[str, Any]:
    return {"markerfacecolor": "none"} if cases < FEWEST else {}


def gap_plot(centers: pd.DataFrame, structures: Sequence[str]) -> Figure:
    """Mean Dice over seen and over held-out centers, a line a structure."""
    figure = Figure(figsize=(4.1, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(reversed(list(structures))):
        means = [centers.loc[centers["seen"] == seen, f"dsc/{name}"].mean() for seen in (True, False)]
        axes.plot(means, [place, place], color=INK, alpha=0.4, linewidth=3, zorder=1)
        for mean, color in zip(means, (SEEN, HELD_OUT), strict=True):
            axes.plot(mean, place, "o", color=color, zorder=2)
        if not np.isnan(means).any():
            axes.text(1.04, place, f"{100 * (means[0] - means[1]):+.1f}", va="center", fontweight="bold")
    axes.set_yticks(range(len(structures)), list(reversed(list(structures))))
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(structures) - 0.4)
    axes.set_xlabel("Dice")
    _legend(axes)
    return figure


def funnel_plot(rows: pd.DataFrame, centers: pd.DataFrame, structure: str) -> Figure:
    """Center means against n, with the limits that chance alone would give around the mean of all cases."""
    column = f"dsc/{structure}"
    figure = Figure(figsize=(4.1, 2.8), layout="constrained")
    axes = figure.add_subplot()
    values, most = rows[column].dropna(), max(centers["n"].max(), 2) * 1.2
    if len(values) > 2:
        n = np.geomspace(1, most, 100)
        axes.axhline(values.mean(), color=INK, linewidth=1)
        for deviations, dashes in ((1.96, "--"), (3.09, ":")):
            for sign in (-1, 1):
                limit = values.mean() + sign * deviations * values.std() / np.sqrt(n)
                axes.plot(n, np.clip(limit, 0, 1), dashes, color=INK, linewidth=0.8)
    for center in centers.to_dict("records"):
        axes.plot(center["n"], center[column], "o", color=color_of(center["seen"]), **_hollow(center["n"]))
    axes.set_xscale("log")
    axes.set_xticks([n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if n <= most])
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("cases")
    axes.set_ylabel("Dice")
    axes.set_ylim(-0.02, 1.02)
    return figure


def _legend(axes: Axes) -> None:
    for color, text in ((SEEN, "seen"), (HELD_OUT, "held-out")):
        axes.plot([], [], "o", color=color, label=text)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor=INK)

