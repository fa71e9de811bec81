"""Curves of runs as figures. Nothing is read here."""

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from pants_dist.dashboard.folders import Curves, smoothed
from pants_dist.dashboard.look import ALARM, RUN_COLORS, clear, plain_figure, say_nothing

TITLES = {"step": "step", "samples": "samples", "time": "hours"}
STALLED = 0.3  # share of a step spent waiting for data, from which on it is shaded
MOST_BANDS = 30  # of a figure
SHORT = 20  # points; a mean of what lies before would lag behind a curve of so few


def curves_figure(
    runs: Mapping[str, Curves], metrics: Sequence[str], smoothing: float, x: str, dark: bool, log: bool = False, shade: str = ""
) -> go.Figure:
    """One metric, or several (the second dashed), of each run: smoothed in front, raw faint behind, requeues dashed.

    Where the metric `shade` of the first run is above STALLED, the background is red.
    """
    figure = plain_figure(dark, 220)
    for number, (name, curves) in enumerate(runs.items()):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        for dash, metric in zip(("solid", "dash"), metrics, strict=False):
            _add_curve(figure, curves, metric, smoothing, x, color, dash, f"{escape(name)} {escape(metric)}")
        for place in curves.requeue_places(x):
            figure.add_vline(x=place, line={"color": clear(color, 0.6), "dash": "dash", "width": 1})
        if shade and not number:
            for begin, end in bands(*curves.series(shade, x))[:MOST_BANDS]:
                figure.add_vrect(x0=begin, x1=end, fillcolor=ALARM[dark], opacity=0.2, line_width=0, layer="below")
    figure.update_xaxes(title_text=TITLES[x], nticks=6).update_yaxes(type="log" if log else "linear", nticks=6)
    if x != "time":
        figure.update_xaxes(tickformat="~s")
    return figure if any(trace.y for trace in figure.data) else say_nothing(figure, "nothing logged yet")


def _add_curve(
    figure: go.Figure, curves: Curves, metric: str, smoothing: float, x: str, color: str, dash: str, label: str
) -> None:
    places, values = curves.series(metric, x)
    few = len(places) < 3
    smoothing = smoothing if len(places) > SHORT else 0.0
    if smoothing:
        figure.add_scatter(x=places, y=values, mode="markers" if few else "lines", line={"color": color, "width": 1},
                           opacity=0.25, hoverinfo="skip")  # fmt: skip
    smooth = [float(f"{value:.6g}") for value in smoothed(values, smoothing)]  # rounding errors make no axis
    line = {"color": color, "dash": dash, "width": 1.8}
    figure.add_scatter(x=places, y=smooth, mode="lines+markers" if few else "lines", line=line, name=label, marker_size=5,
                       hovertemplate=f"{label}<br>%{{x:,}}: %{{y:.4g}}<extra></extra>")  # fmt: skip


def bands(places: Sequence[float], values: Sequence[float], above: float = STALLED) -> list[tuple[float, float]]:
    """From where to where a curve lies above a value, each end being half way to its neighbor; the first point is left out,
    since every run waits for its first patches."""
    found: list[tuple[float, float]] = []
    for n in range(1, len(places)):
        if values[n] <= above:
            continue
        begin = (places[n - 1] + places[n]) / 2
        end = (places[n] + places[min(n + 1, len(places) - 1)]) / 2
        if found and found[-1][1] >= begin:
            begin = found.pop()[0]
        found.append((begin, end))
    return found
