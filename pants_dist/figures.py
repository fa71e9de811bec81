"""The figures of a report by center. Seen is blue, held-out orange; hollow: fewer than 5 cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from pants_dist.canvas import CARD, HELD_OUT, INK, LINE, SEEN, SOFT, blank, scale_of_scores, shortened, tip
from pants_dist.gaps import center_estimates
from pants_dist.stats import FEWEST
from pants_dist.tables import gap_table, interval, label, number, points, scored_first

ROW_IN = 0.27  # height of a center's row
MOST_ROWS = 60  # centers, above which they stand side by side without names
LIMITS = ((1.96, (4, 3)), (3.09, (1, 2)))  # normal quantiles that hold 95 % and 99.8 % of equal centers, dashes
MOST_NAMES = 4  # centers that a funnel names


def center_plot(rows: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str]) -> Figure:
    """Centers from best to worst with mean, interval and cases, a column a structure; many centers: one structure only."""
    shown = [name for name in structures if centers[f"dsc/{name}"].notna().any()][:3] or list(structures[:1])
    ordered = centers.sort_values([f"dsc/{shown[0]}", "center"], ascending=[False, True], na_position="last")
    if len(ordered) > MOST_ROWS:
        return _crowd(ordered, shown[0])
    figure = blank(11.2, 0.75 + ROW_IN * len(ordered))
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    by_center = dict(list(rows.groupby("center")))
    for axes, name in zip(grid, shown, strict=True):
        axes.set_title(f"Dice of {label(name)}")
        scale_of_scores(axes, [*rows[f"dsc/{name}"], *ordered[f"dsc/{name}/low"]])
        for place, center in enumerate(ordered.to_dict("records")):
            _dots(axes, place, by_center.get(center["center"], rows.head(0))[f"dsc/{name}"], center, name)
        _side_means(axes, ordered, name)
    _name_rows(grid, ordered)
    return figure


def _dots(axes: Axes, place: int, cases: pd.Series, center: dict[str, Any], name: str) -> None:
    """One center: its cases faint, its interval as a line, its mean as a dot."""
    column, color = f"dsc/{name}", _color(center)
    axes.plot(cases, np.full(len(cases), place), "o", color=color, alpha=0.22, markersize=3, markeredgewidth=0, zorder=2)
    low, high = center[f"{column}/low"], center[f"{column}/high"]
    axes.plot([low, high], [place, place], color=color, linewidth=1.8, alpha=0.75, zorder=3)
    if center[column] == center[column]:
        (dot,) = axes.plot(center[column], place, "o", color=color, zorder=4, **_filling(center[f"{column}/n"], color))
        tip(dot, _told(center, name))


def _told(center: dict[str, Any], name: str) -> str:
    scores = f"Dice of {label(name)} {_with_limits(center, f'dsc/{name}')}"
    return f"{center['center']}: {scores}, {center[f'dsc/{name}/n']} scored of {center['n']} cases"


def _with_limits(row: dict[str, Any], column: str) -> str:
    limits = interval(row, column)
    return number(row[column]) + (f" ({limits})" if limits else "")


def _color(center: dict[str, Any]) -> str:
    return SEEN if center["seen"] else HELD_OUT


def _filling(cases: int, color: str, size: float = 6.5) -> dict[str, Any]:
    hollow = cases < FEWEST
    return {"markersize": size, "markerfacecolor": CARD if hollow else color, "markeredgewidth": 1.5 if hollow else 0}


def _side_means(axes: Axes, centers: pd.DataFrame, name: str, upright: bool = False) -> None:
    """A dashed line at the mean of seen, and of held-out, center means."""
    for seen, color in ((True, SEEN), (False, HELD_OUT)):
        mean = centers.loc[centers["seen"] == seen, f"dsc/{name}"].mean()
        if mean == mean:
            line = axes.axhline if upright else axes.axvline
            line(mean, color=color, linewidth=1, alpha=0.6, dashes=(4, 3), zorder=1)


def _name_rows(grid: np.ndarray, centers: pd.DataFrame) -> None:
    """Names on the left, numbers of cases on the right, a faint line under each row."""
    grid[0].set_yticks(range(len(centers)), [shortened(name) for name in centers["center"]])
    grid[0].set_ylim(len(centers) - 0.4, -0.6)
    for axes in grid:
        axes.tick_params(axis="y", labelcolor=INK)
        axes.hlines(range(len(centers)), *axes.get_xlim(), color=LINE, linewidth=0.6, zorder=0)
    for place, n in enumerate(centers["n"]):
        grid[-1].annotate(f"{n:,}", (1.0, place), (26, 0), ("axes fraction", "data"), textcoords="offset points",
                          ha="right", va="center", color=SOFT)  # fmt: skip
    grid[-1].annotate("cases", (1.0, 1.0), (26, 5), "axes fraction", textcoords="offset points", ha="right", color=SOFT)


def _crowd(centers: pd.DataFrame, name: str) -> Figure:
    """Very many centers, side by side: mean and interval above, number of cases below; the worst five have names."""
    figure = blank(11.2, 4.2)
    axes, bars = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    colors = [SEEN if seen else HELD_OUT for seen in centers["seen"]]
    column = f"dsc/{name}"
    for place, (center, color) in enumerate(zip(centers.to_dict("records"), colors, strict=True)):
        axes.plot([place, place], [center[f"{column}/low"], center[f"{column}/high"]], color=color, linewidth=1, alpha=0.5)
        (dot,) = axes.plot(place, center[column], "o", color=color, **_filling(center[f"{column}/n"], color, 4))
        tip(dot, _told(center, name))
    scale_of_scores(axes, [*centers[column], *centers[f"{column}/low"]], "y")
    _side_means(axes, centers, name, upright=True)
    worst = centers.reset_index(drop=True).dropna(subset=[column]).tail(MOST_NAMES)
    _names(axes, [(place, row[column], row["center"]) for place, row in worst.iterrows()], 210, len(centers) / 2)
    axes.set_ylabel(f"Dice of {label(name)}")
    axes.set_xticks([])
    axes.set_xlim(-1, len(centers))
    bars.bar(range(len(centers)), centers["n"], color=SOFT, alpha=0.5)
    bars.set_yscale("log")
    bars.set_ylabel("cases")
    bars.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
    bars.yaxis.set_minor_locator(NullLocator())
    bars.set_yticklabels(["1", "10", "100", "1000"])
    return figure


def gap_plot(table: pd.DataFrame, structures: Sequence[str]) -> Figure:
    """Mean Dice over seen and over held-out centers with intervals, a row a structure, and the gap in points."""
    gaps = gap_table(table, structures)
    figure = blank(3.6, 0.7 + max(0.3 * len(gaps), 1.2))
    axes = figure.add_subplot()
    for place, gap in enumerate(gaps.to_dict("records")):
        axes.plot([gap["seen"], gap["held_out"]], [place, place], color=LINE, linewidth=5, zorder=1)
        for key, color in (("seen", SEEN), ("held_out", HELD_OUT)):
            axes.plot([gap[f"{key}/low"], gap[f"{key}/high"]], [place, place], color=color, linewidth=1.6, alpha=0.7, zorder=2)
            (dot,) = axes.plot(gap[key], place, "o", color=color, zorder=3, **_filling(gap[f"{key}/n"], color))
            tip(dot, f"{label(gap['structure'])}: {_with_limits(gap, key)}, {gap[f'{key}/n']} centers")
        axes.annotate(points(gap["gap"]) if gap["enough"] else "", (1.0, place), (32, 0), ("axes fraction", "data"),
                      textcoords="offset points", ha="right", va="center", fontweight="bold")  # fmt: skip
    axes.set_yticks(range(len(gaps)), [label(name) for name in gaps["structure"]])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    scale_of_scores(axes, gaps[["seen", "held_out", "seen/low", "held_out/low"]].to_numpy().ravel())
    return figure


def detection_plot(centers: pd.DataFrame) -> Figure:
    """Patient sensitivity against specificity, a circle a center, its area the number of cases."""
    figure = blank(3.6, 2.5)
    axes = figure.add_subplot()
    for center in centers.sort_values("n", ascending=False).to_dict("records"):
        if np.isnan([center["sensitivity"], center["specificity"]]).any():
            continue
        area = 18 + 260 * center["n"] / centers["n"].max()
        at = (center["specificity"], center["sensitivity"])
        dot = axes.scatter(*at, area, color=_color(center), alpha=0.35, clip_on=False)
        dot.set_edgecolor(_color(center))
        tip(dot, f"{center['center']}: sensitivity {number(at[1])}, specificity {number(at[0])}, {center['n']} cases")
    both = centers.dropna(subset=["sensitivity", "specificity"])
    scale_of_scores(axes, both["specificity"])
    scale_of_scores(axes, both["sensitivity"], "y")
    axes.grid(axis="both")
    axes.set_xlabel("specificity")
    axes.set_ylabel("sensitivity")
    return figure


def funnel_plot(rows: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str]) -> Figure:
    """Center means against scored cases, with the limits that hold equal centers: a poor one lies below, a small one not.

    Limits are normal around the mean of all cases, by the standard deviation of cases within centers. The worst centers
    below the wider ones have names.
    """
    name = scored_first(centers, structures)
    column = f"dsc/{name}"
    figure = blank(3.6, 2.5)
    axes = figure.add_subplot()
    found = centers[centers[f"{column}/n"] > 0]
    estimates = center_estimates(rows[column], rows["center"])
    deviation = float(np.sqrt((estimates["variance"] * estimates["n"]).iloc[0])) if len(estimates) else np.nan
    mean, most = float(rows[column].mean()), max(int(found[f"{column}/n"].max()) if len(found) else 1, 4)
    _limits(axes, mean, deviation, most)
    for center in found.to_dict("records"):
        size = _filling(center[f"{column}/n"], _color(center), 5.5)
        (dot,) = axes.plot(center[f"{column}/n"], center[column], "o", color=_color(center), alpha=0.9, zorder=3, **size)
        tip(dot, _told(center, name))
    _case_axis(axes, most)
    scale_of_scores(axes, found[column], "y")
    depth = (mean - found[column]) * np.sqrt(found[f"{column}/n"]) / deviation
    worst = found.loc[depth[depth > LIMITS[1][0]].nlargest(MOST_NAMES).index]
    named = worst[[f"{column}/n", column, "center"]].itertuples(index=False, name=None)
    _names(axes, list(named), 130, np.sqrt(most))
    axes.set_ylabel(f"Dice of {label(name)}")
    return figure


def _names(axes: Axes, dots: Sequence[tuple[float, float, str]], height_pt: float, middle: float) -> None:
    """Names beside dots (x, y, name), to the left of those beyond `middle`, pushed down where they would overlap."""
    low, high = axes.get_ylim()
    above = np.inf
    for x, y, name in sorted(dots, key=lambda dot: -dot[1]):
        wanted = (y - low) / (high - low) * height_pt
        above = min(wanted, above - 9.5)
        left = x > middle
        axes.annotate(shortened(name, 24), (x, y), (-7 if left else 7, above - wanted), textcoords="offset points",
                      ha="right" if left else "left", va="center", fontsize=7.5)  # fmt: skip


def _limits(axes: Axes, mean: float, deviation: float, most: int) -> None:
    n = np.geomspace(1, most * 1.3, 120)
    axes.axhline(mean, color=SOFT, linewidth=0.9, zorder=1)
    for quantile, dashes in LIMITS:
        for way in (-1, 1):
            limit = mean + way * quantile * deviation / np.sqrt(n)
            inside = (limit >= 0) & (limit <= 1)
            axes.plot(n[inside], limit[inside], color=SOFT, linewidth=0.9, dashes=dashes, zorder=1)


def _case_axis(axes: Axes, most: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.8, most * 1.5)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if tick <= most * 1.3]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("scored cases in the center")
