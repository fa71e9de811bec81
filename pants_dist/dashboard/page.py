"""The layout of the page, and what each control changes. Names come from folders and tables: React writes them as text."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
import pandas as pd
from dash import Dash, Input, Output, State, dcc, html, no_update

from pants_dist.dashboard import cases, folders, input, plots, stores
from pants_dist.dashboard import runs as all_runs
from pants_dist.errors import UserError

POLL_MS = 2_000
CURVES = {
    "loss": ("Training loss", ("train/loss",)),
    "dice": ("Validation Dice, held-out dashed", ("val/dsc", "val_ood/dsc")),
    "rate": ("Samples a second", ("train/samples_per_s",)),
    "wait": ("Share of time spent waiting for data", ("loader/wait_fraction",)),
}
PLAIN: Any = {"displayModeBar": False, "responsive": True}


def layout(names: list[str]) -> dmc.MantineProvider:
    """The whole page, empty; the callbacks fill it."""
    return dmc.MantineProvider(
        id="theme", forceColorScheme="light",
        children=[
            dcc.Interval(id="poll", interval=POLL_MS), dcc.Store(id="version"),
            dmc.AppShell(
                header={"height": 52}, navbar={"width": 230, "breakpoint": "xs"}, padding="md", className="page",
                children=[
                    dmc.AppShellHeader(dmc.Group(px="md", h="100%", justify="space-between", children=[
                        html.Div(id="head"), dmc.Switch(id="dark", label="Dark", size="sm"),
                    ])),
                    dmc.AppShellNavbar(_controls(names), p="md", style={"overflow": "auto"}),
                    dmc.AppShellMain(dmc.Tabs(id="tab", value="overview", keepMounted=True, children=[
                        dmc.TabsList([dmc.TabsTab("Overview", value="overview"), dmc.TabsTab("Runs", value="runs"),
                                      dmc.TabsTab("Cases", value="cases"), dmc.TabsTab("Input", value="input"),
                                      dmc.TabsTab("Stores and queue", value="stores")], mb="sm"),
                        dmc.TabsPanel(_body(), value="overview"), dmc.TabsPanel(all_runs.layout(), value="runs"),
                        dmc.TabsPanel(cases.layout(), value="cases"), dmc.TabsPanel(input.layout(), value="input"),
                        dmc.TabsPanel(stores.layout(), value="stores"),
                    ])),
                ],
            ),
        ],
    )  # fmt: skip


def _controls(names: list[str]) -> list[Any]:
    boxes = [dmc.Checkbox(label=name, value=name, mb=6, size="xs") for name in names]
    return [
        dmc.Text("RUNS", size="xs", fw=700, c="dimmed", mb=6),
        dmc.CheckboxGroup(boxes, id="runs", value=names[:1]),
        dmc.Text("SMOOTHING", size="xs", fw=700, c="dimmed", mt="lg"),
        dmc.Slider(id="smoothing", min=0, max=0.95, step=0.05, value=0.6, size="sm", mb=4),
        dmc.Text("moving average; raw shown faint", size="xs", c="dimmed"),
        dmc.Text("X AXIS", size="xs", fw=700, c="dimmed", mt="lg"),
        dmc.SegmentedControl(id="x", data=["step", "samples", "time"], value="step", size="xs", fullWidth=True),
        dmc.Switch(id="log", label="logarithmic y", size="xs", mt="sm"),
        dmc.Text("COLOR", size="xs", fw=700, c="dimmed", mt="lg"),
        dmc.Text("● seen centers", size="xs", c=plots.SEEN),
        dmc.Text("● held-out centers", size="xs", c=plots.HELD_OUT),
        dmc.Text("NOTES", size="xs", fw=700, c="dimmed", mt="lg"),
        dmc.Text("Dotted verticals: requeue. Hollow dots: too few cases for an interval. Intervals: 95 %, Student's t. "
                 "Centers are those of the first run ticked.", size="xs", c="dimmed"),
        html.Div(id="notes"),
    ]  # fmt: skip


def _body() -> list[Any]:
    curves = [_card(title, dcc.Graph(id=key, config=PLAIN), ", ".join(names)) for key, (title, names) in CURVES.items()]
    small = (
        ("gap", "Seen and held-out, by structure", "mean over centers; number: gap in Dice points"),
        ("detection", "Sensitivity and specificity by center", "patients; area by n"),
        ("funnel", "Low score or small center?", "Dice against n with 95 % and 99.8 % limits"),
    )
    return [
        html.Div(id="tiles"),
        dmc.Title("Training and input", order=5, my="sm"),
        dmc.SimpleGrid(curves, cols={"base": 1, "sm": 2, "lg": 4}),
        dmc.MultiSelect(id="more", placeholder="more metrics of the runs ticked", searchable=True, clearable=True, data=[],
                        value=[], size="xs", my="sm"),
        html.Div(id="more-curves"),
        dmc.Group(justify="space-between", my="sm", children=[
            dmc.Title("Centers", order=5),
            dmc.Select(id="metric", data=[{"value": "dsc", "label": "mean Dice"}], value="dsc", size="xs", allowDeselect=False),
        ]),
        _card("Dice by center", dcc.Graph(id="centers", config=PLAIN), "best to worst; cases; Dice by structure"),
        dmc.SimpleGrid([_card(title, dcc.Graph(id=key, config=PLAIN), note) for key, title, note in small],
                       cols={"base": 1, "md": 3}, mt="md"),
        dmc.Grid(mt="md", children=[dmc.GridCol(_table(), span=7), dmc.GridCol(_card(
            "Worst cases", html.Div(id="worst"), "green: reference, orange: prediction"), span=5)]),
    ]  # fmt: skip


def _table() -> dmc.Card:
    head = dmc.Group(justify="space-between", mb="xs", children=[
        dmc.Text("Centers", fw=600, size="sm"),
        dmc.Group([dmc.TextInput(id="filter", placeholder="filter", size="xs"), dmc.Button("CSV", id="csv", size="xs")]),
    ])  # fmt: skip
    grid = dag.AgGrid(id="table", columnDefs=[], rowData=[], columnSize="sizeToFit",
                      getRowId="params.data.center + params.data.set", dashGridOptions={"enableCellTextSelection": True},
                      csvExportParams={"fileName": "centers.csv"}, style={"height": 420})  # fmt: skip
    return dmc.Card([head, html.Div(grid, id="table-theme")], withBorder=True)


def _card(title: str, content: Any, note: str) -> dmc.Card:
    head = [dmc.Text(title, fw=600, size="sm"), dmc.Text(note, size="xs", c="dimmed")]
    return dmc.Card([*head, content], withBorder=True, p="sm")


def wire(app: Dash, runs: Path, store: Path | None = None) -> None:
    """Connect the controls with the folders under `runs`, and with a store that is being made."""
    beats = all_runs.Heartbeats(runs)
    all_runs.wire(app, runs, beats)
    cases.wire(app, runs)
    input.wire(app, runs)
    stores.wire(app, runs, store)

    @app.callback(Output("theme", "forceColorScheme"), Output("table-theme", "data-ag-theme-mode"), Input("dark", "checked"))
    def themed(dark: bool | None) -> tuple[str, str]:
        return ("dark", "dark") if dark else ("light", "light")

    @app.callback(Output("head", "children"), Output("version", "data"), Input("poll", "n_intervals"),
                  Input("runs", "value"), State("version", "data"))  # fmt: skip
    def polled(_: int | None, chosen: list[str], before: Any) -> tuple[Any, Any]:
        version = [[name, *_stamp(runs, name)] for name in chosen]
        return _head(runs, chosen[0], beats) if chosen else "no run ticked", no_update if version == before else version

    figures = [Output(key, "figure") for key in CURVES]

    @app.callback(*figures, Output("tiles", "children"), Output("notes", "children"), Input("version", "data"),
                  Input("smoothing", "value"), Input("x", "value"), Input("log", "checked"), Input("dark", "checked"),
                  State("runs", "value"))  # fmt: skip
    def drawn(
        _: Any, smoothing: float, x: str, log: bool | None, dark: bool | None, chosen: list[str]
    ) -> tuple[Any, ...]:
        found = {name: folders.curves_of(folders.run_folder(runs, name)) for name in chosen}
        shown = [plots.curves_figure(found, names, smoothing, x, bool(dark), bool(log)) for _, names in CURVES.values()]
        notes = [f"{name}: {note}" for name, curves in found.items() for note in curves.notes]
        results = folders.results_of(folders.run_folder(runs, chosen[0])) if chosen else folders.Results()
        return *shown, _tiles(found, results), [dmc.Text(note, size="xs", c="red", mt=6) for note in notes + results.notes]

    @app.callback(Output("more", "data"), Input("version", "data"), State("runs", "value"))
    def offered(_: Any, chosen: list[str]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, None]] = {}
        for name in chosen:
            for group, metrics in folders.curves_of(folders.run_folder(runs, name)).groups().items():
                found.setdefault(group, {}).update(dict.fromkeys(metrics))
        return [{"group": f"{group} ({len(metrics)})", "items": list(metrics)} for group, metrics in sorted(found.items())]

    @app.callback(Output("more-curves", "children"), Input("more", "value"), Input("version", "data"),
                  Input("smoothing", "value"), Input("x", "value"), Input("log", "checked"), Input("dark", "checked"),
                  State("runs", "value"))  # fmt: skip
    def drawn_more(
        metrics: list[str], _: Any, smoothing: float, x: str, log: bool | None, dark: bool | None, chosen: list[str]
    ) -> Any:
        found = {name: folders.curves_of(folders.run_folder(runs, name)) for name in chosen if metrics}
        figures = {name: plots.curves_figure(found, (name,), smoothing, x, bool(dark), bool(log)) for name in metrics or ()}
        cards = [_card(name, dcc.Graph(figure=figure, config=PLAIN), "") for name, figure in figures.items()]
        return dmc.SimpleGrid(cards, cols={"base": 1, "sm": 2, "lg": 4})

    @app.callback(Output("metric", "data"), Output("centers", "figure"), Output("gap", "figure"),
                  Output("detection", "figure"), Output("funnel", "figure"), Output("table", "columnDefs"),
                  Output("table", "rowData"), Output("worst", "children"), Input("version", "data"),
                  Input("metric", "value"), Input("dark", "checked"), State("runs", "value"))  # fmt: skip
    def compared(_: Any, metric: str, dark: bool | None, chosen: list[str]) -> tuple[Any, ...]:
        results = folders.results_of(folders.run_folder(runs, chosen[0])) if chosen else folders.Results()
        if results.centers.empty:
            return no_update, {}, {}, {}, {}, [], [], dmc.Text("not scored yet: pants-dist evaluate RUN", size="sm", c="dimmed")
        metric = metric if metric in results.centers else "dsc"
        options = [{"value": "dsc", "label": "mean Dice"}]
        options += [{"value": f"dsc/{name}", "label": f"Dice of {name}"} for name in results.structures]
        plain, centers, structures = bool(dark), results.centers, results.structures
        return (
            options, plots.centers_figure(centers, structures, metric, plain), plots.gap_figure(centers, structures, plain),
            plots.detection_figure(centers, plain), plots.funnel_figure(results.cases, centers, metric, plain),
            _columns(structures), center_rows(centers, structures), _worst(runs, chosen[0], results),
        )  # fmt: skip

    @app.callback(Output("table", "dashGridOptions"), Input("filter", "value"), prevent_initial_call=True)
    def filtered(text: str) -> dict[str, Any]:
        return {"quickFilterText": text}

    @app.callback(Output("table", "exportDataAsCsv"), Input("csv", "n_clicks"), prevent_initial_call=True)
    def exported(_: int) -> bool:
        return True


def _stamp(runs: Path, name: str) -> list[int]:
    """What changes when a run is written to."""
    stamps = []
    for file in ("metrics.jsonl", "summary.json", "evaluation/report.html"):
        try:
            found = (folders.run_folder(runs, name) / file).stat()
            stamps += [found.st_size, found.st_mtime_ns // 1_000_000]
        except (OSError, UserError):
            stamps.append(0)
    return stamps


def _head(runs: Path, name: str, beats: all_runs.Heartbeats) -> dmc.Group:
    folder = folders.run_folder(runs, name)
    summary, note = folders.summary_of(folder)
    parts = [dmc.Text(folder.name, fw=700, id="run-name")]
    if note:
        return dmc.Group([*parts, dmc.Badge(note, color="red", tt="none")])
    word, stale = beats.state_of(name, folder, summary)
    color = "orange" if stale else {"running": "teal", "finished": "blue", "failed": "red"}.get(word, "gray")
    facts = [f"step {summary.get('step', 0):,} / {summary.get('steps', 0):,}", str(summary.get("host", ""))]
    if requeues := int(summary.get("attempt", 1)) - 1:
        facts.append(f"{requeues} requeues")
    chips = [dmc.Badge(fact, color="gray", variant="light", tt="none") for fact in facts if fact]
    return dmc.Group([*parts, dmc.Badge(word, color=color, variant="light", tt="none", id="state"), *chips])


def _tiles(curves: dict[str, folders.Curves], results: folders.Results) -> dmc.SimpleGrid:
    first = next(iter(curves.values()), folders.Curves())
    last = {key: value for row in first.rows for key, value in row.items()}
    seen, held_out = _means(results.centers)
    lowest = results.centers.sort_values("dsc").head(1).to_dict("records") if len(results.centers) else []
    numbers = [
        ("Dice, seen centers", _shown(seen), "mean over centers"),
        ("Dice, held-out centers", _shown(held_out), "mean over centers"),
        ("Gap, seen less held-out", _shown(100 * (seen - held_out), 1, " pts"), "descriptive"),
        ("Worst center", _shown(lowest[0]["dsc"] if lowest else None), lowest[0]["center"] if lowest else "not scored yet"),
        ("Throughput", _shown(last.get("train/samples_per_s"), 1, " /s"), "samples, all ranks"),
        ("Data wait", _shown(_percent(last.get("loader/wait_fraction")), 1, " %"), "of the last steps"),
    ]  # fmt: skip
    return dmc.SimpleGrid([_tile(*number) for number in numbers], cols={"base": 2, "sm": 3, "lg": 6})


def _tile(name: str, value: str, note: str) -> dmc.Card:
    lines = [dmc.Text(name, size="xs", c="dimmed"), dmc.Text(value, size="xl", fw=700), dmc.Text(note, size="xs", c="dimmed")]
    return dmc.Card(lines, withBorder=True, p="sm", className="tile")


def _means(centers: pd.DataFrame) -> tuple[float, float]:
    if centers.empty:
        return float("nan"), float("nan")
    return centers.loc[centers["seen"], "dsc"].mean(), centers.loc[~centers["seen"], "dsc"].mean()


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _shown(value: float | None, digits: int = 3, unit: str = "") -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}{unit}"


def _columns(structures: list[str]) -> list[dict[str, Any]]:
    names = ["center", "set", "n", "Dice", "95 % CI", *structures, "sensitivity", "specificity"]
    return [{"field": name, "sortable": True, "filter": True, "minWidth": 160 if name == "center" else 80} for name in names]


def center_rows(centers: pd.DataFrame, structures: list[str]) -> list[dict[str, Any]]:
    """Rows of the table by center, worst first; None where there is no value."""
    rows = []
    for center in centers.sort_values("dsc").to_dict("records"):
        row = {"center": center["center"], "set": "seen" if center["seen"] else "held-out", "n": center["n"]}
        low, high = center["dsc/low"], center["dsc/high"]
        row["95 % CI"] = f"{low:.3f}-{high:.3f}" if low == low else None
        values = {"Dice": center["dsc"]} | {name: center[f"dsc/{name}"] for name in structures}
        values |= {name: center[name] for name in ("sensitivity", "specificity")}
        rows.append(row | {name: None if value != value else round(value, 3) for name, value in values.items()})
    return rows


def _worst(runs: Path, name: str, results: folders.Results) -> Any:
    pictures = folders.pictures_of(folders.run_folder(runs, name), results.cases)
    cards = [
        html.Figure([
            html.Img(src=f"/picture/{quote(name)}/{quote(path)}", style={"width": "100%"}),
            html.Figcaption(f"{case} · Dice {dice:.2f}", style={"fontSize": 11}),
        ], style={"margin": 0}) for path, case, dice in pictures
    ]  # fmt: skip
    return dmc.SimpleGrid(cards, cols=3) if cards else dmc.Text("no pictures", size="sm", c="dimmed")
