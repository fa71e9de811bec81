"""What lies in run folders, read without writing and in bounded bytes. A damaged file becomes a note, never an error.

A folder that was copied without its checkpoints or its store reads the same.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pants_dist.dashboard.lines import Lines
from pants_dist.dashboard.metrics import MEAN, with_more
from pants_dist.errors import UserError
from pants_dist.report import center_table
from pants_dist.results import read_rows, structures_of
from pants_dist.tracking import read_summary

MOST_POINTS = 1_000  # of one curve that are sent to the page
MOST_PICTURES = 6
MOST_KEPT = 8  # runs whose curves stay in memory
OF_CENTERS = "val/center/"


@dataclass
class Curves:
    """Lines of one metrics.jsonl by step, the steps at which an attempt began anew, and what could not be read.

    `batch` is how many samples a step takes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    requeues: list[int] = field(default_factory=list)
    batch: int = 1
    notes: list[str] = field(default_factory=list)

    def groups(self) -> dict[str, list[str]]:
        """Every metric that was logged, by what stands before its first slash; those of single centers apart."""
        found: dict[str, list[str]] = {}
        for name in sorted({key for row in self.rows for key in row if "/" in key}):
            group = OF_CENTERS if name.startswith(OF_CENTERS) else name.partition("/")[0] + "/"
            found.setdefault(group, []).append(name)
        return found

    def series(self, metric: str, x: str = "step") -> tuple[list[float], list[float]]:
        """x and y of one metric, thinned to MOST_POINTS; `x` is "step", "samples" or "time" (hours since the first line)."""
        found = [row for row in self.rows if isinstance(row.get(metric), int | float)]
        return thinned([self._place(row, x) for row in found], [float(row[metric]) for row in found])

    def requeue_places(self, x: str = "step") -> list[float]:
        """Where the first line of each later attempt stands on the x axis."""
        steps = set(self.requeues)
        return [self._place(row, x) for row in self.rows if row["step"] in steps]

    def _place(self, row: dict[str, Any], x: str) -> float:
        if x == "time":
            return (row["time"] - self.rows[0]["time"]) / 3600
        return float(row["step"] * (self.batch if x == "samples" else 1))


KEPT: dict[str, tuple[Lines, Curves | None]] = {}  # by folder, what was not looked at for the longest time first
KEEPING = threading.Lock()


@dataclass
class Results:
    """Rows of the cases that a run was scored on, one row a center, and what could not be read; `source` says by what."""

    cases: pd.DataFrame = field(default_factory=pd.DataFrame)
    centers: pd.DataFrame = field(default_factory=pd.DataFrame)
    structures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str = ""


def run_names(runs: Path) -> list[str]:
    """Names of the runs in a folder, newest heartbeat first; "." where the folder itself is a run.

    Raises UserError where there is none.
    """
    if not runs.is_dir():
        raise UserError(f"dashboard {runs}: no such folder; give the folder of all runs, or that of one")
    if _is_run(runs):
        return ["."]
    found = [folder for folder in (*runs.glob("*/"), *runs.glob("*/*/")) if _is_run(folder)]
    if not found:
        raise UserError(f"dashboard {runs}: no run there; start one with pants-dist train")
    return [str(folder.relative_to(runs)) for folder in sorted(found, key=_last_written, reverse=True)]


def run_folder(runs: Path, name: str) -> Path:
    """The folder of a run. Raises UserError for a name that leads out of `runs`, also over a link."""
    folder = (runs / name).resolve()
    if not folder.is_relative_to(runs.resolve()):
        raise UserError(f"dashboard: {name!r} lies outside {runs}; only what is inside is shown")
    return folder


def summary_of(run: Path) -> tuple[dict[str, Any], str]:
    """summary.json and a note: "" or why there is none."""
    try:
        found = read_summary(run)
    except (OSError, ValueError) as error:
        return {}, f"summary.json cannot be read ({_first_line(error)})"
    return found, "" if found else "summary.json is not there"


def curves_of(run: Path) -> Curves:
    """The curves of a run, as far as they are written; to be looked at, not to be changed."""
    with KEEPING:
        lines, curves = KEPT.pop(str(run), (Lines(run / "metrics.jsonl"), None))
        try:
            if lines.refresh() or curves is None:
                curves = _curves_of(lines, batch_of(run))
        except OSError as error:
            return Curves(notes=[f"metrics.jsonl: {error.strerror}"])
        KEPT[str(run)] = lines, curves
        while len(KEPT) > MOST_KEPT:
            KEPT.pop(next(iter(KEPT)))
        return curves


def _curves_of(lines: Lines, batch: int) -> Curves:
    notes = []
    if not lines.whole:
        mb = lines.size / 2**20
        notes.append(f"metrics.jsonl: of {mb:,.0f} MB {lines.kept / 2**20:,.0f} are shown, spread evenly")
    if lines.damaged:
        notes.append(f"metrics.jsonl: {lines.damaged} lines cannot be read")
    return Curves(list(lines.rows), list(lines.requeues), batch, notes)


def batch_of(run: Path) -> int:
    """`train.batch` of a run; 1 where its settings cannot be read."""
    try:
        return int(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["train"]["batch"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return 1


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` points of a curve: the lowest and the highest of each of most / 2 equal parts, so that no spike goes."""
    if len(x) <= most:
        return list(x), list(y)
    kept: list[int] = []
    for part in range(most // 2):
        span = range(part * len(x) // (most // 2), (part + 1) * len(x) // (most // 2))
        kept += sorted({min(span, key=y.__getitem__), max(span, key=y.__getitem__)})
    return [x[n] for n in kept], [y[n] for n in kept]


def smoothed(y: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average with the bias of its start taken out (Kingma & Ba 2015, section 3); 0 leaves y as it is."""
    found, mean, share = [], 0.0, 0.0
    for value in y:
        mean, share = weight * mean + (1 - weight) * value, weight * share + (1 - weight)
        found.append(mean / share)
    return found


def results_of(run: Path) -> Results:
    """Rows of the evaluation, else of the last validation; empty where the run was not scored yet. To be looked at, not to
    be changed: they are kept until a table is written anew."""
    tables = sorted(run.glob("evaluation/*/cases.parquet")) or sorted(run.glob("validation/*/cases.parquet"))[-1:]
    try:
        return _results_of(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in tables))
    except OSError as error:
        return Results(notes=[f"{error.filename}: {error.strerror}"])


@lru_cache(maxsize=MOST_KEPT)
def _results_of(tables: tuple[tuple[Path, int, int], ...]) -> Results:
    results, parts = Results(source=" and ".join(path.parent.name for path, _, _ in tables)), []
    for path, _, _ in tables:
        try:
            parts.append(read_rows(path))
        except UserError as error:
            results.notes.append(str(error))
    if parts:
        cases = pd.concat(parts, ignore_index=True).drop_duplicates("case", keep="last")
        results.structures = structures_of(cases)
        mean = cases[[f"dsc/{name}" for name in results.structures]].mean(axis=1)
        results.cases = pd.concat([cases, mean.rename(MEAN)], axis=1)
        centers = center_table(results.cases, results.structures)
        results.centers = with_more(results.cases, centers, results.structures)
    return results


def pictures_of(run: Path, cases: pd.DataFrame) -> list[tuple[str, str, float]]:
    """(path inside the run, case, mean Dice) of the worst cases that were drawn, worst first."""
    paths = {path.stem: path for path in sorted(run.glob("*/*/worst/*.png"))}
    drawn = cases[cases["case"].isin(paths)].sort_values("dsc") if len(cases) else cases
    rows = drawn.head(MOST_PICTURES).to_dict("records")
    return [(str(paths[row["case"]].relative_to(run)), row["case"], row["dsc"]) for row in rows]


def picture_file(runs: Path, name: str) -> Path:
    """The PNG of a worst case by its path inside `runs`. Raises UserError for any other file, and for one outside."""
    path = run_folder(runs, name)
    if path.suffix != ".png" or path.parent.name != "worst" or not path.is_file():
        raise UserError(f"dashboard: {name!r} is no picture of a case")
    return path


def _is_run(folder: Path) -> bool:
    return (folder / "summary.json").is_file() or (folder / "metrics.jsonl").is_file()


def _last_written(folder: Path) -> float:
    times = [(folder / name).stat().st_mtime for name in ("summary.json", "metrics.jsonl") if (folder / name).is_file()]
    return max(times, default=0.0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
