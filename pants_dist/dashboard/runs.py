"""All runs in one table, from their summaries alone: what is ticked there is compared on the other tab."""

import time
from itertools import cycle
from pathlib import Path
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Dash, Input, Output, Patch, State, html, no_update

from pants_dist.dashboard import folders
from pants_dist.dashboard.grids import AS_WIDE_AS_THE_CARD, THEMED, number_column, text_column
from pants_dist.dashboard.look import RUN_COLORS
from pants_dist.disk import on_network
from pants_dist.errors import UserError

STALE_S, STALE_ON_NETWORK_S = 60.0, 180.0  # without a new heartbeat; a network disk shows files late
COLUMNS = [
    {"field": "shown", "headerName": "", "width": 40, "pinned": "left", "cellRenderer": "Tick", "sortable": False},
    text_column("run", 190) | {"pinned": "left"}, text_column("state", 156) | {"cellClassRules": {
        "running": "params.value == 'running'", "silent": "params.value && params.value.includes('silent')",
        "failed": "params.value && (params.value.includes('failed') || params.value.includes('summary'))"}},
    number_column("step", 0), number_column("steps", 0, heading="of"), number_column("rate", 1, heading="samples/s"),
    text_column("left", 92, right=True) | {"comparator": {"function": "nodeA.data.left_s - nodeB.data.left_s"}},
    number_column("requeues", 0), number_column("seen", heading="Dice, seen"),
    number_column("held_out", heading="Dice, held-out"), number_column("gap", 1, heading="gap, points"),
    number_column("wait", 1, heading="wait, %"), text_column("worst", AS_WIDE_AS_THE_CARD, heading="worst center"),
]  # fmt: skip


class Heartbeats:
    """How long ago each run's heartbeat was last seen to change, by the reader's own clock: clocks of nodes differ."""

    def __init__(self, runs: Path) -> None:
        self.seen: dict[str, tuple[Any, float]] = {}
        self.patience_s = STALE_ON_NETWORK_S if on_network(runs) else STALE_S

    def age_s(self, run: str, heartbeat: Any, written: float) -> float:
        """Seconds since the change; on the first look since the file was written."""
        before = self.seen.get(run)
        if before is None or before[0] != heartbeat:
            self.seen[run] = (heartbeat, time.time() if before else min(written, time.time()))
        return time.time() - self.seen[run][1]

    def state_of(self, run: str, folder: Path, summary: dict[str, Any]) -> tuple[str, bool]:
        """What a run is at, in words, and whether it says that it runs but is silent."""
        age = self.age_s(run, summary.get("heartbeat"), (folder / "summary.json").stat().st_mtime)
        state = str(summary.get("state", "unknown"))
        stale = state == "running" and age > self.patience_s
        return (f"running, silent for {age:,.0f} s" if stale else state), stale


def in_words(seconds: float) -> str:
    """A time as people say it: 12 s, 4 min, 3 h 10 min, 2 d 4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def seconds_left(folder: Path, summary: dict[str, Any]) -> float | None:
    """How long a running run still takes at its last rate; None for others, and where that is not known."""
    rate = summary.get("metrics", {}).get("train/samples_per_s")
    if summary.get("state") != "running" or not rate:
        return None
    return (summary.get("steps", 0) - summary.get("step", 0)) * folders.batch_of(folder) / rate


def run_row(name: str, state: str, summary: dict[str, Any], left_s: float | None) -> dict[str, Any]:
    """A line of the table, from a run's summary.json. Dice and gap are those of its last validation."""
    metrics = {key: value for key, value in summary.get("metrics", {}).items() if isinstance(value, int | float)}
    seen, held_out, wait = (metrics.get(key) for key in ("val/dsc", "val_ood/dsc", "loader/wait_fraction"))
    of_centers = [key for key in metrics if key.startswith(folders.OF_CENTERS)]
    centers = {key.removeprefix(folders.OF_CENTERS).removesuffix("/dsc"): metrics[key] for key in of_centers}
    worst = min(centers, key=centers.__getitem__) if centers else None
    row = {
        "run": name, "state": state, "step": summary.get("step", 0), "steps": summary.get("steps", 0),
        "rate": metrics.get("train/samples_per_s"), "left": None if left_s is None else in_words(left_s), "left_s": left_s,
        "requeues": int(summary.get("attempt", 1)) - 1, "seen": seen, "held_out": held_out,
        "gap": 100 * (seen - held_out) if seen is not None and held_out is not None else None,
        "worst": f"{worst} {centers[worst]:.3f}" if worst else None, "wait": None if wait is None else 100 * wait,
    }  # fmt: skip
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def run_rows(runs: Path, names: list[str], beats: Heartbeats) -> list[dict[str, Any]]:
    """A line a run; of one whose summary cannot be read the state says why."""
    rows = []
    for name in names:
        try:
            folder = folders.run_folder(runs, name)
            summary, note = folders.summary_of(folder)
            state = note or beats.state_of(name, folder, summary)[0]
            left_s = seconds_left(folder, summary)
        except (OSError, UserError) as error:
            summary, state, left_s = {}, f"gone ({type(error).__name__})", None
        rows.append(run_row(name, state, summary, left_s))
    return rows


def layout() -> html.Div:
    """The tab, empty."""
    filter_ = dmc.TextInput(id="runs-filter", placeholder="filter: name, state", size="xs", w=200)
    head = html.Div([html.Div([html.B("Runs"), html.Div("tick those to compare; a heading sorts", className="soft")]), filter_],
                    className="card-head")  # fmt: skip
    grid = dag.AgGrid(
        id="runs-table", columnDefs=COLUMNS, rowData=[], getRowId="params.data.run",
        dashGridOptions=THEMED,
        style={"height": "calc(100vh - 190px)", "minHeight": 300},
    )  # fmt: skip
    return html.Div([head, grid], className="card")


def wire(app: Dash, runs: Path, beats: Heartbeats) -> None:
    """Fill the table while it is looked at; what is ticked in it is ticked on the left, and the other way round."""

    @app.callback(Output("runs-table", "rowData"), Input("poll", "n_intervals"), Input("tab", "value"), Input("names", "data"),
                  Input("runs", "value"))  # fmt: skip
    def listed(_: int | None, tab: str, names: list[str], chosen: list[str]) -> Any:
        if tab != "runs":
            return no_update
        colors = dict(zip(chosen, cycle(RUN_COLORS), strict=False))
        return [row | {"shown": colors.get(row["run"], "")} for row in run_rows(runs, names, beats)]

    @app.callback(Output("runs-table", "dashGridOptions"), Input("runs-filter", "value"), prevent_initial_call=True)
    def filtered(text: str) -> Patch:
        options = Patch()
        options["quickFilterText"] = text
        return options

    @app.callback(Output("runs", "value"), Input("runs-table", "cellClicked"), State("runs", "value"),
                  prevent_initial_call=True)  # fmt: skip
    def ticked(cell: dict[str, Any] | None, before: list[str]) -> Any:
        """The grid's own boxes would lose a tick at every new row: these are cells."""
        if not cell or cell.get("colId") not in ("shown", "run"):
            return no_update
        name = str(cell["rowId"])
        return [one for one in before if one != name] if name in before else [*before, name]
