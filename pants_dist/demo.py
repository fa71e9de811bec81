"""The whole main job in one go: cohort -> convert -> train -> evaluate -> report. Each stage resumes where it stopped."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console

from conversion.run import convert
from pants_dist import cluster, config, report
from pants_dist.errors import UserError
from pants_dist.evaluate import evaluate
from pants_dist.launch import launch
from pants_dist.phantom import make_phantom
from pants_dist.progress import shown, watching
from pants_dist.splits import splits_of
from pants_dist.store import Store, open_store

CONFIG = "debug.yaml"
RUN = "demo"
PHANTOM_CASES, PHANTOM_CENTERS = 60, 6
PHANTOM_SETTINGS = {  # half of each seen center is scored, so that there are intervals; lesions are small and come often
    "data.val_fraction": 0.5,
    "data.structure_weights": {"pancreatic_lesion": 4, "pancreas": 2},
    "validation.every": 125,
    "validation.cases": 2,
}


def demo(data: Path | None, out: Path) -> Path:
    """Run the main job into `out` on a phantom cohort, or on `data`, a folder in PanTS's layout; returns report.html.

    Run again after an interruption, it goes on where it was. Raises UserError as the stages do.
    """
    if data is not None and not data.is_dir():
        raise UserError(
            f"--data {data}: no such folder; give a folder in PanTS's layout, or leave it out for a phantom cohort"
        )
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    source = data or make_cohort(console, out / "phantom")
    store = repack(console, source, out / "store")
    train(console, store, out, PHANTOM_SETTINGS if data is None else {})
    run = out / "runs" / RUN
    rows = score(console, run, store)
    structures = config.load(run / "config.yaml", []).model.outputs.structures
    report.print_table(report.center_table(rows, structures), structures, console)
    page = run / "evaluation" / "report.html"
    _say_next(console, store, run, page)
    return page


def make_cohort(console: Console, folder: Path) -> Path:
    """The phantom cohort."""
    console.print(
        f"[bold]1/4[/] phantom cohort: {PHANTOM_CASES} synthetic cases, {PHANTOM_CENTERS} centers, in {folder}"
    )
    with shown("phantom") as tell:
        done = 0

        def on_case(case: str) -> None:
            nonlocal done
            done += 1
            tell(done, PHANTOM_CASES, case)

        make_phantom(folder, PHANTOM_CASES, PHANTOM_CENTERS, on_case=on_case)
    return folder


def repack(console: Console, source: Path, folder: Path) -> Store:
    """The store of `source`."""
    console.print(f"[bold]2/4[/] convert {source} to {folder}")
    with shown("convert") as tell:
        summary = convert(
            [source], folder, on_event=lambda event: tell(event.done, event.total) if event.total else None
        )
    for case, reason in summary.refused.items():
        console.print(f"  refused {case}: {reason}")
    return open_store(folder)


def train(console: Console, store: Store, out: Path, beyond: Mapping[str, object]) -> None:
    """The small network of configs/debug.yaml with settings beyond it, on as many ranks as there are cores up to two."""
    held_out = held_out_centers(store)
    ranks = min(2, cluster.usable_cores())
    overrides = {"data.store": store.path, "data.held_out_centers": list(held_out), "runs": out / "runs", "train.ranks": ranks}
    settings = config.load(CONFIG, [f"--{name}={value}" for name, value in {**overrides, **beyond}.items()])
    console.print(
        f"[bold]3/4[/] train {settings.train.steps} steps on {ranks} ranks, "
        f"held out: {', '.join(held_out) or 'no center (there are too few known ones)'}"
    )
    with watching(out / "runs" / RUN):
        code = launch(settings, RUN)
    if code:
        raise UserError(
            f"training ended with exit code {code}; see what was said above, then run the demo again: it goes on"
        )


def held_out_centers(store: Store) -> tuple[str, ...]:
    """A third of the known centers, from those with fewest cases up, so that most cases can be trained on."""
    table = store.frame("center", "center_kind", "official_split")
    known = table[(table["center_kind"] == "single") & (table["official_split"] != "test")]
    counts = known["center"].value_counts()
    ordered = sorted(counts.index, key=lambda center: (counts[center], center))
    return tuple(sorted(ordered[: len(ordered) // 3])) if len(ordered) >= 3 else ()


def score(console: Console, run: Path, store: Store) -> pd.DataFrame:
    """Rows of all validation cases; of the training cases, and said so, where the data are too few to keep any apart."""
    settings = config.load(run / "config.yaml", [])
    apart = {"val_seen", "held_out"} & set(splits_of(store, settings.data).counts())
    what = "every validation case" if apart else "the training cases: too few to keep any apart, so this shows memorisation"
    console.print(f"[bold]4/4[/] evaluate {what}")
    with shown("evaluate") as tell:
        return evaluate(
            run, None if apart else ("train",), on_case=lambda done, total, row: tell(done, total, row["case"])
        )


def _say_next(console: Console, store: Store, run: Path, page: Path) -> None:
    quoted = {name: shlex.quote(str(path)) for name, path in (("store", store.path), ("run", run), ("page", page))}
    console.print(
        f"\nNext: open {quoted['page']} in a browser, then try\n"
        f"  pants-dist info {quoted['store']}\n"
        f"  pants-dist evaluate {quoted['run']} --split train\n"
        f"  pants-dist train --config {quoted['run']}/config.yaml --run-name longer --train.steps 1200\n"
        "  pants-dist demo --data /path/to/PanTS --out demo-real",
        highlight=False,
        soft_wrap=True,
    )
