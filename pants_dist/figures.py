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
from matplotlib.ticker import FormatStrFormatter, NullFormatter, NullLocator

from pants_dist.cases import UNKNOWN as NOBODY_KNOWS
from pants_dist.disk import replacing
from pants_dist.gaps import center_estimates
from pants_dist.stats import FEWEST, NAN

SEEN, HELD_OUT, UNKNOWN = "#2f6fe0", "#d9730d", "#128a6b"
INK, SOFT = "#1c2128", "#8b95a1"  # of letters: on a page that of its text; of lines to compare with: read on white and black
STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "pants-dist", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.7, "xtick.major.width": 0.7,
         "ytick.major.width": 0.7}  # fmt: skip
SIDES = ((True, SEEN, "seen"), (False, HELD_OUT, "held-out"))
LONGEST = 44  # letters of a name beside an axis
MOST_NAMED = 8  # centers that a funnel names


class Picture(NamedTuple):
    """A figure with the name of its files, its title, and what to know before reading it."""

    name: str
    title: str
    caption: str
    figure: Figure


def spoken(column: str) -> str:
    """A score's column as people say it: "dsc/pancreatic_lesion" is "Dice of pancreatic lesion"."""
    kind, _, structure = column.partition("/")
    return f"{ {'dsc': 'Dice', 'nsd': 'Surface Dice'}.get(kind, kind) } of {structure.replace('_', ' ')}"


def of_centers(
    rows: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str], by: str = "center", primary: str | None = None
) -> list[Picture]:
    """The figures by center (or what else groups are): each, seen against held-out where known, and the funnel.

    `primary` is the score (dsc/ or nsd/ and a structure) that they are of; None: Dice of the first structure that has any.
    """
    scored = next((name for name in structures if centers[f"dsc/{name}"].notna().any()), structures[0])
    column = primary or f"dsc/{scored}"
    with rc_context(STYLE):
        pictures = [
            Picture("centers", f"{spoken(column)} by {by}", f"Mean of each {by} with its 95 % interval where there are "
                    f"{FEWEST} cases or more; dots are cases, n those that were scored. Hollow: fewer than {FEWEST}. "
                    f"Dashed: mean over {by}s.", dot_plot(rows, centers, column)),
            Picture("gap", "Seen and held-out, by structure", f"Mean over {by}s, without pools and unknown ones; the number is "
                    "the gap in Dice points.", gap_plot(centers, structures)),
            Picture("funnel", f"Low score or small {by}?", f"{spoken(column)} against scored cases of the {by}; shaded: 95 % "
                    f"and 99.8 % of {by}s that differ by chance alone. Those outside are named.",
                    funnel_plot(rows, centers, column)),
        ]  # fmt: skip
    return [picture for picture in pictures if picture.name != "gap" or centers["seen"].notna().any()]


def inlined(picture: Picture) -> str:
    """The figure as SVG that stands inside a page, in the color of its text."""
    text = io.StringIO()
    with rc_context(STYLE):
        picture.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :].replace(INK, "currentColor")


def write_picture(out: Path, picture: Picture) -> None:
    """OUT/name.svg and OUT/name.png, on white."""
    with rc_context(STYLE):
        for ending, given in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 300, "metadata": {"Software": None}})):
            with replacing(out / f"{picture.name}.{ending}") as file:
                picture.figure.savefig(file, format=ending, facecolor="white", **given)


def shortened(name: str, most: int = LONGEST) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def lying(names: Sequence[str], counts: Sequence[int], label: str) -> tuple[Figure, Axes]:
    """A figure with a line a group from the top, its name on the left and its n on the right, of values from 0 to 1."""
    row = 0.25 if len(names) < 40 else 0.17
    figure = Figure(figsize=(8.4, 0.9 + row * max(len(names), 3)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], fontsize=9 if row > 0.2 else 7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(xlim=(-0.015, 1.015), xlabel=label)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=SOFT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.text(1.03, -0.7, "n", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontweight="bold")
    for place, n in enumerate(counts):
        axes.text(1.03, place, f"{n:,}", transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8)
    return figure, axes


def scattered(count: int) -> np.ndarray:
    """Small shifts, shape (count,), that keep dots of one line apart; always the same."""
    return 0.56 * (np.arange(count) * 0.61803 % 1 - 0.5)


def dot_plot(rows: pd.DataFrame, centers: pd.DataFrame, column: str) -> Figure:
    """Centers from best to worst, each with its interval, its cases and how many were scored."""
    ordered = centers.assign(scored=_scored(rows, centers, column)).sort_values(column, ascending=False, na_position="last")
    figure, axes = lying(ordered["center"].tolist(), ordered["scored"].tolist(), spoken(column))
    for place, center in enumerate(ordered.to_dict("records")):
        color = color_of(center["seen"])
        values = _of(rows, center)[column].dropna()
        axes.plot(values, place + scattered(len(values)), ".", color=color, alpha=0.4, markersize=4, markeredgewidth=0)
        if center[f"{column}/low"] == center[f"{column}/low"]:
            limits = [center[f"{column}/low"], center[f"{column}/high"]]
            axes.plot(limits, [place, place], "|-", color=color, linewidth=2, markersize=7, markeredgewidth=1.6)
        axes.plot(center[column], place, "o", color=color, markersize=5.5, **_hollow(center["scored"]))
    if ordered[column].notna().any():
        axes.axvline(ordered[column].mean(), color=SOFT, linewidth=1, linestyle="--", zorder=0)
    _legend(axes, centers)
    return figure


def _of(rows: pd.DataFrame, center: dict[Any, Any]) -> pd.DataFrame:
    return rows[(rows["center"] == center["center"]) & rows["seen"].isin([center["seen"]])]


def _scored(rows: pd.DataFrame, centers: pd.DataFrame, column: str) -> list[int]:
    return [int(_of(rows, center)[column].notna().sum()) for center in centers.to_dict("records")]


def color_of(seen: bool | None) -> str:
    """Blue for seen centers, orange for held-out ones, green where nobody knows."""
    return UNKNOWN if seen is None else SEEN if seen else HELD_OUT


def _hollow(cases: int) -> dict[str, Any]:
    return {"markerfacecolor": "none"} if cases < FEWEST else {}


def hospitals(centers: pd.DataFrame) -> pd.DataFrame:
    """The centers that are one hospital: pools and unknown ones speak for nobody."""
    return centers[~centers["center_kind"].isin(["pool", NOBODY_KNOWS]) & (centers["center"] != NOBODY_KNOWS)]


def gap_plot(centers: pd.DataFrame, structures: Sequence[str]) -> Figure:
    """Mean Dice over seen and over held-out hospitals, a line a structure."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes, known = figure.add_subplot(), hospitals(centers)
    for place, name in enumerate(reversed(list(structures))):
        means = [known.loc[known["seen"] == seen, f"dsc/{name}"].mean() for seen in (True, False)]
        axes.plot(means, [place, place], color=SOFT, alpha=0.6, linewidth=3, zorder=1)
        for mean, color in zip(means, (SEEN, HELD_OUT), strict=True):
            axes.plot(mean, place, "o", color=color, markersize=5.5, zorder=2)
        if not np.isnan(means).any():
            axes.text(1.04, place, _signed(100 * (means[0] - means[1])), va="center", fontweight="bold")
    axes.set_yticks(range(len(structures)), [name.replace("_", " ") for name in reversed(list(structures))])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(structures) - 0.4)
    axes.set_xlabel("Dice")
    axes.grid(axis="x", color=SOFT, alpha=0.25, linewidth=0.6)
    _legend(axes, centers)
    return figure


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")  # noqa: RUF001


def funnel_plot(rows: pd.DataFrame, centers: pd.DataFrame, column: str) -> Figure:
    """Center means against scored cases, with the limits that chance alone would give around the mean of all cases.

    Chance: the spread of cases within centers, `gaps.center_estimates`. Centers outside of 99.8 % are named, the farthest
    MOST_NAMED of them.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes, values = figure.add_subplot(), rows[column].dropna()
    table = centers.assign(n=_scored(rows, centers, column))[lambda known: known["n"] > 0]
    most, spread = max(table["n"].max() if len(table) else 0, 2) * 1.3, _spread(rows, column)
    far = pd.Series(np.zeros(len(table)), table.index)
    if spread == spread:
        n = np.geomspace(max(table["n"].min() / 1.3, 0.8), most, 100)
        axes.axhline(values.mean(), color=SOFT, linewidth=1)
        for deviations, shade in ((3.09, 0.12), (1.96, 0.18)):
            limits = [np.clip(values.mean() + sign * deviations * spread / np.sqrt(n), 0, 1) for sign in (-1, 1)]
            axes.fill_between(n, *limits, color=SOFT, alpha=shade, linewidth=0)
        far = (table[column] - values.mean()).abs() / (spread / np.sqrt(table["n"]))
    for center in table.to_dict("records"):
        axes.plot(center["n"], center[column], "o", color=color_of(center["seen"]), markersize=5, **_hollow(center["n"]))
    _cases_axis(axes, most)
    axes.set_ylabel(spoken(column))
    _name(axes, table.assign(far=far)[far > 3.09].nlargest(MOST_NAMED, "far"), table, column)
    _legend(axes, centers)
    return figure


def _spread(rows: pd.DataFrame, column: str) -> float:
    """Standard deviation of a case within its center; NaN where no center has two."""
    means = center_estimates(rows[column], rows["center"].tolist())
    return float(np.sqrt((means["variance"] * means["n"]).max())) if len(means) > 1 else NAN


def _cases_axis(axes: Axes, most: float) -> None:
    low, high = axes.get_xlim()
    axes.set_xscale("log")
    axes.set_xlim(max(low, 0.7), max(high, most))
    axes.set_xticks([n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if axes.get_xlim()[0] <= n <= most])
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("scored cases")


def _name(axes: Axes, outside: pd.DataFrame, every: pd.DataFrame, column: str) -> None:
    """Names beside their dots, each where it lies on no dot and on no other name."""
    axes.set_ylim(axes.get_ylim())  # as they will be drawn
    to_share = (axes.transData + axes.transAxes.inverted()).transform
    dots, taken = to_share(every[["n", column]].to_numpy(float)), list[np.ndarray]()
    for center in outside.to_dict("records"):
        text = shortened(center["center"], 24)
        x, y = to_share((float(center["n"]), float(center[column])))
        place, box = _free_place(x, y, 0.0145 * len(text), dots, taken)
        taken.append(box)
        axes.annotate(
            text, (x, y), place, "axes fraction", "axes fraction", ha="left", va="center", fontsize=7.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def _free_place(
    x: float, y: float, width: float, dots: np.ndarray, taken: Sequence[np.ndarray]
) -> tuple[tuple[float, float], np.ndarray]:
    """The nearest free place for a name: where it begins, and its box (low x, low y, high x, high y); in shares of the axes."""
    steps = sorted(range(-6, 7), key=abs)
    for rise, right in ((0.05 * step, right) for step in steps for right in (True, False)):
        low = x + 0.03 if right else x - 0.03 - width
        box = np.array([low, y + rise - 0.025, low + width, y + rise + 0.025])
        crowded = ((dots > box[:2] - 0.012) & (dots < box[2:] + 0.012)).all(axis=1).any()
        on_another = any((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in taken)
        if box.min() >= 0 and box.max() <= 1 and not crowded and not on_another:
            break
    return (float(low), float(y + rise)), box


def _legend(axes: Axes, centers: pd.DataFrame) -> None:
    """Which color is which, of those that are there; nothing where nobody knows."""
    known = [(color, text) for seen, color, text in SIDES if (centers["seen"] == seen).any()]
    for color, text in known:
        axes.plot([], [], "o", color=color, markersize=5.5, label=text)
    if known:
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderpad=0, handletextpad=0.1)
