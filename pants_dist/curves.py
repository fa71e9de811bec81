"""Figures of detection and of comparisons: ROC, FROC, calibration, boxes by group, models against models."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pants_dist.comparisons import by_group
from pants_dist.detection import curve, froc, observed_thresholds
from pants_dist.figures import HELD_OUT, INK, SEEN, STYLE, UNKNOWN
from pants_dist.stats import wilson

LINES = (SEEN, HELD_OUT, UNKNOWN, "#8b5cd6", "#b4436c", "#8a7a2f")
BINS = 10


def _axes(width: float = 4.1, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def roc_plot(present: np.ndarray, amounts: Mapping[str, np.ndarray]) -> Figure:
    """ROC curve of each score over cases with a known truth (1, 0 or NaN, shape (n,)); amounts have the same shape."""
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
        for (name, values), color in zip(amounts.items(), LINES, strict=False):
            points = curve(present, values, np.r_[observed_thresholds(values), np.inf])
            axes.plot(1 - points["specificity"], points["sensitivity"], color=color, label=name, linewidth=1.4)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    return figure


def froc_plot(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of lesion components found against false components a scan, a line for each part of the rows."""
    with rc_context(STYLE):
        figure, axes = _axes()
        for name, part in parts.items():
            points = froc(part)
            color = {"seen": SEEN, "held-out": HELD_OUT}.get(name, UNKNOWN)
            axes.step(points["false_per_scan"], points["sensitivity"], where="post", color=color, label=name, linewidth=1.4)
        axes.set(xlabel="false components a scan", ylabel="sensitivity for components", ylim=(-0.02, 1.02))
        if any(parts):
            axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    return figure


def calibration_plot(present: np.ndarray, logits: np.ndarray) -> Figure:
    """Share of patients with a lesion in ten equal groups by predicted probability, with Wilson's intervals."""
    with rc_context(STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=0.8)
        whole = ~np.isnan(present) & np.isfinite(logits)
        order = np.argsort(logits[whole], kind="stable")
        chance, truth = 1 / (1 + np.exp(-np.clip(logits[whole][order], -500, 500))), present[whole][order]
        for part in np.array_split(np.arange(truth.size), min(BINS, truth.size)):
            found = wilson(float(truth[part].sum()), part.size)
            place = float(chance[part].mean())
            axes.plot([place, place], [found.low, found.high], color=SEEN, linewidth=1.2)
            axes.plot(place, found.value, "o", color=SEEN, markersize=5)
        axes.set(xlabel="predicted probability", ylabel="share with a lesion", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return figure


def box_plot(values: pd.Series, groups: Sequence[str], label: str) -> Figure:
    """Boxes of cases by group, whiskers to the 5th and 95th percentile, n in the label; widest spread of names kept short."""
    with rc_context(STYLE):
        parts = by_group(values, groups)
        figure, axes = _axes(8.4, 3.2)
        names = [f"{name if len(str(name)) < 26 else str(name)[:24] + '…'} ({part.size})" for name, part in parts.items()]
        drawn = axes.boxplot(list(parts.values()), whis=(5, 95), flierprops={"marker": ".", "markersize": 3}, patch_artist=True)
        for part, color in (("boxes", INK), ("whiskers", INK), ("caps", INK), ("medians", HELD_OUT)):
            for line in drawn[part]:
                line.set(color=color)
        for box in drawn["boxes"]:
            box.set(facecolor="none")
        for dots in drawn["fliers"]:
            dots.set(markeredgecolor=INK)
        axes.set_xticks(range(1, len(names) + 1), names, rotation=30 if len(names) < 30 else 90, ha="right")
        axes.set(ylabel=label, ylim=(-0.02, 1.02))
    return figure


def significance_plot(table: pd.DataFrame, models: Sequence[str]) -> Figure:
    """How much better the model of a row is than that of a column; bold with its p value where adjusted p < 0.05.

    `table` is that of `comparisons.compare_models`.
    """
    with rc_context(STYLE):
        size = len(models)
        better, p_values = np.full((size, size), np.nan), np.full((size, size), np.nan)
        for row in table.to_dict("records"):
            i, j = models.index(row["first"]), models.index(row["second"])
            better[i, j], better[j, i] = row["difference"], -row["difference"]
            p_values[i, j] = p_values[j, i] = row["p_adjusted"]
        figure, axes = _axes(2.6 + 0.9 * size, 1.6 + 0.6 * size)
        most = max(float(np.nanmax(np.abs(better), initial=0.0)), 1e-6)
        axes.imshow(better, cmap="PuOr_r", vmin=-2 * most, vmax=2 * most, aspect="auto")
        for i, j in zip(*np.nonzero(~np.isnan(better)), strict=True):
            firm = p_values[i, j] < 0.05
            text = f"{100 * better[i, j]:+.1f}\np {_p(p_values[i, j])}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, weight="bold" if firm else "normal", color="#1c2128")
        axes.set_xticks(range(size), models, rotation=30, ha="right")
        axes.set_yticks(range(size), models)
        axes.spines[:].set_visible(False)
    return figure


def _p(value: float) -> str:
    return "unknown" if value != value else "< 0.001" if value < 0.001 else f"{value:.3f}"
