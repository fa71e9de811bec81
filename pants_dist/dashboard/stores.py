"""A store while it is made: how far its conversion is, and what was refused; and the user's jobs in SLURM's queue."""

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
import yaml
from dash import Dash, Input, Output, State, html, no_update

from conversion.journal import JOURNAL, planned, quarantined
from pants_dist import queue
from pants_dist.dashboard import folders
from pants_dist.dashboard.grids import AS_WIDE_AS_THE_CARD, THEMED, text_column
from pants_dist.dashboard.overview import card
from pants_dist.errors import UserError

RECENT_S = 600.0  # over which the rate is taken
QUEUE_EVERY_S = 30.0  # between questions to SLURM, however many pages ask
REFUSED = ("case", "reason", "path")
MOST_REFUSED = 2_000  # lines that are sent to the page


@dataclass(frozen=True)
class Making:
    """How far a store is: cases on the disk and in all (None: not known), bytes, cases an hour, whether it is whole.

    `refused` has a row a case in quarantine; `note` says what cannot be read.
    """

    cases: int = 0
    total: int | None = None
    bytes: int = 0
    per_hour: float = 0.0
    whole: bool = False
    refused: list[dict[str, str]] = field(default_factory=list)
    note: str = ""

    def in_words(self) -> str:
        """One line."""
        if self.note:
            return self.note
        size = f"{self.bytes / 1e9:,.2f} GB, {len(self.refused):,} in quarantine"
        if self.whole:
            return f"whole: {self.cases:,} cases, {size}"
        of = f" of {self.total:,}" if self.total else ""
        left = (self.total or 0) - self.cases - len(self.refused)
        pace = f", {self.per_hour:,.0f} cases an hour" if self.per_hour else ", no case for a while"
        hours = f", {left / self.per_hour:.1f} hours left" if self.per_hour and left > 0 else ""
        return f"being made: {self.cases:,}{of} cases, {size}{pace}{hours}"


def making_of(store: Path, now: float | None = None) -> Making:
    """What the disk says of a store; of one that is being made, gone or damaged as well."""
    try:
        with os.scandir(store / "cases") as entries:
            files = [entry.stat() for entry in entries if entry.name.endswith(".ozx")]
        recent = sum(file.st_mtime > (now or time.time()) - RECENT_S for file in files)
        refused = [{name: str(line.get(name, "")) for name in REFUSED} for line in quarantined(store).values()]
        whole = (store / "manifest.parquet").is_file()
        total = planned(store) if (store / JOURNAL).is_dir() else None
        return Making(len(files), total, sum(file.st_size for file in files), recent * 3600 / RECENT_S, whole, refused)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Making(note=f"cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})")


def stores_of(runs: Path, chosen: list[str], store: Path | None) -> list[Path]:
    """The store that was named, and those that these runs read."""
    found = [store.absolute()] if store else []
    for name in chosen:
        try:
            text = (folders.run_folder(runs, name) / "config.yaml").read_text(encoding="utf-8")
            found.append(Path(yaml.safe_load(text)["data"]["store"]))
        except (OSError, ValueError, KeyError, TypeError, UserError, yaml.YAMLError):
            continue
    return list(dict.fromkeys(found))


class Queue:
    """The user's jobs, asked of SLURM every half minute at most."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")
        self._said: tuple[list[dict[str, str]], str] = [], ""
        self._lock = threading.Lock()

    def jobs(self) -> tuple[list[dict[str, str]], str]:
        """A row a job, and a note: "" or why there are none."""
        with self._lock:
            if time.monotonic() - self._asked_at > QUEUE_EVERY_S:
                try:
                    jobs = queue.mine()
                    self._said = jobs, "" if jobs else "No job of yours is in the queue."
                except UserError as error:
                    self._said = [], str(error)
                self._asked_at = time.monotonic()
            return self._said


def layout() -> dmc.Stack:
    """The tab, empty."""
    jobs = html.Div([html.Div(id="queue-note", className="soft"), _grid("queue", queue.COLUMNS, "job")])
    return dmc.Stack(gap=14, children=[
        card("Stores", "that the runs ticked read, and that the command named", html.Div(id="makings")),
        card("Quarantine", "cases that a conversion refused", _grid("refused", REFUSED, "case")),
        card("Your jobs in SLURM", "asked every half minute at most", jobs),
    ])  # fmt: skip


def _grid(name: str, columns: tuple[str, ...], key: str) -> dag.AgGrid:
    widths = {"reason": AS_WIDE_AS_THE_CARD, "case": 180, "path": 320, "name": 180, "where": 200}
    definitions = [text_column(column, widths.get(column, 100)) for column in columns]
    return dag.AgGrid(
        id=f"{name}-table", columnDefs=definitions, rowData=[], getRowId=f"params.data.{key}", dashGridOptions=THEMED,
        style={"height": 260},
    )  # fmt: skip


def making_box(store: Path, making: Making) -> html.Div:
    """A store's line, with a bar where it is known how much there is to do."""
    bar = []
    if making.total and not making.whole:
        bar = [dmc.Progress(value=100 * (making.cases + len(making.refused)) / making.total, my=6)]
    return html.Div([html.B(str(store)), html.Div(making.in_words()), *bar], style={"marginTop": 6})


def wire(app: Dash, runs: Path, store: Path | None) -> None:
    """Fill the tab while it is looked at."""
    jobs = Queue()

    @app.callback(Output("makings", "children"), Output("refused-table", "rowData"), Output("queue-table", "rowData"),
                  Output("queue-note", "children"), Input("poll", "n_intervals"), Input("tab", "value"),
                  State("runs", "value"))  # fmt: skip
    def listed(_: int | None, tab: str, chosen: list[str]) -> tuple[Any, ...]:
        if tab != "stores":
            return (no_update,) * 4
        found = {path: making_of(path) for path in stores_of(runs, chosen, store)}
        boxes = [making_box(path, making) for path, making in found.items()]
        refused = [row for making in found.values() for row in making.refused]
        nothing = html.Div("No store is known; name one: pants-dist dashboard RUNS --store STORE", className="soft")
        return boxes or nothing, refused[:MOST_REFUSED], *jobs.jobs()
