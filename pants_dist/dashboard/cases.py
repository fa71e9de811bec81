"""Cases of a run: a table, and for the one that is clicked three slices from the store, or the picture that was drawn of it."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
import numpy as np
import pandas as pd
from dash import ALL, Dash, Input, Output, Patch, State, ctx, dcc, html, no_update

from pants_dist.dashboard import folders
from pants_dist.dashboard.grids import THEMED, number_column, text_column
from pants_dist.dashboard.overview import outlines, rounded, structure_columns
from pants_dist.dashboard.slices import PLANES, WINDOWS_HU, focus_of, kept_of, shape_of
from pants_dist.errors import UserError
from pants_dist.pictures import outlined

SLICE = """(index, window_, shown, runs) => (!shown || !runs.length) ? window.dash_clientside.no_update
  : '/slice/' + encodeURIComponent(runs[0]) + '?' + new URLSearchParams(
      {case: shown.case, plane: '%s', index: index, window: window_, written: shown.written})"""


def case_rows(cases: pd.DataFrame, structures: list[str]) -> list[dict[str, Any]]:
    """Rows of the table, the lowest mean Dice first; None where there is no value."""
    if cases.empty:
        return []
    rows = []
    for case in cases.sort_values(["dsc", "case"]).to_dict("records"):
        set_ = "" if case["seen"] is None or case["seen"] != case["seen"] else "seen" if case["seen"] else "held-out"
        row = {"case": case["case"], "center": case["center"], "set": set_, "split": case.get("split", "")}
        values = {"Dice": case["dsc"]} | {name: case[f"dsc/{name}"] for name in structures}
        row |= {name: rounded(value) for name, value in values.items()}
        lesion = case.get("lesion_present")
        rows.append(row | {"with lesion": None if lesion is None or lesion != lesion else "yes" if lesion else "no"})
    return rows


def layout() -> html.Div:
    """The tab, empty."""
    tools = dmc.Group(gap="xs", wrap="nowrap", children=[
        dmc.Select(id="cases-center", data=[], placeholder="all centers", clearable=True, searchable=True, size="xs", w=190),
        dmc.TextInput(id="cases-filter", placeholder="filter: a case, a set", size="xs", w=150),
    ])  # fmt: skip
    head = html.Div([html.Div([html.B("Cases "), html.Span(id="case-count", className="soft")]), tools], className="card-head")
    grid = dag.AgGrid(id="cases-table", columnDefs=[], rowData=[], getRowId="params.data.case",
                      dashGridOptions=THEMED, style={"height": 700})  # fmt: skip
    return html.Div([html.Div([head, grid], className="card"), _viewer()], className="halves even")


def _viewer() -> html.Div:
    window = dmc.SegmentedControl(id="window", data=list(WINDOWS_HU), value=next(iter(WINDOWS_HU)), size="xs")
    planes = [
        html.Div([
            html.Div([html.B(plane), html.Span(id=f"place-{plane}")], className="plane-name"),
            html.Img(id=f"slice-{plane}", className="slice", draggable="false"),
            dmc.Slider(id=f"at-{plane}", min=0, max=1, value=0, size="xs", updatemode="drag", label=None),
        ], className=f"plane {plane}") for plane in PLANES
    ]  # fmt: skip
    return html.Div([
        dcc.Store(id="case"), dcc.Store(id="shown"),
        html.Div([html.Div([html.B("no case chosen", id="case-name"),
                            html.Div("click one", id="case-facts", className="soft")]), outlines()], className="card-head"),
        html.Div([window, html.Span("wheel or slider: other slices", className="soft")], className="spread"),
        html.Div(planes, id="planes", className="planes", hidden=True), html.Div(id="drawn", className="drawn"),
    ], className="card")  # fmt: skip


def wire(app: Dash, runs: Path) -> None:
    """Fill the table; a click on a center leads here, a click on a case shows it."""
    _wire_table(app, runs)
    _wire_viewer(app, runs)


def _wire_table(app: Dash, runs: Path) -> None:
    @app.callback(Output("cases-table", "columnDefs"), Output("cases-table", "rowData"), Output("cases-center", "data"),
                  Output("case-count", "children"), Input("version", "data"), Input("tab", "value"),
                  Input("cases-center", "value"), State("runs", "value"))  # fmt: skip
    def listed(_: Any, tab: str, center: str | None, chosen: list[str]) -> tuple[Any, ...]:
        if tab != "cases" or not chosen:
            return (no_update,) * 4
        results = folders.results_of(folders.run_folder(runs, chosen[0]))
        columns = [text_column("case", 132), text_column("center", 140), text_column("set", 92, badge=True),
                   number_column("Dice", bold=True)]  # fmt: skip
        columns += [*structure_columns(results.structures), text_column("with lesion", 90), text_column("split", 90)]
        rows = case_rows(results.cases, results.structures)
        centers = sorted({row["center"] for row in rows})
        shown = [row for row in rows if not center or row["center"] == center]
        return columns, shown, centers, f"{len(shown):,} of {len(rows):,}, of {Path(chosen[0]).name}"

    clicks = [Input(key, "clickData") for key in ("centers", "detection", "funnel")]

    @app.callback(Output("tab", "value", allow_duplicate=True), Output("cases-center", "value"), *clicks,
                  Input("table", "cellClicked"), State("table", "rowData"), prevent_initial_call=True)  # fmt: skip
    def center_clicked(*given: Any) -> tuple[Any, Any]:
        clicked, rows = ctx.triggered[0]["value"] or {}, given[-1] or []
        if ctx.triggered_id == "table":
            center = next((row["center"] for row in rows if row["center"] + row["set"] == clicked.get("rowId")), None)
        else:
            center = next((point.get("customdata") for point in clicked.get("points", ())), None)
        return ("cases", center) if center else (no_update, no_update)

    @app.callback(Output("cases-table", "dashGridOptions"), Input("cases-filter", "value"), prevent_initial_call=True)
    def filtered(text: str | None) -> Patch:
        options = Patch()
        options["quickFilterText"] = text or ""
        return options

    @app.callback(Output("case", "data"), Output("tab", "value", allow_duplicate=True), Input("cases-table", "cellClicked"),
                  Input({"worst": ALL}, "n_clicks"), prevent_initial_call=True)  # fmt: skip
    def case_clicked(cell: dict[str, Any] | None, _: list[int]) -> tuple[Any, Any]:
        if not ctx.triggered or not ctx.triggered[0]["value"]:  # pictures that were put there, not clicked
            return no_update, no_update
        of_picture = isinstance(ctx.triggered_id, dict)
        return (ctx.triggered_id["worst"], "cases") if of_picture else (str((cell or {}).get("rowId", "")), no_update)


def _wire_viewer(app: Dash, runs: Path) -> None:
    sliders = [Output(f"at-{plane}", what) for plane in PLANES for what in ("max", "value")]

    @app.callback(Output("case-name", "children"), Output("case-facts", "children"), Output("planes", "hidden"),
                  Output("drawn", "children"), Output("shown", "data"), *sliders, Input("case", "data"),
                  State("runs", "value"), prevent_initial_call=True)  # fmt: skip
    def chosen_case(case: str | None, chosen: list[str]) -> tuple[Any, ...]:
        if not case or not chosen:
            return (no_update,) * (5 + 2 * len(PLANES))
        run = folders.run_folder(runs, chosen[0])
        facts = facts_of(folders.results_of(run), case)
        try:
            shape, focus = shape_of(runs, chosen[0], case), focus_of(runs, chosen[0], case)
        except UserError as error:
            why = html.Div(f"no slices here: {error}", className="soft")
            return case, facts, True, [why, _drawn(run, chosen[0], case)], None, *[no_update] * (2 * len(PLANES))
        kept = kept_of(run, case)
        picture = _drawn(run, chosen[0], case) if kept is None else None
        note = None if kept else html.Div("Its prediction was not kept; outlined is the reference.", className="soft")
        shown = {"case": case, "written": kept.path.stat().st_mtime_ns if kept else 0}
        return case, facts, False, [note, picture], shown, *(v for n, at in zip(shape, focus, strict=True) for v in (n - 1, at))

    for plane in PLANES:
        app.clientside_callback(
            SLICE % plane, Output(f"slice-{plane}", "src"), Input(f"at-{plane}", "value"), Input("window", "value"),
            Input("shown", "data"), State("runs", "value"), prevent_initial_call=True,
        )  # fmt: skip
        app.clientside_callback(
            "(at, most) => `${at + 1} / ${most + 1}`", Output(f"place-{plane}", "children"), Input(f"at-{plane}", "value"),
            Input(f"at-{plane}", "max"),
        )  # fmt: skip


def facts_of(results: folders.Results, case: str) -> str:
    """What is known of a case, in a line."""
    found = results.cases[results.cases["case"] == case] if len(results.cases) else results.cases
    if found.empty:
        return ""
    row = found.iloc[0]
    scores = [("mean", row["dsc"]), *((name.replace("_", " "), row[f"dsc/{name}"]) for name in outlined(results.structures))]
    parts = [str(row["center"]), *(f"Dice {name} {value:.2f}" for name, value in scores if not np.isnan(value))]
    return " · ".join(parts)


def _drawn(run: Path, name: str, case: str) -> Any:
    """The picture that was drawn of a case with its prediction, if there is one."""
    path = next((path for path in sorted(run.glob("*/*/worst/*.png")) if path.stem == case), None)
    if path is None:
        return html.Div("No picture with its prediction: it is not among the worst cases.", className="soft")
    return html.Img(src=f"/picture/{quote(name)}/{quote(str(path.relative_to(run)))}")
