"""Cases of a run: a table, and for the one that is clicked three slices from the store, or the picture that was drawn of it."""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import dash_ag_grid as dag
import dash_mantine_components as dmc
import pandas as pd
from dash import Dash, Input, Output, State, ctx, html, no_update

from pants_dist.dashboard import folders
from pants_dist.dashboard.slices import OUTLINED, PLANES, WINDOWS_HU, shape_of
from pants_dist.errors import UserError


def case_rows(cases: pd.DataFrame, structures: list[str]) -> list[dict[str, Any]]:
    """Rows of the table, the lowest mean Dice first; None where there is no value."""
    if cases.empty:
        return []
    rows = []
    for case in cases.sort_values(["dsc", "case"]).to_dict("records"):
        set_ = "" if case["seen"] is None or case["seen"] != case["seen"] else "seen" if case["seen"] else "held-out"
        row = {"case": case["case"], "center": case["center"], "set": set_, "split": case.get("split", "")}
        values = {"Dice": case["dsc"]} | {name: case[f"dsc/{name}"] for name in structures}
        row |= {name: None if value != value else round(float(value), 3) for name, value in values.items()}
        lesion = case.get("lesion_present")
        rows.append(row | {"lesion": None if lesion is None or lesion != lesion else "yes" if lesion else "no"})
    return rows


def layout() -> html.Div:
    """The tab, empty."""
    head = dmc.Group(justify="space-between", mb="xs", children=[
        dmc.Text("Cases of the first run ticked; click one", fw=600, size="sm"),
        dmc.TextInput(id="cases-filter", placeholder="filter: a center, a case", size="xs"),
    ])  # fmt: skip
    grid = dag.AgGrid(id="cases-table", columnDefs=[], rowData=[], columnSize="responsiveSizeToFit",
                      getRowId="params.data.case", dashGridOptions={"enableCellTextSelection": True},
                      style={"height": 640})  # fmt: skip
    window = dmc.SegmentedControl(id="window", data=list(WINDOWS_HU), value=next(iter(WINDOWS_HU)), size="xs")
    legend = [dmc.Text(f"○ {name}", size="xs", c=color) for name, color in OUTLINED.items()]
    planes = [
        html.Div([
            html.Img(id=f"slice-{plane}", className="slice", style={"width": "100%"}),
            dmc.Slider(id=f"at-{plane}", min=0, max=1, value=0, size="sm", updatemode="drag"),
            dmc.Text(plane, size="xs", c="dimmed"),
        ]) for plane in PLANES
    ]  # fmt: skip
    viewer = dmc.Card([
        dmc.Group([dmc.Text("no case chosen", fw=600, size="sm", id="case-name"), *legend]), window,
        dmc.Text("Wheel or slider: other slices. Outlined is the reference.", size="xs", c="dimmed"),
        dmc.SimpleGrid(planes, cols=2, id="planes"), html.Div(id="drawn"),
    ], withBorder=True)  # fmt: skip
    return html.Div(dmc.Grid([
        dmc.GridCol(dmc.Card([head, html.Div(grid, id="cases-theme")], withBorder=True), span=6),
        dmc.GridCol(viewer, span=6),
    ]))  # fmt: skip


def wire(app: Dash, runs: Path) -> None:
    """Fill the table; a click on a center leads here, a click on a case shows it."""

    @app.callback(Output("cases-table", "columnDefs"), Output("cases-table", "rowData"), Input("version", "data"),
                  Input("tab", "value"), State("runs", "value"))  # fmt: skip
    def listed(_: Any, tab: str, chosen: list[str]) -> tuple[Any, Any]:
        if tab != "cases" or not chosen:
            return no_update, no_update
        results = folders.results_of(folders.run_folder(runs, chosen[0]))
        names = ["case", "center", "set", "split", "Dice", *results.structures, "lesion"]
        wide = {"case": 150, "center": 150}
        columns = [{"field": name, "sortable": True, "filter": True, "minWidth": wide.get(name, 70)} for name in names]
        return columns, case_rows(results.cases, results.structures)

    @app.callback(Output("tab", "value"), Output("cases-filter", "value"), Input("centers", "clickData"),
                  Input("table", "cellClicked"), State("table", "rowData"), prevent_initial_call=True)  # fmt: skip
    def center_clicked(dot: Any, cell: Any, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
        if ctx.triggered_id == "centers":
            center = dot["points"][0].get("customdata")
        else:
            center = next((row["center"] for row in rows if row["center"] + row["set"] == (cell or {}).get("rowId")), None)
        return ("cases", center) if center else (no_update, no_update)

    @app.callback(Output("cases-table", "dashGridOptions"), Input("cases-filter", "value"))
    def filtered(text: str | None) -> dict[str, Any]:
        return {"quickFilterText": text or ""}

    sliders = [Output(f"at-{plane}", what) for plane in PLANES for what in ("max", "value")]

    @app.callback(Output("case-name", "children"), Output("planes", "style"), Output("drawn", "children"), *sliders,
                  Input("cases-table", "cellClicked"), State("runs", "value"), prevent_initial_call=True)  # fmt: skip
    def chosen_case(cell: dict[str, Any] | None, chosen: list[str]) -> tuple[Any, ...]:
        case = str((cell or {}).get("rowId", ""))
        drawn = _drawn(runs, chosen[0], case)
        try:
            shape = shape_of(runs, chosen[0], case)
        except UserError as error:
            note = dmc.Text(f"no slices: {error}", size="xs", c="dimmed")
            return case, {"display": "none"}, [note, drawn], *[no_update] * (2 * len(PLANES))
        return case, {}, drawn, *(value for count in shape for value in (count - 1, count // 2))

    for plane in PLANES:

        @app.callback(Output(f"slice-{plane}", "src"), Input(f"at-{plane}", "value"), Input("window", "value"),
                      Input("case-name", "children"), State("runs", "value"), prevent_initial_call=True)  # fmt: skip
        def shown(index: int, window: str, case: str, chosen: list[str], plane: str = plane) -> str:
            asked = {"case": case, "plane": plane, "index": index, "window": window}
            return f"/slice/{quote(chosen[0])}?{urlencode(asked)}"

    @app.callback(Output("cases-theme", "data-ag-theme-mode"), Input("dark", "checked"))
    def themed(dark: bool | None) -> str:
        return "dark" if dark else "light"


def _drawn(runs: Path, name: str, case: str) -> Any:
    """The picture that was drawn of a case with its prediction, if there is one."""
    run = folders.run_folder(runs, name)
    path = next((path for path in sorted(run.glob("*/*/worst/*.png")) if path.stem == case), None)
    if path is None:
        return dmc.Text("No picture with its prediction: it is not among the worst cases.", size="xs", c="dimmed")
    return html.Img(src=f"/picture/{quote(name)}/{quote(str(path.relative_to(run)))}", style={"width": "60%"})
