"""The page as one file without a server: for a paper's supplement, or for a colleague."""

from html import escape
from pathlib import Path

import plotly.io as pio
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from pants_dist.dashboard import centerplots, folders, overview, plots
from pants_dist.disk import replacing

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>pants-dist</title><style>
body{font:14px system-ui,sans-serif;color:#1f2937;max-width:1200px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #e5e7eb;text-align:right}
td:first-child,th:first-child{text-align:left}</style>"""


def export(runs: Path, out: Path) -> None:
    """Write curves, centers and tables of every run in `runs` into one HTML file that loads nothing. Raises UserError."""
    parts = [HEAD, f"<script>{get_plotlyjs()}</script>"]
    for name in folders.run_names(runs):
        parts += _run_parts(folders.run_folder(runs, name))
    with replacing(out) as file:
        file.write("\n".join(parts).encode())


def _run_parts(run: Path) -> list[str]:
    curves, results = folders.curves_of(run), folders.results_of(run)
    parts = [f"<h1>{escape(run.name)}</h1>", *(f"<p>{escape(note)}</p>" for note in curves.notes + results.notes)]
    for title, metrics, shade in overview.CURVES.values():
        figure = plots.curves_figure({run.name: curves}, metrics, 0.6, "step", False, shade=shade)
        parts += [f"<h3>{escape(title)}</h3>", _html(figure)]
    if results.centers.empty:
        return [*parts, "<p>Not scored yet.</p>"]
    centers, structures = results.centers, results.structures
    parts += [
        "<h2>Centers</h2>", _html(centerplots.centers_figure(results.cases, centers, structures, "dsc", "dsc", False)),
        "<h3>Seen and held-out, by structure</h3>", _html(centerplots.gap_figure(centers, structures, False)),
        "<h3>Sensitivity and specificity by center</h3>", _html(centerplots.detection_figure(centers, False)),
        "<h3>Low score or small center?</h3>", _html(centerplots.funnel_figure(results.cases, centers, "dsc", False)),
    ]  # fmt: skip
    rows = overview.center_rows(centers, structures)
    lines = ["".join(f"<th>{escape(name)}</th>" for name in rows[0])]
    lines += ["".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in row.values()) for row in rows]
    return [*parts, "<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"]


def _html(figure: Figure) -> str:
    return pio.to_html(figure, full_html=False, include_plotlyjs=False)
