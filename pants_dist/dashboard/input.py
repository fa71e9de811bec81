"""Input and speed: how patches come, by rank, how full Ray's store and the GPUs are, and what slows a run down, in words."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, dcc, html, no_update

from pants_dist.dashboard import folders, plots
from pants_dist.diagnosis import Finding, diagnose

CHARTS = {  # name -> (heading, metrics: the second is dashed)
    "patches": ("Patches a second, all ranks", ("loader/patches_per_s",)),
    "waits": ("Share of time waiting: worst rank, median dashed", ("loader/wait_fraction", "loader/wait_fraction_median")),
    "reads": ("Seconds a read takes: 95th percentile, median dashed", ("loader/read_s_p95", "loader/read_s_median")),
    "bytes": ("Bytes of voxels a second, all ranks", ("loader/bytes_per_s",)),
    "readers": ("Readers, share of time: reading, of it on a CPU dashed", ("loader/readers_busy", "loader/read_cpu")),
    "own": ("Seconds a step's own work takes: slowest rank, median dashed", ("ranks/own_s_max", "ranks/own_s_median")),
    "store": ("Object store, bytes in use; limit dashed", ("ray/store_bytes", "ray/store_limit_bytes")),
    "spilled": ("Object store, bytes gone to disk", ("ray/spilled_bytes",)),
    "gpu": ("GPU use: median, least dashed", ("gpu/use_median", "gpu/use_min")),
    "gpu-memory": ("GPU memory, fullest, bytes", ("gpu/memory_bytes",)),
}
BY_RANK = {"wait_fraction": "share of time waiting for data", "own_s": "seconds a step's own work takes"}
PLAIN: Any = {"displayModeBar": False, "responsive": True}
BAR, LONGEST = "#9ca3af", "#c2410c"
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
    ink, lines, clear = ("#d5d9e0", "#373a40", "rgba(0,0,0,0)") if dark else ("#1f2937", "#e5e7eb", "rgba(0,0,0,0)")
    figure = go.Figure(layout={
        "height": 220, "paper_bgcolor": clear, "plot_bgcolor": clear, "font": {"color": ink, "size": 11},
        "margin": {"l": 48, "r": 14, "t": 10, "b": 40}, "yaxis": {"gridcolor": lines},
    })  # fmt: skip
    values = [rank.get(what) for rank in ranks]
    longest = max((value for value in values if value is not None), default=None)
    figure.add_bar(
        x=[rank["rank"] for rank in ranks], y=values, marker_color=[LONGEST if v == longest else BAR for v in values],
        text=[escape(str(rank.get("node", ""))) for rank in ranks], textposition="none",
        hovertemplate="rank %{x} on %{text}<br>%{y:.3g}<extra></extra>",
    )  # fmt: skip
    return figure.update_xaxes(title="rank", type="category" if len(ranks) < 16 else "linear").update_yaxes(rangemode="tozero")


def finding_box(found: Finding) -> html.Div:
    """A kind of slowness, its cost, and the cure."""
    kind, _, seen = found.words.partition(": ")
    head = [dmc.Text(kind.capitalize(), fw=700, size="sm")]
    if found.cost >= 0.01:
        head.append(dmc.Badge(f"{100 * found.cost:.0f} % of the time", color="orange", variant="light", tt="none"))
    words = [dmc.Text(seen, size="sm"), dmc.Text(f"Cure: {found.cure}", size="sm", c="dimmed")]
    return html.Div([dmc.Group(head, gap="xs"), *words], className="finding", style={"marginTop": 8})


def layout() -> html.Div:
    """The tab, empty."""
    charts = [_card(title, dcc.Graph(id=f"input-{key}", config=PLAIN)) for key, (title, _) in CHARTS.items()]
    bars = [_card(f"By rank: {title}", dcc.Graph(id=f"rank-{key}", config=PLAIN)) for key, title in BY_RANK.items()]
    return html.Div([
        _card("What slows the first run down", html.Div(id="findings")), dmc.Text(id="slowest", size="sm", my="sm"),
        dmc.SimpleGrid(bars, cols={"base": 1, "md": 2}, mb="md"),
        dmc.SimpleGrid(charts, cols={"base": 1, "sm": 2, "lg": 3}),
    ])  # fmt: skip


def _card(title: str, content: Any) -> dmc.Card:
    return dmc.Card([dmc.Text(title, fw=600, size="sm"), content], withBorder=True, p="sm")


def found_in(rows: list[dict[str, Any]]) -> list[Any]:
    """The findings of a run as they are shown."""
    if sum("time/line_s" in row for row in rows) < 5:
        return [dmc.Text("Too few lines to say.", size="sm", c="dimmed")]
    boxes = [finding_box(one) for one in diagnose(rows)]
    return boxes or [dmc.Text("Nothing: the devices work nearly all the time.", size="sm")]


def wire(app: Dash, runs: Path) -> None:
    """Fill the tab while it is looked at."""
    figures = [Output(f"input-{key}", "figure") for key in CHARTS] + [Output(f"rank-{key}", "figure") for key in BY_RANK]

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
        curves = [plots.curves_figure(found, names, smoothing, x, bool(dark)) for _, names in CHARTS.values()]
        bars = [by_rank_figure(ranks, what, bool(dark)) for what in BY_RANK]
        return found_in(rows), f"{words} {note}".strip(), *curves, *bars
