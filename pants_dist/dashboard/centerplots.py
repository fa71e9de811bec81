"""Centers as figures: dots over bars over a heat map, the gap, sensitivity against specificity, a funnel. Nothing is read here.

Seen centers are blue and held-out ones orange; hollow dots rest on too few cases for an interval.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pants_dist.dashboard.look import ALARM, BAND, BARS, HELD_OUT, INK, SEEN, SOFT, clear, color_of, plain_figure, style
from pants_dist.dashboard.metrics import cases_of, counts_of, label_of, lower_is_better
from pants_dist.stats import t_interval

NAMED = 4  # centers whose names stand beside their dots where there is no room for all
FLAT, ROOM = 8, 32  # centers whose names all have room below, side by side or aslant
LONGEST = 22  # letters of a name; the rest is in the hover text
BODY, ROW = 306, 16  # pixels: of dots and bars, and of each structure
ROUND = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
LIMITS = ((1.96, "dash"), (3.09, "dot"))  # of a funnel, 95 % and 99.8 %: Spiegelhalter, Stat Med 2005;24:1185


def ordered(centers: pd.DataFrame, by: str) -> pd.DataFrame:
    """Centers from best to worst by a metric, those without a value last; by "n" or "center" as these go up."""
    rising = by in ("n", "center") or lower_is_better(by)
    return centers.sort_values([by, "center"], ascending=[rising, True], na_position="last", ignore_index=True)


def centers_figure(
    cases: pd.DataFrame, centers: pd.DataFrame, structures: Sequence[str], metric: str, by: str, dark: bool
) -> go.Figure:
    """Centers in the order of `by`: dots of `metric` with 95 % intervals, under them n, under that Dice by structure."""
    rows = ordered(centers, by)
    names, n = [escape(name) for name in rows["center"]], counts_of(cases, rows, metric)
    figure = make_subplots(3, 1, shared_xaxes=True, row_heights=_heights(structures), vertical_spacing=0.025)
    below = 34 if len(rows) <= FLAT or len(rows) > ROOM else 20 + int(3.4 * min(max(map(len, rows["center"])), LONGEST))
    style(figure, dark, BODY + ROW * len(structures) + below)
    _add_dots(figure, rows, names, n, metric)
    lifted = max(max(n, default=1), 1)
    figure.add_bar(x=rows.index, y=n, marker_color=BARS[dark], row=2, col=1, customdata=rows["center"], text=names,
                   textposition="none", hovertemplate="%{text}: n %{y}<extra></extra>")  # fmt: skip
    bars = {"type": "log", "range": [-0.15, np.log10(lifted * 1.05)]} if lifted > 20 else {"range": [0, lifted * 1.05]}
    figure.update_yaxes(tickvals=sorted({1, lifted}), showgrid=False, row=2, col=1, **bars)
    _add_structures(figure, rows, names, structures)
    _name_centers(figure, rows, names, metric, by, dark)
    figure.update_xaxes(range=[-0.6, len(rows) - 0.4], showgrid=False)
    figure.update_yaxes(title_text=label_of(metric) + ", 95 % CI", row=1, col=1)
    figure.add_annotation(text="n cases" + (", log" if lifted > 20 else ""), xref="paper", x=0, yref="y2 domain", y=0.5,
                          showarrow=False, xanchor="right", xshift=-34)  # fmt: skip
    return figure.update_layout(margin={"l": 128, "r": 112, "t": 12, "b": below}, bargap=0.25)


def _heights(structures: Sequence[str]) -> list[float]:
    return [230, 38, ROW * len(structures)]


def _add_dots(figure: go.Figure, rows: pd.DataFrame, names: list[str], n: list[int], metric: str) -> None:
    for seen, part in rows.groupby("seen", sort=False):
        color = color_of(bool(seen))
        up, down = part[f"{metric}/high"] - part[metric], part[metric] - part[f"{metric}/low"]
        error = {"array": up.fillna(0), "arrayminus": down.fillna(0), "thickness": 1.2, "width": 0, "color": clear(color, 0.55)}
        fills = ["rgba(0,0,0,0)" if np.isnan(gap) else color for gap in up]
        figure.add_scatter(
            x=part.index, y=part[metric], error_y=error, mode="markers", row=1, col=1, customdata=part["center"],
            marker={"color": fills, "size": 8 if len(rows) <= 60 else 6, "line": {"width": 1.4, "color": color}},
            text=[f"{names[place]}<br>n {n[place]}" for place in part.index],
            hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        )  # fmt: skip
        mean = part[metric].mean()
        if mean == mean:
            figure.add_hline(y=mean, line={"color": clear(color, 0.7), "dash": "dash", "width": 1}, row=1, col=1)
            figure.add_annotation(x=1.008, xref="paper", y=mean, yref="y", showarrow=False, xanchor="left",
                                  text=f"<b>{'seen' if seen else 'held-out'} {mean:.3f}</b>",
                                  font={"color": color, "size": 11})  # fmt: skip


def _add_structures(figure: go.Figure, rows: pd.DataFrame, names: list[str], structures: Sequence[str]) -> None:
    values = rows[[f"dsc/{name}" for name in structures]].to_numpy(float).T
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low = np.floor(20 * low) / 20
    figure.add_heatmap(
        z=values, x=rows.index, y=[name.replace("_", " ") for name in structures], colorscale="Viridis", zmin=low,
        zmax=max(high, low + 0.05), row=3, col=1, xgap=1, ygap=1, customdata=np.tile(rows["center"], (len(structures), 1)),
        text=np.tile(names, (len(structures), 1)), hovertemplate="%{text}<br>%{y} %{z:.3f}<extra></extra>",
        colorbar={"lenmode": "pixels", "len": max(ROW * len(structures), 60), "thickness": 9, "x": 1.008, "xanchor": "left",
                  "y": 0, "yanchor": "bottom", "outlinewidth": 0, "ypad": 0, "tickvals": [low, max(high, low + 0.05)],
                  "tickformat": ".2f",
                  "title": {"text": "Dice", "font": {"size": 10}}},
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, row=3, col=1)


def _name_centers(figure: go.Figure, rows: pd.DataFrame, names: list[str], metric: str, by: str, dark: bool) -> None:
    if len(rows) <= ROOM:
        short = [name if len(name) <= LONGEST else name[:LONGEST] + "…" for name in rows["center"]]
        figure.update_xaxes(tickvals=rows.index, ticktext=[escape(name) for name in short],
                            tickangle=0 if len(rows) <= FLAT else -38, row=3, col=1)  # fmt: skip
        return
    figure.update_xaxes(tickvals=[], row=3, col=1)
    first, last = {"n": ("fewest cases", "most cases"), "center": ("A", "Z")}.get(by, ("best center", "worst center"))
    for place, text, anchor in ((0, first, "left"), (1, last, "right")):
        figure.add_annotation(text=text, x=place, xref="paper", y=0, yref="paper", yshift=-16, showarrow=False, xanchor=anchor)
    worst = ordered(rows.dropna(subset=[metric]), metric).tail(NAMED)["center"]
    for place in rows.index[rows["center"].isin(worst)]:
        figure.add_annotation(x=place, y=rows[metric][place], text=names[place], showarrow=False, xanchor="right", xshift=-7,
                              font={"size": 10, "color": INK[dark]})  # fmt: skip


def gap_figure(centers: pd.DataFrame, structures: Sequence[str], dark: bool) -> go.Figure:
    """Mean Dice over seen and over held-out centers with 95 % t-intervals, a line a structure, the largest gap on top.

    The number is the gap in Dice points.
    """
    figure = plain_figure(dark, 264)
    sides = [centers[centers["seen"] == seen] for seen in (True, False)]
    means = {name: [t_interval(side[f"dsc/{name}"], bounds=(0, 1)) for side in sides] for name in structures}
    gaps = {name: found[0].value - found[1].value for name, found in means.items()}
    order = sorted(structures, key=lambda name: (gaps[name] == gaps[name], gaps[name] if gaps[name] == gaps[name] else 0))
    for name in order:
        label, values = name.replace("_", " "), [found.value for found in means[name]]
        figure.add_scatter(x=values, y=[label] * 2, mode="lines", line={"color": BAND[dark], "width": 4}, hoverinfo="skip")
        for found, color, words in zip(means[name], (SEEN, HELD_OUT), ("seen", "held-out"), strict=True):
            figure.add_scatter(x=[found.low, found.high], y=[label] * 2, mode="lines", hoverinfo="skip",
                               line={"color": clear(color, 0.6), "width": 1.5})  # fmt: skip
            figure.add_scatter(x=[found.value], y=[label], mode="markers", marker={"color": color, "size": 8},
                               hovertemplate=f"{label}, {words} %{{x:.3f}} (n {found.n})<extra></extra>")  # fmt: skip
        if gaps[name] == gaps[name]:
            figure.add_annotation(x=1.02, xref="paper", y=label, text=f"<b>{100 * gaps[name]:.1f}</b>", showarrow=False,
                                  xanchor="left", font={"color": INK[dark]})  # fmt: skip
    figure.update_yaxes(showgrid=False, range=[-0.6, len(order) - 0.4]).update_xaxes(nticks=6)
    return figure.update_layout(margin={"l": 112, "r": 44, "t": 12, "b": 34})


def detection_figure(centers: pd.DataFrame, dark: bool) -> go.Figure:
    """Sensitivity against specificity over patients, a dot a center, its area by n."""
    figure = plain_figure(dark, 264)
    both = centers.dropna(subset=["sensitivity", "specificity"])
    for seen, part in both.groupby("seen", sort=False):
        color, sizes = color_of(bool(seen)), np.maximum(26 * np.sqrt(part["n"] / centers["n"].max()), 5)
        marker = {"color": clear(color, 0.3), "size": sizes, "opacity": 1, "line": {"color": color, "width": 1.2}}
        figure.add_scatter(x=part["specificity"], y=part["sensitivity"], mode="markers", marker=marker, cliponaxis=False,
                           text=[escape(name) for name in part["center"]], customdata=part["center"],
                           hovertemplate="%{text}<br>sensitivity %{y:.2f}, specificity %{x:.2f}<extra></extra>")  # fmt: skip
    for axis, name in ((figure.update_xaxes, "specificity"), (figure.update_yaxes, "sensitivity")):
        low = min(float(both[name].min()), 0.9) if len(both) else 0.0
        axis(title_text=name, range=[low - 0.08 * (1 - low), 1 + 0.05 * (1 - low)], nticks=6)
    return figure


def funnel_figure(cases: pd.DataFrame, centers: pd.DataFrame, metric: str, dark: bool) -> go.Figure:
    """Centers against n, with the limits that chance alone would give around the mean of all cases, and who lies below."""
    figure, values, n = plain_figure(dark, 264), cases_of(cases, metric).dropna(), np.array(counts_of(cases, centers, metric))
    spread, mean = (float(values.std()), float(values.mean())) if len(values) > 2 else (np.nan, np.nan)
    ends = np.geomspace(max(n[n > 0].min(initial=2) * 0.8, 1), 1.25 * max(n.max(initial=2), 2), 60)
    bounds = (0, None) if lower_is_better(metric) else (0, 1)
    figure.add_hline(y=mean, line={"color": SOFT[dark], "width": 1}) if mean == mean else None
    for (deviations, dash), sign in ((limit, sign) for limit in LIMITS for sign in (-1, 1)):
        limit = np.clip(mean + sign * deviations * spread / np.sqrt(ends), *bounds)
        line = {"color": BARS[dark], "dash": dash, "width": 1}
        figure.add_scatter(x=ends, y=limit, mode="lines", line=line, hoverinfo="skip")
    worse = (centers[metric] - mean) * (1 if lower_is_better(metric) else -1)
    outside = (worse > LIMITS[1][0] * spread / np.sqrt(np.maximum(n, 1))).to_numpy() & (n > 1)
    for seen, part in centers.groupby("seen", sort=False):
        color, places = color_of(bool(seen)), part.index.to_numpy()
        marker = {"color": clear(color, 0.3), "size": 7, "line": {"color": color, "width": 1.2}}
        figure.add_scatter(x=n[places], y=part[metric], mode="markers", marker=marker, customdata=part["center"],
                           text=[escape(name) for name in part["center"]], cliponaxis=False,
                           hovertemplate=f"%{{text}}<br>n %{{x}}, {label_of(metric)} %{{y:.3f}}<extra></extra>")  # fmt: skip
    for turn, place in enumerate(np.flatnonzero(outside)[np.argsort(-worse.to_numpy()[outside])][:NAMED]):
        figure.add_annotation(x=np.log10(n[place]), y=centers[metric][place], text=escape(centers["center"][place]),
                              showarrow=False, xanchor="left", xshift=6, yshift=(-7, 7)[turn % 2],
                              font={"size": 10, "color": INK[dark]})  # fmt: skip
    words = f"<b>{int(outside.sum())} beyond 99.8 %</b>"
    figure.add_annotation(x=1, y=1.03, xref="paper", yref="paper", text=words, showarrow=False, xanchor="right",
                          font={"color": ALARM[dark] if outside.any() else SOFT[dark]})  # fmt: skip
    ticks = {"tickvals": ROUND, "ticktext": [f"{tick:,}" for tick in ROUND]}
    figure.update_xaxes(title_text="cases in the center (log)", type="log", **ticks)
    return figure.update_yaxes(title_text=label_of(metric), nticks=6)
