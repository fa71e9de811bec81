"""Every metric that was logged, group by group, as small figures; those of all runs ticked are laid over one another."""

import re
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update

from pants_dist.dashboard import folders, plots
from pants_dist.dashboard.overview import PLAIN, card

PER_SHEET = 12  # figures; more of them make a browser slow


def layout() -> html.Div:
    """The tab, empty."""
    head = html.Div([html.Div([html.B(id="group-name"), html.Code(id="group-count")]),
                     dmc.Pagination(id="sheet", total=1, value=1, size="xs")], className="section")  # fmt: skip
    return html.Div([head, html.Div(id="group-curves", className="thirds")])


def matching(names: list[str], wanted: str) -> list[str]:
    """Those that a regular expression is found in; what is none is looked for as it stands."""
    try:
        pattern = re.compile(wanted)
    except re.error:
        pattern = re.compile(re.escape(wanted))
    return [name for name in names if pattern.search(name)]


def groups_of(runs: Path, chosen: list[str], wanted: str) -> dict[str, list[str]]:
    """Metrics by group, of all these runs, that match."""
    found: dict[str, set[str]] = {}
    for name in chosen:
        for group, names in folders.curves_of(folders.run_folder(runs, name)).groups().items():
            found.setdefault(group, set()).update(matching(names, wanted))
    return {group: sorted(names) for group, names in sorted(found.items()) if names}


def wire(app: Dash, runs: Path) -> None:
    """List the groups on the left, and draw the one that is chosen."""

    @app.callback(Output("groups", "children"), Input("version", "data"), Input("metric-filter", "value"),
                  Input("group", "data"), State("runs", "value"))  # fmt: skip
    def listed(_: Any, wanted: str | None, group: str | None, chosen: list[str]) -> list[html.Button]:
        return [
            html.Button([html.Span(name), html.Span(len(names), className="soft")], id={"group": name}, n_clicks=0,
                        className="on" if name == group else "")
            for name, names in groups_of(runs, chosen, wanted or "").items()
        ]  # fmt: skip

    @app.callback(Output("group", "data"), Output("tab", "value", allow_duplicate=True), Input({"group": ALL}, "n_clicks"),
                  prevent_initial_call=True)  # fmt: skip
    def opened(_: list[int]) -> tuple[Any, Any]:
        clicked = ctx.triggered_id if ctx.triggered and ctx.triggered[0]["value"] else None
        return (clicked["group"], "curves") if clicked else (no_update, no_update)

    @app.callback(Output("group-name", "children"), Output("group-count", "children"), Output("sheet", "total"),
                  Output("sheet", "value"), Output("group-curves", "children"), Input("tab", "value"), Input("group", "data"),
                  Input("sheet", "value"), Input("metric-filter", "value"), Input("version", "data"),
                  Input("smoothing", "value"), Input("x", "value"), Input("log", "checked"), Input("dark", "checked"),
                  State("runs", "value"))  # fmt: skip
    def drawn(
        tab: str, group: str | None, sheet: int, wanted: str | None, _: Any, smoothing: float, x: str, log: bool | None,
        dark: bool | None, chosen: list[str],
    ) -> tuple[Any, ...]:  # fmt: skip
        if tab != "curves":
            return (no_update,) * 5
        groups = groups_of(runs, chosen, wanted or "")
        group = next((name for name in (group, "train/", *groups) if name in groups), "nothing logged")
        names = groups.get(group, [])
        sheets = max(1, -(-len(names) // PER_SHEET))
        sheet = min(sheet, sheets) if ctx.triggered_id != "group" else 1
        found = {name: folders.curves_of(folders.run_folder(runs, name)) for name in chosen}
        shown = names[PER_SHEET * (sheet - 1) : PER_SHEET * sheet]
        figures = [plots.curves_figure(found, (name,), smoothing, x, bool(dark), bool(log)) for name in shown]
        graphs = [dcc.Graph(figure=figure, config=PLAIN, style={"height": 220}) for figure in figures]
        cards = [card(name, "", graph) for name, graph in zip(shown, graphs, strict=True)]
        return group, f"{len(names)} metrics", sheets, sheet, cards
