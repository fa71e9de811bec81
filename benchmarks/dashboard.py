"""How the dashboard opens many runs: 200 of 2,000 lines, and one of 100,000, in real run folders on this disk.

    python benchmarks/dashboard.py [--folder DIR]

prints seconds, bytes read from metrics.jsonl (as the kernel counts them for this process) and what the page is sent, and
fails where a bound does not hold: the table of runs reads summaries alone, a curve reads at most 16 MB, 1,000 points a
curve are sent, and what has come since the last look is all that is read the next time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pants_dist.dashboard import folders, lines
from pants_dist.dashboard.plots import curves_figure
from pants_dist.dashboard.runs import Heartbeats, run_rows

RUNS, SHORT, LONG = 200, 2_000, 100_000
METRICS = 36  # a line of a run on several nodes has about as many


def write_run(run: Path, count: int) -> None:
    """A run folder whose metrics.jsonl has so many lines, with three requeues."""
    run.mkdir(parents=True)
    names = ["train/loss", "train/samples_per_s", "loader/wait_fraction", *(f"loader/metric_{n}" for n in range(METRICS - 3))]
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(count):
            row: dict[str, Any] = {"step": step, "attempt": 1 + 4 * step // count, "time": float(step), "host": "node1"}
            row |= {name: (step * 7919 + n) % 1000 / 997 for n, name in enumerate(names)}
            file.write(json.dumps(row) + "\n")
    summary = {"state": "finished", "step": count, "steps": count, "attempt": 4, "heartbeat": 0.0, "metrics": {"val/dsc": 0.8}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text("train: {batch: 2}\n")


def measured(what: str, work: Callable[[], Any]) -> tuple[Any, int]:
    """Result of the work and bytes read meanwhile; prints them."""
    process = psutil.Process()
    begun, before = time.perf_counter(), process.io_counters().read_chars
    found = work()
    read = process.io_counters().read_chars - before
    print(f"{what}: {time.perf_counter() - begun:.2f} s, {read / 2**20:.2f} MB read", flush=True)
    return found, read


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write the runs (default: a temporary folder)")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        runs = Path(folder)
        for number in range(RUNS):
            write_run(runs / f"short{number:03d}", SHORT)
        write_run(runs / "long", LONG)
        names, beats = folders.run_names(runs), Heartbeats(runs)
        sizes = {name: (runs / name / "metrics.jsonl").stat().st_size / 2**20 for name in ("short000", "long")}
        print(f"{RUNS} runs of {SHORT:,} lines ({sizes['short000']:.1f} MB each), one of {LONG:,} ({sizes['long']:.0f} MB)")
        rows, read = measured(f"table of {len(names)} runs", lambda: run_rows(runs, names, beats))
        assert len(rows) == RUNS + 1 and read < 2**21
        curves, read = measured("curves of the long run", lambda: folders.curves_of(runs / "long"))
        assert read < lines.MOST_BYTES + 2**20 and curves.rows[0]["step"] < curves.rows[-1]["step"] == LONG - 1
        x, y = curves.series("train/loss")
        figure = curves_figure({"long": curves}, ("train/loss",), 0.6, "step", False)
        print(f"one of its curves: {len(x):,} points, {len(figure.to_json()) / 1024:.0f} KB of JSON for the page")
        assert len(x) == len(y) <= folders.MOST_POINTS
        with open(runs / "long" / "metrics.jsonl", "a") as file:
            file.write(json.dumps(curves.rows[-1] | {"step": LONG}) + "\n")
        curves, read = measured("the same with one more line", lambda: folders.curves_of(runs / "long"))
        assert read < 2**17 and curves.rows[-1]["step"] == LONG
        chosen = names[:6]
        _, read = measured("curves of six runs", lambda: [folders.curves_of(folders.run_folder(runs, name)) for name in chosen])
        assert read < 6 * (lines.MOST_BYTES + 2**20)


if __name__ == "__main__":
    main()
