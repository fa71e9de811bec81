"""Input and speed: how patches come, by rank, how full Ray's store and the GPUs are, and what slows a run down, in words."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, html, no_update

from pants_dist.dashboard import folders, plots
from pants_dist.dashboard.look import BARS, RUN_COLORS, plain_figure
from pants_dist.dashboard.overview import card, graph
from pants_dist.diagnosis import Finding, diagnose

CHARTS = {  # name -> heading, note, metrics: the second is dashed
    "patches": ("Patches a second", "all ranks", ("loader/patches_per_s",)),
    "waits": ("Waiting for data", "share of time: worst rank, median dashed",
              ("loader/wait_fraction", "loader/wait_fraction_median")),
    "reads": ("Read latency, s", "95th percentile, median dashed", ("loader/read_s_p95", "loader/read_s_median")),
    "bytes": ("Bytes of voxels a second", "all ranks", ("loader/bytes_per_s",)),
    "readers": ("Readers", "share of time reading; of that on a CPU dashed", ("loader/readers_busy", "loader/read_cpu")),
    "own": ("Own work of a step, s", "slowest rank, median dashed", ("ranks/own_s_max", "ranks/own_s_median")),
    "store": ("Object store, bytes", "in use; limit dashed", ("ray/store_bytes", "ray/store_limit_bytes")),
    "spilled": ("Spilled, bytes", "of the object store, to disk", ("ray/spilled_bytes",)),
    "gpu": ("GPU use", "median, least dashed", ("gpu/use_median", "gpu/use_min")),
    "gpu-memory": ("GPU memory, bytes", "of the fullest", ("gpu/memory_bytes",)),
}  # fmt: skip
BY_RANK = {
    "wait_fraction": ("Share of time waiting for data, by rank", "last line; the longest colored"),
    "own_s": ("Own work of a step by rank, s", "last line; the longest colored"),
}
LONGEST = RUN_COLORS[1]
MOST_BYTES = 2**20  # of ranks.json: some thousand ranks


def ranks_of(run: Path) -> tuple[list[dict[str, Any]], str]:
    """What each rank measured last, and a note: "" or why there is nothing."""
    try:
        with open(run / "ranks.json", "rb") as file:
            ranks = json.loads(file.read(MOST_BYTES))["ranks"]
        return [{"rank": int(rank["rank"]), **rank} for rank in ranks], ""
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"ranks.json cannot be read ({type(error).__name__})"


def slowest_in_words(last: Mapping[str, Any]) -> str:
    """Who waits most and who works longest, and where, of the last line."""
    parts = []
    if "loader/waits_most" in last:
        share = 100 * last["loader/wait_fraction"]
        parts.append(f"Waits most: rank {last['loader/waits_most']} on {last['loader/waits_most_node']} ({share:.1f} %).")
    if "ranks/slowest" in last:
        seconds = last["ranks/own_s_max"]
        parts.append(f"Slowest: rank {last['ranks/slowest']} on {last['ranks/slowest_node']} ({seconds:.3g} s a step).")
    if "nodes/slowest" in last:
        parts.append(f"Slowest node: {last['nodes/slowest']}; waits most: {last['nodes/waits_most']}.")
    return " ".join(parts) or "Nothing is known of the ranks yet."


def by_rank_figure(ranks: list[dict[str, Any]], what: str, dark: bool) -> go.Figure:
    """A bar a rank; the longest is colored."""
    figure = plain_figure(dark, 200)
    values = [rank.get(what) for rank in ranks]
    known = [value for value in values if value is not None]
    longest = max(known) if len(set(known)) > 1 else None
    figure.add_bar(
        x=[rank["rank"] for rank in ranks], y=values,
        marker_color=[LONGEST if longest is not None and value == longest else BARS[dark] for value in values],
        text=[escape(str(rank.get("node", ""))) for rank in ranks], textposition="none",
        hovertemplate="rank %{x} on %{text}<br>%{y:.3g}<extra></extra>",
    )  # fmt: skip
    return figure.update_xaxes(title="rank", type="category" if len(ranks) < 16 else "linear").update_yaxes(rangemode="tozero")


def finding_box(found: Finding) -> html.Div:
    """A kind of slowness, its cost, and the cure."""
    kind, _, seen = found.words.partition(": ")
    cost = [html.Span(f"{100 * found.cost:.0f} % of the time", className="chip orange")] if found.cost >= 0.01 else []
    head = html.Div([html.B(kind.capitalize()), *cost], className="chips")
    return html.Div([head, html.Div(seen), html.Div(f"Cure: {found.cure}", className="soft")], style={"marginTop": 8})


def layout() -> html.Div:
    """The tab, empty."""
    charts = [
        html.Div(card(title, note, graph(f"input-{key}", 200)), id=f"box-{key}") for key, (title, note, _) in CHARTS.items()
    ]  # fmt: skip
    bars = [card(title, note, graph(f"rank-{key}", 200)) for key, (title, note) in BY_RANK.items()]
    return html.Div([
        card("What slows the first run down", "from its last lines of metrics", html.Div(id="findings")),
        html.Div(html.Div([html.B("By rank"), html.Code(id="slowest")]), className="section"),
        dmc.SimpleGrid(bars, cols={"base": 1, "md": 2}, spacing="sm"),
        html.Div(html.Div([html.B("Over time"), html.Code("loader/* ranks/* ray/* gpu/*")]), className="section"),
        html.Div(charts, className="thirds"),
    ])  # fmt: skip


def found_in(rows: list[dict[str, Any]]) -> list[Any]:
    """The findings of a run as they are shown."""
    if sum("time/line_s" in row for row in rows) < 5:
        return [html.Div("Too few lines to say.", className="soft")]
    boxes = [finding_box(one) for one in diagnose(rows)]
    return boxes or [html.Div("Nothing that is known: it hardly waits for patches, and no rank for another.")]


def wire(app: Dash, runs: Path) -> None:
    """Fill the tab while it is looked at."""
    figures = [Output(f"input-{key}", "figure") for key in CHARTS] + [Output(f"rank-{key}", "figure") for key in BY_RANK]
    figures += [Output(f"box-{key}", "style") for key in CHARTS]

    @app.callback(Output("findings", "children"), Output("slowest", "children"), *figures, Input("version", "data"),
                  Input("tab", "value"), Input("smoothing", "value"), Input("x", "value"), Input("dark", "checked"),
                  State("runs", "value"))  # fmt: skip
    def drawn(_: Any, tab: str, smoothing: float, x: str, dark: bool | None, chosen: list[str]) -> tuple[Any, ...]:
        if tab != "input" or not chosen:
            return (no_update,) * (2 + len(figures))
        found = {name: folders.curves_of(folders.run_folder(runs, name)) for name in chosen}
        rows = found[chosen[0]].rows
        ranks, note = ranks_of(folders.run_folder(runs, chosen[0]))
        words = slowest_in_words({key: value for row in rows[-2:] for key, value in row.items()})
        curves = [plots.curves_figure(found, names, smoothing, x, bool(dark)) for *_, names in CHARTS.values()]
        bars = [by_rank_figure(ranks, what, bool(dark)) for what in BY_RANK]
        logged = {key for one in found.values() for row in one.rows[-5:] for key in row}
        boxes = [{} if logged & set(names) else {"display": "none"} for *_, names in CHARTS.values()]
        return found_in(rows), f"{words} {note}".strip(), *curves, *bars, *boxes
