"""Figures of detection and of comparisons: ROC, FROC, calibration, boxes by group, models against models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pants_dist.comparisons import by_group
from pants_dist.detection import curve, froc, observed_thresholds
from pants_dist.figures import HELD_OUT, SEEN, SOFT, STYLE, UNKNOWN, lying, scattered
from pants_dist.stats import FEWEST, as_floats, wilson

LINES = (SEEN, HELD_OUT, UNKNOWN, "#8b5cd6", "#b4436c", "#8a7a2f")
BINS = 10
ON_COLOR = "#101418"  # letters on a colored ground, whatever the page's


def _axes(width: float = 5.2, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def roc_plot(
    present: np.ndarray, amounts: Mapping[str, np.ndarray], shortcuts: Mapping[str, np.ndarray] | None = None
) -> Figure:
    """ROC curve of each score over cases with a known truth (1, 0 or NaN, shape (n,)); amounts have the same shape.

    `shortcuts` are scores that never looked at the scan: in gray, broken lines.
    """
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=0.8)
        for (name, values), dashes in zip((shortcuts or {}).items(), ("--", "-."), strict=False):
            _roc_line(axes, present, values, name, color=SOFT, linestyle=dashes, linewidth=1.1)
        for (name, values), color in zip(amounts.items(), LINES, strict=False):
            _roc_line(axes, present, values, name, color=color, linewidth=1.6)
        axes.set(xlabel="1 − specificity", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))  # noqa: RUF001
        axes.set_aspect("equal")
        handles, labels = axes.get_legend_handles_labels()
        first = len(shortcuts or {})
        order = [*range(first, len(labels)), *range(first)]
        axes.legend([handles[n] for n in order], [labels[n] for n in order], frameon=False, loc="lower right", fontsize=8)
    return figure


def _roc_line(axes: Axes, present: np.ndarray, values: np.ndarray, name: str, **style: Any) -> None:
    points = curve(present, values, np.r_[observed_thresholds(values), np.inf])
    axes.plot(1 - points["specificity"], points["sensitivity"], label=name, **style)


def froc_plot(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of lesion components found against false components a scan, a line for each part of the rows."""
    with rc_context(STYLE):
        figure, axes = _axes()
        for name, part in parts.items():
            points, counts = froc(part), as_floats(part["lesion_components"])
            color = {"seen": SEEN, "held-out": HELD_OUT}.get(name, UNKNOWN)
            label = f"{name or 'all'}: {np.nansum(counts):,.0f} lesions in {(~np.isnan(counts)).sum():,} scans"
            axes.step(points["false_per_scan"], points["sensitivity"], where="post", color=color, label=label, linewidth=1.6)
        axes.set(xlabel="False components a scan", ylabel="Sensitivity for components", ylim=(-0.01, 1.01))
        axes.grid(color=SOFT, alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def calibration_plot(present: np.ndarray, logits: np.ndarray, said: str = "") -> Figure:
    """Share of patients with a lesion in ten equal groups by predicted probability, with Wilson's intervals.

    Below it how many cases with and without a lesion have each probability; `said` stands in the corner.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=0.8)
        whole = ~np.isnan(present) & np.isfinite(logits)
        order = np.argsort(logits[whole], kind="stable")
        chance, truth = 1 / (1 + np.exp(-np.clip(logits[whole][order], -500, 500))), present[whole][order]
        for part in np.array_split(np.arange(truth.size), max(min(BINS, truth.size), 1)) if truth.size else ():
            found = wilson(float(truth[part].sum()), part.size)
            place = float(chance[part].mean())
            axes.plot([place, place], [found.low, found.high], color=SEEN, linewidth=1.4)
            axes.plot(place, found.value, "o", color=SEEN, markersize=5)
        axes.set(ylabel="Share with a lesion", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
        axes.text(0.02, 0.98, said, transform=axes.transAxes, va="top", fontsize=8)
        edges = np.linspace(0, 1, 26)
        for value, color, label in ((0, SOFT, "without"), (1, HELD_OUT, "with lesion")):
            below.hist(chance[truth == value], edges, color=color, alpha=0.75, label=label)
        below.set(xlabel="Predicted probability", ylabel="cases")
        below.legend(frameon=False, fontsize=7, ncols=2, loc="upper right", borderpad=0)
    return figure


def box_plot(values: pd.Series, groups: Sequence[str], label: str) -> Figure:
    """Boxes of cases by group from the highest median down, whiskers to the 5th and 95th percentile, n on the right.

    Groups of fewer than FEWEST cases are shown by their cases alone.
    """
    with rc_context(STYLE):
        parts = dict(sorted(by_group(values, groups).items(), key=lambda entry: -np.median(entry[1])))
        figure, axes = lying([str(name) for name in parts], [part.size for part in parts.values()], label)
        boxed = {place: part for place, part in enumerate(parts.values()) if part.size >= FEWEST}
        if boxed:
            _boxes(axes, boxed)
        for place, part in enumerate(parts.values()):
            if place not in boxed:
                axes.plot(part, place + scattered(part.size), ".", color=SOFT, markersize=5)
    return figure


def _boxes(axes: Axes, parts: Mapping[int, np.ndarray]) -> None:
    drawn = axes.boxplot(
        list(parts.values()), positions=list(parts), orientation="horizontal", whis=(5, 95), widths=0.62, patch_artist=True,
        manage_ticks=False, flierprops={"marker": ".", "markersize": 3, "markeredgecolor": SOFT},
    )  # fmt: skip
    for part, color in (("boxes", SOFT), ("whiskers", SOFT), ("caps", SOFT), ("medians", HELD_OUT)):
        for line in drawn[part]:
            line.set(color=color, linewidth=1.6 if part == "medians" else 1)
    for box in drawn["boxes"]:
        box.set(facecolor="none")


def significance_plot(table: pd.DataFrame, models: Sequence[str], label: str) -> Figure:
    """How much better the model of a row is than that of a column; bold with its p value where adjusted p < 0.05.

    `table` is that of `comparisons.compare_models`, `label` what is compared.
    """
    with rc_context(STYLE):
        size = len(models)
        better, p_values = np.full((size, size), np.nan), np.full((size, size), np.nan)
        for row in table.to_dict("records"):
            i, j = models.index(row["first"]), models.index(row["second"])
            better[i, j], better[j, i] = row["difference"], -row["difference"]
            p_values[i, j] = p_values[j, i] = row["p_adjusted"]
        figure, axes = _axes(3.4 + 0.95 * size, 1.5 + 0.6 * size)
        most = 100 * max(float(np.nanmax(np.abs(better), initial=0.0)), 1e-6)
        drawn = axes.imshow(100 * better, cmap="PuOr_r", vmin=-1.6 * most, vmax=1.6 * most, aspect="auto")
        for i, j in zip(*np.nonzero(~np.isnan(better)), strict=True):
            firm = p_values[i, j] < 0.05
            text = f"{100 * better[i, j]:+.1f}\n{_p(p_values[i, j])}".replace("-", "−")  # noqa: RUF001
            axes.text(j, i, text, ha="center", va="center", fontsize=8, weight="bold" if firm else "normal", color=ON_COLOR)
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, models)) > 10 else {}
        axes.set_xticks(range(size), models, **turned)
        axes.set_yticks(range(size), models)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(drawn, ax=axes, shrink=0.9).set_label(f"{label},\npoints, row less column", fontsize=8)
    return figure


def _p(value: float) -> str:
    return "p unknown" if value != value else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
