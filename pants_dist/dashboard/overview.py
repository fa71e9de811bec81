"""The tab that a day begins with: how training goes, and how the first run ticked does at each center."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
import pandas as pd
from dash import Dash, Input, Output, Patch, State, dcc, html, no_update

from pants_dist.dashboard import centerplots, folders, metrics, plots
from pants_dist.dashboard.grids import AS_WIDE_AS_THE_CARD, THEMED, number_column, text_column
from pants_dist.dashboard.look import plain_figure, say_nothing
from pants_dist.structures import LESION, PANCREAS

CURVES = {  # id -> title, what is drawn (the second dashed), what shades the background
    "loss": ("Training loss", ("train/loss",), ""),
    "dice": ("Validation Dice", ("val/dsc", "val_ood/dsc"), ""),
    "rate": ("Throughput", ("train/samples_per_s",), "loader/wait_fraction"),
}
SAID = {"loss": "train/loss", "dice": "val/dsc solid, val_ood/dsc dashed", "rate": "train/samples_per_s; red: waiting for data"}
SMALL = (
    ("gap", "Seen and held-out, by structure", "mean over centers, 95 % CI; number: gap in Dice points"),
    ("detection", "Sensitivity and specificity by center", "patients with a lesion found, without one cleared; area by n"),
    ("funnel", "Low score or small center?", "against n, with 95 % and 99.8 % limits"),
)
PLAIN: Any = {"displayModeBar": False, "responsive": True}
MEAN_CHOICE = [{"value": metrics.MEAN, "label": metrics.label_of(metrics.MEAN)}]


def card(title: str, note: str, content: Any, extra: Any = None) -> html.Div:
    """A box with a heading, a line below it, and what it shows."""
    head = html.Div([html.Div([html.B(title), html.Div(note, className="soft")]), extra], className="card-head")
    return html.Div([head, content], className="card")


def outlines() -> html.Span:
    """What the two outlines in pictures are."""
    words: list[Any] = [html.I(className="reference"), "reference", html.I(className="prediction"), "prediction"]
    return html.Span(words, className="legend")


def graph(key: str, height: int) -> dcc.Graph:
    """A figure that a callback fills, whose place is kept until then."""
    return dcc.Graph(id=key, config=PLAIN, style={"height": height}, responsive=True)


def layout() -> list[Any]:
    """The tab, empty."""
    selects = dmc.Group(gap="xs", children=[
        dmc.Select(id="metric", data=MEAN_CHOICE, value=metrics.MEAN, size="xs", allowDeselect=False, searchable=True, w=210),
        dmc.Select(id="sort", data=[], value="metric", size="xs", allowDeselect=False, searchable=True, w=210),
    ])  # fmt: skip
    worst = html.Div(id="worst", className="worst")
    return [
        html.Div(id="tiles", className="tiles"),
        html.Div([html.B("Training and input"), html.Code("train/* val/* loader/*")], className="section"),
        html.Div([card(title, SAID[key], graph(key, 220)) for key, (title, *_) in CURVES.items()], className="thirds"),
        html.Div([html.Div([html.B("Centers"), html.Code(id="source")]), selects], className="section"),
        html.Div(graph("centers", 470), className="card"),
        html.Div([card(title, note, graph(key, 264)) for key, title, note in SMALL], className="thirds"),
        html.Div([_table(), card("Worst cases", "mean Dice; a click shows the case", worst, outlines())], className="halves"),
    ]  # fmt: skip


def _table() -> html.Div:
    tools = dmc.Group(gap="xs", children=[
        dmc.TextInput(id="filter", placeholder="filter: name, set", size="xs", w=170),
        dmc.Button("CSV", id="csv", size="compact-sm", variant="default"),
    ])  # fmt: skip
    grid = dag.AgGrid(id="table", columnDefs=[], rowData=[], getRowId="params.data.center + params.data.set", columnSize=None,
                      dashGridOptions=THEMED, dangerously_allow_code=False, csvExportParams={"fileName": "centers.csv"},
                      style={"height": 372})  # fmt: skip
    title = html.Div([html.B("Centers "), html.Span(id="center-count", className="soft")])
    return html.Div([html.Div([title, tools], className="card-head"), grid], className="card")


def wire(app: Dash, runs: Path) -> None:
    """Fill the tab, and keep it as new as the folders."""

    @app.callback(*[Output(key, "figure") for key in CURVES], Output("notes", "children"), Input("version", "data"),
                  Input("smoothing", "value"), Input("x", "value"), Input("log", "checked"), Input("dark", "checked"),
                  State("runs", "value"))  # fmt: skip
    def drawn(_: Any, smoothing: float, x: str, log: bool | None, dark: bool | None, chosen: list[str]) -> tuple[Any, ...]:
        found = {name: folders.curves_of(folders.run_folder(runs, name)) for name in chosen}
        shown = [
            plots.curves_figure(found, names, smoothing, x, bool(dark), bool(log), shade) for _, names, shade in CURVES.values()
        ]
        notes = [f"{name}: {note}" for name, curves in found.items() for note in curves.notes]
        results = folders.results_of(folders.run_folder(runs, chosen[0])) if chosen else folders.Results()
        return *shown, [html.Div(note, className="note") for note in notes + results.notes]

    @app.callback(Output("tiles", "children"), Output("source", "children"), Output("metric", "data"), Output("sort", "data"),
                  Output("table", "columnDefs"), Output("table", "rowData"), Output("center-count", "children"),
                  Output("worst", "children"), Output("seen-count", "children"), Output("held-out-count", "children"),
                  Input("version", "data"), State("runs", "value"))  # fmt: skip
    def scored(_: Any, chosen: list[str]) -> tuple[Any, ...]:
        found = {name: folders.results_of(folders.run_folder(runs, name)) for name in chosen[:2]}
        curves = {name: folders.curves_of(folders.run_folder(runs, name)) for name in chosen[:2]}
        results = next(iter(found.values()), folders.Results())
        centers, structures = results.centers, results.structures
        choices = metrics.choices(centers) or MEAN_CHOICE
        orders = [{"value": "metric", "label": "sort: as shown"}, {"value": "n", "label": "sort: n"},
                  {"value": "center", "label": "sort: name"}]  # fmt: skip
        orders += [{"value": name, "label": f"sort: {metrics.label_of(name)}"} for name in metrics.metrics_of(centers)]
        scale = f"{len(centers)} centers · {len(results.cases):,} cases"
        counts = [int((centers["seen"] == seen).sum()) if len(centers) else 0 for seen in (True, False)]
        return (
            tiles(found, curves), f"{results.source} · {scale}" if len(centers) else "not scored yet", choices, orders,
            columns(structures), center_rows(centers, structures),
            f"{len(centers)} of this run", worst_pictures(runs, chosen[0], results) if chosen else [],
            f"seen centers ({counts[0]})", f"held-out centers ({counts[1]})",
        )  # fmt: skip

    @app.callback(Output("centers", "figure"), Output("centers", "style"), Output("gap", "figure"),
                  Output("detection", "figure"), Output("funnel", "figure"), Input("version", "data"),
                  Input("metric", "value"), Input("sort", "value"), Input("dark", "checked"),
                  State("runs", "value"))  # fmt: skip
    def compared(_: Any, metric: str, by: str, dark: bool | None, chosen: list[str]) -> tuple[Any, ...]:
        results = folders.results_of(folders.run_folder(runs, chosen[0])) if chosen else folders.Results()
        cases, centers, structures = results.cases, results.centers, results.structures
        if centers.empty:
            return empty_figures(bool(dark))
        metric = metric if metric in centers else metrics.MEAN
        by = by if by in centers else metric
        figure = centerplots.centers_figure(cases, centers, structures, metric, by, bool(dark))
        return (
            figure, {"height": figure.layout.height}, centerplots.gap_figure(centers, structures, bool(dark)),
            centerplots.detection_figure(centers, bool(dark)), centerplots.funnel_figure(cases, centers, metric, bool(dark)),
        )  # fmt: skip

    _wire_table(app)


def _wire_table(app: Dash) -> None:
    """Filter and export, of what the browser has already."""

    @app.callback(Output("table", "dashGridOptions"), Input("filter", "value"), prevent_initial_call=True)
    def filtered(text: str) -> Patch:
        options = Patch()
        options["quickFilterText"] = text
        return options

    @app.callback(Output("table", "exportDataAsCsv"), Input("csv", "n_clicks"), prevent_initial_call=True)
    def exported(clicks: int | None) -> Any:
        return True if clicks else no_update


def empty_figures(dark: bool) -> tuple[Any, ...]:
    """What stands in place of centers that were not scored."""
    words = "not scored yet: pants-dist evaluate RUN"
    figures = [say_nothing(plain_figure(dark, height), words) for height in (200, 264, 264, 264)]
    return figures[0], {"height": 200}, *figures[1:]


def tiles(found: dict[str, folders.Results], curves: dict[str, folders.Curves]) -> list[html.Div]:
    """Six numbers of the first run, and how they differ from the second's."""
    (name, first), *others = [(name, _numbers(found[name], curves[name])) for name in found] or [("", _numbers())]
    lowest = _lowest(next(iter(found.values()), folders.Results()))
    titles = (
        ("seen", "Dice, seen centers", 3, "", "mean over centers", 1),
        ("held_out", "Dice, held-out centers", 3, "", "mean over centers", 1),
        ("gap", "Gap, seen less held-out", 1, " pts", "descriptive", -1),
        ("worst", "Worst center", 3, "", lowest, 1),
        ("rate", "Throughput", 1, " /s", "samples, all ranks", 1),
        ("wait", "Data wait", 1, " %", "of the last steps", -1),
    )  # fmt: skip
    shown = []
    for key, title, digits, unit, note, good in titles:
        if others and key != "worst" and (step := first[key] - others[0][1][key]) == step:
            word = "good" if step * good > 0 else "bad" if step * good < 0 else ""
            remark = html.Div(f"{step:+.{digits}f}".replace("-", "−") + f" vs {others[0][0]}", className=f"remark {word}")
        else:
            remark = html.Div(note, className="remark")
        value = html.Div(_shown(first[key], digits, unit), className="big")
        shown.append(html.Div([html.Div(title, className="soft"), value, remark], className="card tile"))
    return shown


def _numbers(results: folders.Results | None = None, curves: folders.Curves | None = None) -> dict[str, float]:
    nan = float("nan")
    last = {key: value for row in curves.rows for key, value in row.items()} if curves else {}
    numbers = {"seen": nan, "held_out": nan, "worst": nan}
    if results and len(results.centers):
        dice, seen = results.centers[metrics.MEAN], results.centers["seen"].astype(bool)
        numbers = {"seen": dice[seen].mean(), "held_out": dice[~seen].mean(), "worst": dice.min()}
    numbers["gap"] = 100 * (numbers["seen"] - numbers["held_out"])
    wait = last.get("loader/wait_fraction")
    return numbers | {"rate": last.get("train/samples_per_s", nan), "wait": nan if wait is None else 100 * wait}


def _lowest(results: folders.Results) -> str:
    known = results.centers.dropna(subset=[metrics.MEAN]) if len(results.centers) else results.centers
    return str(known.sort_values(metrics.MEAN)["center"].iloc[0]) if len(known) else "not scored yet"


def _shown(value: float, digits: int = 3, unit: str = "") -> str:
    return "–" if value != value else f"{value:.{digits}f}{unit}"


def columns(structures: list[str]) -> list[dict[str, Any]]:
    """Columns of the table by center."""
    numbers = [number_column("Dice", bold=True), text_column("95 % CI", 110, right=True)]
    numbers += structure_columns(structures)
    return [
        text_column("center", AS_WIDE_AS_THE_CARD), text_column("set", 92, badge=True), number_column("n", digits=0), *numbers,
        number_column("sensitivity"), number_column("specificity"),
    ]  # fmt: skip


def center_rows(centers: pd.DataFrame, structures: list[str]) -> list[dict[str, Any]]:
    """Rows of the table by center, worst first; None where there is no value."""
    rows = []
    for center in centers.sort_values(metrics.MEAN).to_dict("records") if len(centers) else ():
        row = {"center": center["center"], "set": "seen" if center["seen"] else "held-out", "n": center["n"]}
        low, high = center["dsc/low"], center["dsc/high"]
        values = {"Dice": center[metrics.MEAN], "95 % CI": f"{low:.3f}–{high:.3f}" if low == low else None}
        values |= {name: center[f"dsc/{name}"] for name in structures}
        values |= {name: center[name] for name in metrics.SHARES}
        rows.append(row | {name: value if isinstance(value, str) else rounded(value) for name, value in values.items()})
    return rows


def structure_columns(structures: list[str]) -> list[dict[str, Any]]:
    """A column a structure, pancreas and lesion first."""
    names = sorted(structures, key=lambda name: name not in (PANCREAS, LESION))
    return [number_column(name, heading="lesion" if name == LESION else name.replace("_", " ")) for name in names]


def rounded(value: float | None) -> float | None:
    """To three digits; None for NaN, which JSON does not know."""
    return None if value is None or value != value else round(float(value), 3)


def worst_pictures(runs: Path, name: str, results: folders.Results) -> Any:
    """The worst cases as small pictures; a click leads to the case."""
    pictures = folders.pictures_of(folders.run_folder(runs, name), results.cases)
    return [
        html.Button([
            html.Img(src=f"/picture/{quote(name)}/{quote(path)}", alt=case),
            html.Span([html.B(case), html.Span(f"{dice:.2f}", title="Dice", className="soft")]),
        ], id={"worst": case}, n_clicks=0) for path, case, dice in pictures
    ] or html.Div("no pictures", className="soft")  # fmt: skip
