"""Figures of the page: tables and curves in, plotly figures out. Nothing is read here.

Seen centers are blue and held-out ones orange, as in report.html; hollow dots rest on too few cases for an interval.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pants_dist.dashboard.folders import Curves, smoothed
from pants_dist.stats import FEWEST

SEEN, HELD_OUT = "#2f6fdf", "#e07b12"
RUN_COLORS = ("#2f6fdf", "#c2410c", "#0f9d75", "#9d4edd", "#b58900", "#d6336c")
INK = {False: "#1f2937", True: "#d5d9e0"}
MUTED = {False: "#e5e7eb", True: "#373a40"}
NAMED = 4  # centers whose names stand beside their dots where there is no room for all
LIMITS = ((1.96, "dash", "95 %"), (3.09, "dot", "99.8 %"))  # of a funnel: Spiegelhalter, Stat Med 2005;24:1185


def curves_figure(
    runs: Mapping[str, Curves], metrics: Sequence[str], smoothing: float, x: str, dark: bool, log: bool = False
) -> go.Figure:
    """One metric, or several (the second dashed), of each run: smoothed in front, raw faint behind, requeues dashed."""
    figure = _figure(dark, 230)
    for number, (name, curves) in enumerate(runs.items()):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        for dash, metric in zip(("solid", "dash"), metrics, strict=False):
            places, values = curves.series(metric, x)
            mode = "lines+markers" if len(places) < 3 else "lines"
            if smoothing:
                figure.add_scatter(x=places, y=values, mode=mode, line_color=color, opacity=0.25, hoverinfo="skip")
            line = {"color": color, "dash": dash, "width": 2}
            label = f"{escape(name)} {metric}"
            smooth = [float(f"{value:.6g}") for value in smoothed(values, smoothing)]  # rounding errors make no axis
            figure.add_scatter(x=places, y=smooth, mode=mode, line=line, name=label, marker_size=5)
        for step in curves.requeues if x != "time" else ():
            figure.add_vline(x=step * (curves.batch if x == "samples" else 1), line={"color": color, "dash": "dot", "width": 1})
    figure.update_xaxes(title="hours" if x == "time" else x).update_yaxes(type="log" if log else "linear")
    if not any(trace.y for trace in figure.data):
        figure.add_annotation(text="nothing logged yet", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
        figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure


def centers_figure(centers: pd.DataFrame, structures: Sequence[str], metric: str, dark: bool) -> go.Figure:
    """Centers from best to worst by `metric`: dots with 95 % intervals, under them n, under that Dice by structure."""
    ordered = centers.sort_values(metric, ascending=False, na_position="last", ignore_index=True)
    figure = make_subplots(3, 1, shared_xaxes=True, row_heights=[0.58, 0.12, 0.30], vertical_spacing=0.03)
    _style(figure, dark, 430 + 16 * len(structures))
    names = [escape(name) for name in ordered["center"]]
    for seen, part in ordered.groupby("seen", sort=False):
        color = SEEN if seen else HELD_OUT
        error = None
        if f"{metric}/low" in part:
            up, down = part[f"{metric}/high"] - part[metric], part[metric] - part[f"{metric}/low"]
            error = {"array": up.fillna(0), "arrayminus": down.fillna(0), "thickness": 1, "width": 0}
        symbols = ["circle-open" if n < FEWEST else "circle" for n in part["n"]]
        figure.add_scatter(
            x=part.index, y=part[metric], error_y=error, mode="markers", row=1, col=1,
            marker={"color": color, "size": 8, "symbol": symbols, "line_width": 1.5},
            customdata=part["center"], text=[names[n] for n in part.index],
            hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        )  # fmt: skip
        mean = part[metric].mean()
        label = f"{'seen' if seen else 'held-out'} {mean:.3f}"
        figure.add_hline(y=mean, line={"color": color, "dash": "dash", "width": 1}, row=1, col=1)
        figure.add_annotation(x=1.005, xref="paper", y=mean, yref="y", text=label, showarrow=False, xanchor="left",
                              font={"color": color, "size": 11})  # fmt: skip
    figure.add_bar(x=ordered.index, y=ordered["n"], marker_color="#9ca3af", row=2, col=1, customdata=names,
                   hovertemplate="%{customdata}: n %{y}<extra></extra>")  # fmt: skip
    values = ordered[[f"dsc/{name}" for name in structures]].to_numpy().T
    figure.add_heatmap(z=values, x=ordered.index, y=list(structures), colorscale="Viridis", zmin=0, zmax=1, row=3, col=1,
                       colorbar={"len": 0.28, "y": 0.13, "thickness": 10},
                       hovertemplate="%{y} %{z:.3f}<extra></extra>")  # fmt: skip
    figure.update_yaxes(title_text="Dice, 95 % CI", row=1, col=1)
    figure.update_yaxes(title_text="cases", type="log" if len(ordered) > 20 else "linear", row=2, col=1)
    ticks = list(range(len(names))) if len(names) <= 30 else []
    figure.update_xaxes(tickvals=ticks, ticktext=[names[n] for n in ticks], row=3, col=1)
    for n in range(max(0, int(ordered[metric].count()) - NAMED), len(names)) if not ticks else ():  # the worst
        if (value := ordered[metric][n]) == value:
            figure.add_annotation(x=n, y=value, text=names[n], showarrow=False, xanchor="right", xshift=-8, font_size=10)
    figure.update_layout(margin_r=110, margin_l=120)
    return figure


def gap_figure(centers: pd.DataFrame, structures: Sequence[str], dark: bool) -> go.Figure:
    """Mean Dice over seen and over held-out centers, a line a structure; the number is the gap in Dice points."""
    figure = _figure(dark, 280)
    for name in reversed(structures):
        means = [centers.loc[centers["seen"] == seen, f"dsc/{name}"].mean() for seen in (True, False)]
        figure.add_scatter(x=means, y=[name, name], mode="lines", line={"color": MUTED[dark], "width": 4}, hoverinfo="skip")
        figure.add_scatter(x=means, y=[name, name], mode="markers", marker={"color": [SEEN, HELD_OUT], "size": 9})
        if not np.isnan(means).any():
            text = f"<b>{100 * (means[0] - means[1]):+.1f}</b>"
            figure.add_annotation(x=1.02, xref="paper", y=name, text=text, showarrow=False, xanchor="left")
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_layout(margin_l=110, margin_r=46)
    return figure


def detection_figure(centers: pd.DataFrame, dark: bool) -> go.Figure:
    """Sensitivity against specificity over patients, a dot a center, its area by n."""
    figure = _figure(dark, 280)
    for seen, part in centers.groupby("seen", sort=False):
        sizes = 6 + 22 * np.sqrt(part["n"] / centers["n"].max())
        marker = {"color": SEEN if seen else HELD_OUT, "size": sizes, "opacity": 0.55}
        figure.add_scatter(x=part["specificity"], y=part["sensitivity"], mode="markers", marker=marker, cliponaxis=False,
                           text=[escape(name) for name in part["center"]],
                           hovertemplate="%{text}<br>sensitivity %{y:.2f}, specificity %{x:.2f}<extra></extra>")  # fmt: skip
    figure.update_xaxes(title="specificity", range=[-0.05, 1.05])
    figure.update_yaxes(title="sensitivity", range=[-0.05, 1.05])
    return figure


def funnel_figure(cases: pd.DataFrame, centers: pd.DataFrame, metric: str, dark: bool) -> go.Figure:
    """Center means against n, with the limits that chance alone would give around the mean of all cases."""
    figure, values = _figure(dark, 280), cases[metric].dropna()
    n = np.geomspace(1, 1.2 * max(centers["n"].max(), 2), 60)
    for deviations, dash, share in LIMITS if len(values) > 2 else ():
        for sign in (-1, 1):
            limit = np.clip(values.mean() + sign * deviations * values.std() / np.sqrt(n), 0, 1)
            line = {"color": "#9ca3af", "dash": dash, "width": 1}
            figure.add_scatter(x=n, y=limit, mode="lines", line=line, name=f"{share} limit", hoverinfo="skip")
    for seen, part in centers.groupby("seen", sort=False):
        marker = {"color": SEEN if seen else HELD_OUT, "size": 8}
        figure.add_scatter(x=part["n"], y=part[metric], mode="markers", marker=marker,
                           text=[escape(name) for name in part["center"]],
                           hovertemplate="%{text}<br>n %{x}, Dice %{y:.3f}<extra></extra>")  # fmt: skip
    figure.update_xaxes(title="cases in the center (log)", type="log")
    figure.update_yaxes(title="Dice")
    return figure


def _figure(dark: bool, height: int) -> go.Figure:
    figure = go.Figure()
    _style(figure, dark, height)
    return figure


def _style(figure: go.Figure, dark: bool, height: int) -> None:
    figure.update_layout(
        height=height, showlegend=False, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK[dark], "size": 11}, margin={"l": 48, "r": 14, "t": 10, "b": 40}, uirevision="kept",
    )  # fmt: skip
    figure.update_xaxes(gridcolor=MUTED[dark], zeroline=False)
    figure.update_yaxes(gridcolor=MUTED[dark], zeroline=False)
