"""The verbs of runs: demo, bench, train, predict, evaluate, report, dashboard, sync. What is heavy is imported by its verb."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pants_dist.errors import UserError
from pants_dist.parser import Given, Parser, add_evaluate, add_predict, add_train, ends, run_name_of, settings_of

STOPPED = 75  # exit code: the same command goes on


def demo(given: Given) -> int:
    """The whole main job, from files to a report by center: on a phantom cohort, or on a folder of your own."""
    from pants_dist.demo import demo as run_demo

    run_demo(given.data, given.out)
    return 0


def bench(given: Given) -> int:
    """How fast this machine reads patches of a store, and how many readers its training needs."""
    from pants_dist import bench as measure
    from pants_dist import config

    settings = config.load(given.config, [f"--data.store={given.store}"])
    config.check(settings)
    lines = measure.read_lines(given.store, settings.data.patch_zyx) if given.what == "read" else measure.loader_lines(settings)
    for line in lines:
        print(line, flush=True)
    return ends(0, f"pants-dist train --config {given.config} --data.store", given.store)


def train(given: Given) -> int:
    """Train, or go on with a run of the same name; any setting can be given as --section.setting VALUE."""
    from pants_dist.progress import watching

    settings, name = settings_of(given), run_name_of(given)
    from pants_dist.launch import launch  # takes seconds: after everything that can be refused at once
    from pants_dist.tracking import read_summary

    run = Path(settings.runs) / name
    with watching(run):
        code = launch(settings, name)
    if code == STOPPED:
        return ends(code, f"stopped with everything saved; the same command goes on after step {read_summary(run)['step']:,}")
    if code:
        return ends(code, "see above what went wrong; the same command goes on from the last checkpoint of", run)
    return ends(code, "pants-dist evaluate", run)


def sync(given: Given) -> int:
    """Upload runs to Weights & Biases: what it lacks of them, each step once; the same command again goes on."""
    from pants_dist.uploads import sync as upload_runs

    done = upload_runs(given.runs, given.workers, lambda one: print(f"{one.run}: {one.words}", flush=True), given.offline)
    if any(one.failed for one in done):
        return ends(1, "mend what is said above, then: pants-dist sync", *given.runs)
    return ends(0, "pants-dist status", given.runs[0])


def predict(given: Given) -> int:
    """Segment a CT by a trained model, or by the mean of several: NIfTI in, NIfTI on the same grid out."""
    from pants_dist.predict import predict as write_nifti

    files = write_nifti(given.checkpoints, given.image, given.out, given.mirror, given.label_map)
    print(f"{len(files)} files in {given.out}")
    return ends(0, "open them over the scan in a viewer such as ITK-SNAP:", given.image, files[-1])


def evaluate(given: Given) -> int:
    """Score a run's cases one by one, by its own model or by another system's masks, and report by center."""
    from conversion.choice import parse_slice
    from pants_dist.evaluate import Order, failure_lines
    from pants_dist.progress import shown
    from pants_dist.rows import WHOLE
    from pants_dist.spread import evaluate_on

    if given.mirror and given.predictions:
        raise UserError("evaluate: --mirror is for the run's own model; leave it out with --predictions")
    order = Order(given.run, (given.split,) if given.split else None, given.predictions, given.mirror, given.analysis)
    slice_ = parse_slice(given.slice) if given.slice else WHOLE
    with shown("evaluate") as tell:
        rows = evaluate_on(order, given.ranks, slice_, tell, print)
    if rows is None:
        return ends(0, "the other slices; whichever is through last writes the tables and the report")
    for line in failure_lines(rows):
        print(line)
    _print_centers(rows)
    return ends(0, "open", order.folder / "report.html")


def report(given: Given) -> int:
    """Tables, figures and report.html again, from runs' rows or from tables of other people's; several are compared."""
    from pants_dist.results import report_results

    found = report_results(given.results, given.out, given.metadata, given.group, given.analysis)
    for name in (name for name in ("Left out", "Centers", "Scored by") if name in found.facts):
        print(f"{name}: {found.facts[name]}")
    _print_centers(found.rows, given.group or "center")
    return ends(0, "open", given.out / "report.html")


def dashboard(given: Given) -> int:
    """A read-only web page over run folders: curves, centers, worst cases; on this machine's loopback only."""
    if given.export:
        from pants_dist.dashboard.export import export as write_page

        write_page(given.runs, given.export)
        return ends(0, "open", given.export)
    from pants_dist.dashboard.server import serve

    serve(given.runs, given.port, given.store)
    return 0


def _print_centers(rows: Any, by: str = "center") -> None:
    from rich.console import Console

    from pants_dist.bycenter import aucs_left
    from pants_dist.report import center_table, print_table
    from pants_dist.results import structures_of

    structures, console = structures_of(rows), Console()
    print_table(center_table(rows, structures), structures, console, by)
    console.print(aucs_left(rows), style="dim")


def add_run_verbs(add: Callable[[Callable[[Given], int]], Parser]) -> None:
    """The options of all of these."""
    verb = add(demo)
    verb.add_argument("--data", metavar="DIR", type=Path, help="a folder in PanTS's layout (default: a phantom cohort)")
    verb.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="folder for it all (default %(default)s)")
    verb = add(bench)
    verb.add_argument("what", choices=["read", "loader"], help="patches from the disk, or the way from disk to device")
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--config", metavar="FILE", default="baseline", help="patch, network, readers (default %(default)s)")
    verb = add(train)
    verb.usage = "pants-dist train --config FILE [--run-name NAME] [--section.setting VALUE ...]"
    add_train(verb)
    verb = add(sync)
    verb.add_argument("runs", metavar="RUNS", type=Path, nargs="+", help="run folders, or folders of runs")
    verb.add_argument("--workers", metavar="N", type=int, default=4, help="runs at a time (default %(default)s)")
    verb.add_argument("--offline", action="store_true", help="send nothing: write each run's folder for wandb sync")
    verb = add(evaluate)
    add_evaluate(verb)
    verb = add(predict)
    add_predict(verb)
    verb = add(report)
    verb.add_argument(
        "results", metavar="RESULTS", type=Path, nargs="+", help="one a model: run folders, or tables (parquet, CSV)"
    )
    verb.add_argument("--metadata", metavar="FILE", type=Path, help="what is known of each case (CSV, xlsx, parquet)")
    verb.add_argument("--group", metavar="COLUMN", help="group cases by this column (default: center)")
    verb.add_argument("--analysis", metavar="FILE", type=Path, help="analysis.yaml: endpoint, thresholds, comparisons")
    verb.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("report"), help="folder for report.html (default %(default)s)"
    )
    verb = add(dashboard)
    verb.add_argument("runs", metavar="RUNS", type=Path, help="the folder of all runs, or that of one")
    verb.add_argument("--port", metavar="N", type=int, default=0, help="where to listen (default: a free port)")
    verb.add_argument("--store", metavar="DIR", type=Path, help="a store that is being made: show how far, and what is refused")
    verb.add_argument("--export", metavar="FILE.html", type=Path, help="write one self-contained file instead")
