"""All runs in one table, from their summaries alone: what is ticked there is compared on the other tab."""

import time
from pathlib import Path
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html, no_update

from pants_dist.dashboard import folders
from pants_dist.disk import on_network
from pants_dist.errors import UserError

STALE_S, STALE_ON_NETWORK_S = 60.0, 180.0  # without a new heartbeat; a network disk shows files late
COLUMNS = {  # field -> heading
    "run": "run", "state": "state", "step": "step", "steps": "of", "rate": "samples/s", "left_h": "hours left",
    "requeues": "requeues", "seen": "Dice, seen", "held_out": "Dice, held-out", "gap": "gap, points",
    "worst": "worst center", "wait": "wait, %",
}  # fmt: skip


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


def run_row(name: str, state: str, summary: dict[str, Any]) -> dict[str, Any]:
    """A line of the table, from a run's summary.json. Dice and gap are those of its last validation."""
    metrics = {key: value for key, value in summary.get("metrics", {}).items() if isinstance(value, int | float)}
    step, steps, rate = summary.get("step", 0), summary.get("steps", 0), metrics.get("train/samples_per_s")
    seen, held_out = metrics.get("val/dsc"), metrics.get("val_ood/dsc")
    of_centers = [key for key in metrics if key.startswith("val/center/")]
    centers = {key.removeprefix("val/center/").removesuffix("/dsc"): metrics[key] for key in of_centers}
    worst = min(centers, key=centers.__getitem__) if centers else None
    row = {
        "run": name, "state": state, "step": step, "steps": steps, "rate": rate, "left_h": summary.get("left_h"),
        "requeues": int(summary.get("attempt", 1)) - 1, "seen": seen, "held_out": held_out,
        "gap": 100 * (seen - held_out) if seen is not None and held_out is not None else None,
        "worst": f"{worst} {centers[worst]:.3f}" if worst else None, "wait": _percent(metrics.get("loader/wait_fraction")),
    }  # fmt: skip
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def run_rows(runs: Path, names: list[str], beats: Heartbeats) -> list[dict[str, Any]]:
    """A line a run; of one whose summary cannot be read the state says why."""
    rows = []
    for name in names:
        try:
            folder = folders.run_folder(runs, name)
            summary, note = folders.summary_of(folder)
            state = note or beats.state_of(name, folder, summary)[0]
        except (OSError, UserError) as error:
            summary, state = {}, f"gone ({type(error).__name__})"
        batch = folders.batch_of(folder) if summary.get("state") == "running" else 0
        if batch and (rate := summary.get("metrics", {}).get("train/samples_per_s")):
            summary["left_h"] = (summary.get("steps", 0) - summary.get("step", 0)) * batch / rate / 3600
        rows.append(run_row(name, state, summary))
    return rows


def layout() -> dmc.Card:
    """The tab, empty."""
    head = dmc.Group(justify="space-between", mb="xs", children=[
        dmc.Text("Tick the runs to compare", fw=600, size="sm"),
        dmc.TextInput(id="runs-filter", placeholder="filter", size="xs"),
    ])  # fmt: skip
    columns = [
        {"field": key, "headerName": heading, "sortable": True, "filter": True, "minWidth": 220 if key == "run" else 90}
        for key, heading in COLUMNS.items()
    ]  # fmt: skip
    columns[0] |= {"pinned": "left"}
    grid = dag.AgGrid(
        id="runs-table", columnDefs=columns, rowData=[], columnSize="responsiveSizeToFit", getRowId="params.data.run",
        dashGridOptions={"rowSelection": {"mode": "multiRow"}, "enableCellTextSelection": True}, style={"height": 640},
    )  # fmt: skip
    return dmc.Card([head, html.Div(grid, id="runs-theme")], withBorder=True)


def wire(app: Dash, runs: Path, beats: Heartbeats) -> None:
    """Fill the table while it is looked at, and tick what is ticked in it."""

    @app.callback(Output("runs-table", "rowData"), Input("poll", "n_intervals"), Input("tab", "value"))
    def listed(_: int | None, tab: str) -> Any:
        return run_rows(runs, folders.run_names(runs), beats) if tab == "runs" else no_update

    @app.callback(Output("runs-table", "dashGridOptions"), Input("runs-filter", "value"), prevent_initial_call=True)
    def filtered(text: str) -> dict[str, Any]:
        return {"quickFilterText": text}

    @app.callback(Output("runs", "value"), Input("runs-table", "selectedRows"), State("runs", "value"),
                  prevent_initial_call=True)  # fmt: skip
    def ticked(rows: list[dict[str, Any]] | None, before: list[str]) -> Any:
        names = [row["run"] for row in rows or ()]
        return names if names and set(names) != set(before) else no_update

    @app.callback(Output("runs-theme", "data-ag-theme-mode"), Input("dark", "checked"))
    def themed(dark: bool | None) -> str:
        return "dark" if dark else "light"
