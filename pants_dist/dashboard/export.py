"""The page as one file without a server: for a paper's supplement, or for a colleague."""

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import plotly.io as pio
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from pants_dist.dashboard import centerplots, folders, overview, plots
from pants_dist.dashboard.runs import Heartbeats, run_rows
from pants_dist.disk import replacing

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>pants-dist</title><style>
body{font:13px/1.5 Inter,system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1c2128;background:#f5f6f8;margin:0}
main{max-width:1240px;margin:0 auto;padding:20px}h1{font-size:19px;margin:28px 0 10px}h2{font-size:14px;margin:18px 0 8px}
h3{font-size:13px;margin:0}section{background:#fff;border:1px solid #e3e6ea;border-radius:8px;padding:12px 14px;overflow:auto}
.thirds{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:14px;margin-bottom:14px}p{color:#68707b;margin:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th{color:#68707b;font-weight:600}
td,th{padding:.3em .7em;border-bottom:1px solid #e3e6ea;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}img{width:100%;border-radius:6px;display:block}
</style><main>"""
LEFT_OUT = ("left_s",)  # what is for sorting alone


def export(runs: Path, out: Path) -> None:
    """Write all runs in a table, and curves, centers and worst cases of each, into one HTML file that loads nothing.

    Raises UserError where there is no run.
    """
    names = folders.run_names(runs)
    parts = [HEAD, f"<script>{get_plotlyjs()}</script>", "<h1>Runs</h1>"]
    lines = run_rows(runs, names, Heartbeats(runs))
    parts.append(_table({key: cell for key, cell in line.items() if key not in LEFT_OUT} for line in lines))
    for name in names:
        parts += _run_parts(folders.run_folder(runs, name))
    with replacing(out) as file:
        file.write("\n".join([*parts, "</main>"]).encode())


def _run_parts(run: Path) -> list[str]:
    curves, results = folders.curves_of(run), folders.results_of(run)
    parts = [f"<h1>{escape(run.name)}</h1>", *(f"<p>{escape(note)}</p>" for note in curves.notes + results.notes)]
    drawn = [
        (title, overview.SAID[key], plots.curves_figure({run.name: curves}, metrics, 0.6, "step", False, shade=shade))
        for key, (title, metrics, shade) in overview.CURVES.items()
    ]  # fmt: skip
    parts.append(_side_by_side(drawn))
    if results.centers.empty:
        return [*parts, "<p>Not scored yet.</p>"]
    centers, structures, mean = results.centers, results.structures, "dsc"
    figure = centerplots.centers_figure(results.cases, centers, structures, mean, mean, False)
    small = [
        centerplots.gap_figure(centers, structures, False), centerplots.detection_figure(centers, False),
        centerplots.funnel_figure(results.cases, centers, mean, False),
    ]  # fmt: skip
    described = [(title, note, one) for (_, title, note), one in zip(overview.SMALL, small, strict=True)]
    return [
        *parts, f"<h2>Centers, {escape(results.source)}</h2>", _section("", "", _html(figure)), "<br>",
        _side_by_side(described), _table(overview.center_rows(centers, structures)), *_worst(run, results),
    ]  # fmt: skip


def _worst(run: Path, results: folders.Results) -> list[str]:
    pictures = [
        _section(case, f"mean Dice {dice:.2f}",
                 f"<img src='data:image/png;base64,{b64encode((run / path).read_bytes()).decode()}' alt='{escape(case)}'>")
        for path, case, dice in folders.pictures_of(run, results.cases)
    ]  # fmt: skip
    return ["<h2>Worst cases: reference green, prediction orange</h2>", f"<div class=thirds>{''.join(pictures)}</div>"]


def _side_by_side(figures: Iterable[tuple[str, str, Figure]]) -> str:
    return f"<div class=thirds>{''.join(_section(title, note, _html(figure)) for title, note, figure in figures)}</div>"


def _section(title: str, note: str, content: str) -> str:
    head = f"<h3>{escape(title)}</h3><p>{escape(note)}</p>" if title else ""
    return f"<section>{head}{content}</section>"


def _table(rows: Iterable[dict[str, Any]]) -> str:
    lines = list(rows)
    body = ["".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in line.values()) for line in lines]
    head = "".join(f"<th>{escape(name)}</th>" for name in lines[0])
    return _section("", "", "<table>" + "".join(f"<tr>{line}</tr>" for line in [head, *body]) + "</table>")


def _html(figure: Figure) -> str:
    return pio.to_html(figure, full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
