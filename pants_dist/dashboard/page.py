"""The frame of the page: head, controls and tabs. Names come from folders and tables: React writes them as text."""

import time
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update

from pants_dist.dashboard import cases, curvestab, folders, input, overview, stores
from pants_dist.dashboard import runs as all_runs
from pants_dist.dashboard.look import FONT, HELD_OUT, RUN_COLORS, SEEN
from pants_dist.errors import UserError

POLL_MS = 2_000
THEME = {"fontFamily": FONT, "headings": {"fontFamily": FONT}, "primaryColor": "blue", "defaultRadius": "sm"}
LIGHTS = {"running": "green", "finished": "blue", "failed": "red"}
NOTES = """Dashed verticals: SLURM requeue. Hollow dots: too few cases for an interval. Intervals: 95 %, over patients. Tiles,
 centers and cases are those of the first run ticked, compared with the second."""


def layout(names: list[str]) -> dmc.MantineProvider:
    """The whole page, empty; the callbacks fill it."""
    return dmc.MantineProvider(
        id="theme", forceColorScheme="light", theme=THEME,
        children=[
            dcc.Interval(id="poll", interval=POLL_MS), dcc.Store(id="version"), dcc.Store(id="names", data=names),
            dmc.AppShell(
                header={"height": 46}, navbar={"width": 236, "breakpoint": "xs"}, padding="md", className="page",
                children=[
                    dmc.AppShellHeader(dmc.Group(px="md", h="100%", justify="space-between", wrap="nowrap", children=[
                        html.Div(id="head"), dmc.Group(gap="sm", wrap="nowrap", children=[
                            html.Span(id="updated", className="soft"),
                            dmc.Chip("◐ Dark", id="dark", checked=False, size="xs", radius="sm", variant="outline"),
                        ]),
                    ])),
                    dmc.AppShellNavbar(_controls(names), p="md", style={"overflow": "auto"}),
                    dmc.AppShellMain(dmc.Tabs(id="tab", value="overview", keepMounted=True, children=[
                        dmc.TabsList([
                            dmc.TabsTab("Overview", value="overview"), dmc.TabsTab("Runs", value="runs"),
                            dmc.TabsTab("Curves", value="curves"), dmc.TabsTab("Cases", value="cases"),
                            dmc.TabsTab("Input", value="input"), dmc.TabsTab("Stores and queue", value="stores"),
                        ], mb="md"),
                        dmc.TabsPanel(overview.layout(), value="overview"), dmc.TabsPanel(all_runs.layout(), value="runs"),
                        dmc.TabsPanel(curvestab.layout(), value="curves"), dmc.TabsPanel(cases.layout(), value="cases"),
                        dmc.TabsPanel(input.layout(), value="input"), dmc.TabsPanel(stores.layout(), value="stores"),
                    ])),
                ],
            ),
        ],
    )  # fmt: skip


def _controls(names: list[str]) -> list[Any]:
    x = [{"value": "step", "label": "step"}, {"value": "samples", "label": "samples"}, {"value": "time", "label": "time"}]
    return [
        _heading("RUNS"),
        html.Div(dmc.CheckboxGroup(_boxes(names, names[:1]), id="runs", value=names[:1]), className="run-list"),
        _heading("SMOOTHING"),
        dmc.Slider(id="smoothing", min=0, max=0.95, step=0.05, value=0.6, size="sm", label=None),
        html.Div(id="smoothing-note", className="soft"),
        _heading("X AXIS"),
        dmc.SegmentedControl(id="x", data=x, value="step", size="xs", fullWidth=True),
        dmc.Switch(id="log", label="logarithmic y", size="xs", mt=8),
        _heading("METRICS"),
        dmc.TextInput(id="metric-filter", placeholder="filter, regex", size="xs", mb=6, debounce=300),
        html.Div(id="groups", className="groups"), dcc.Store(id="group"),
        _heading("COLOR"),
        html.Div([html.I(style={"background": SEEN}), html.Span(id="seen-count")], className="legend"),
        html.Div([html.I(style={"background": HELD_OUT}), html.Span(id="held-out-count")], className="legend"),
        _heading("NOTES"), html.Div(NOTES, className="soft"), html.Div(id="notes"),
    ]  # fmt: skip


def _heading(words: str) -> html.Div:
    return html.Div(words, className="heading")


def _boxes(names: list[str], chosen: list[str]) -> html.Div:
    """A box a run, in the color that its curves have."""
    colors = {name: RUN_COLORS[number % len(RUN_COLORS)] for number, name in enumerate(chosen)}
    return html.Div([
        dmc.Checkbox(label=name, value=name, size="xs", radius=3, color=colors.get(name),
                     className="run" if name in colors else "run off") for name in names
    ])  # fmt: skip


def wire(app: Dash, runs: Path, store: Path | None = None) -> None:
    """Connect the controls with the folders under `runs`, and with a store that is being made."""
    beats = all_runs.Heartbeats(runs)
    overview.wire(app, runs)
    all_runs.wire(app, runs, beats)
    curvestab.wire(app, runs)
    cases.wire(app, runs)
    input.wire(app, runs)
    stores.wire(app, runs, store)

    @app.callback(Output("theme", "forceColorScheme"), Input("dark", "checked"))
    def themed(dark: bool | None) -> str:
        return "dark" if dark else "light"

    @app.callback(Output("head", "children"), Output("updated", "children"), Output("version", "data"), Output("names", "data"),
                  Input("poll", "n_intervals"), Input("runs", "value"), State("version", "data"),
                  State("names", "data"))  # fmt: skip
    def polled(_: int | None, chosen: list[str], before: Any, known: list[str]) -> tuple[Any, ...]:
        version, names = [[name, *stamp(runs, name)] for name in chosen], names_now(runs)
        head, updated = _head(runs, chosen[0], beats) if chosen else ("no run ticked", "")
        return head, updated, no_update if version == before else version, no_update if names == known else names

    @app.callback(Output("runs", "children"), Input("names", "data"), Input("runs", "value"))
    def boxes(names: list[str], chosen: list[str]) -> html.Div:
        return _boxes([*names, *(name for name in chosen if name not in names)], chosen)

    @app.callback(Output("smoothing-note", "children"), Input("smoothing", "value"))
    def smoothing_note(smoothing: float) -> str:
        return f"EMA {smoothing:.2f}, raw shown faint" if smoothing else "off"


def names_now(runs: Path) -> list[str]:
    """Names of the runs that there are, none where even the folder is gone."""
    try:
        return folders.run_names(runs)
    except UserError:
        return []


def stamp(runs: Path, name: str) -> list[int]:
    """What changes when a run is written to."""
    stamps = []
    for file in ("metrics.jsonl", "summary.json", "evaluation/report.html"):
        try:
            found = (folders.run_folder(runs, name) / file).stat()
            stamps += [found.st_size, found.st_mtime_ns // 1_000_000]
        except (OSError, UserError):
            stamps.append(0)
    return stamps


def _head(runs: Path, name: str, beats: all_runs.Heartbeats) -> tuple[Any, str]:
    """Name, state and place of a run, and how long ago it said anything."""
    folder = folders.run_folder(runs, name)
    summary, note = folders.summary_of(folder)
    title = html.B(folder.name, id="run-name")
    try:
        word, stale = beats.state_of(name, folder, summary)
        ago = beats.age_s(name, summary.get("heartbeat"), time.time())
    except OSError:
        note, word, stale, ago = note or "summary.json is gone", "", False, 0.0
    if note:
        return html.Div([title, html.Span(note, className="chip red", id="state")], className="chips"), ""
    light, steps = "orange" if stale else LIGHTS.get(word, "gray"), f" / {summary.get('steps', 0):,}"
    chips = [html.Span([html.I(), word], className=f"chip {light}", id="state")]
    chips.append(html.Span(["step ", html.B(f"{summary.get('step', 0):,}"), steps], className="chip"))
    chips += [html.Span(fact, className="chip") for fact in _facts(folder, summary)]
    return html.Div([title, *chips], className="chips"), f"updated {all_runs.in_words(ago)} ago"


def _facts(folder: Path, summary: dict[str, Any]) -> list[str]:
    """What else stands in the head: machine, time left, requeues."""
    machine = summary.get("machine") or {}
    ranks, requeues = machine.get("ranks"), int(summary.get("attempt", 1)) - 1
    facts = [f"{ranks} ranks on {machine.get('gpu') or 'CPU'}" if ranks else "", str(summary.get("host", ""))]
    if left := all_runs.seconds_left(folder, summary):
        facts.append(f"{all_runs.in_words(left)} left")
    facts.append(f"{requeues} requeue{'s' if requeues > 1 else ''}" if requeues else "")
    return [fact for fact in facts if fact]
