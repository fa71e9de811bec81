"""The verbs. Each calls one function of the library and ends with what to do next; what is heavy is imported by the
verb that needs it. What a user can mend is one line on stderr and exit code 2.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pants_dist import __version__
from pants_dist.errors import UserError
from pants_dist.parser import Given, Parser, add_convert, add_settings, add_train, ends, run_name_of, settings_of
from pants_dist.submitting import add_cluster_verbs, complete, submit

BAD_INPUT, INTERRUPTED, STOPPED = 2, 130, 75


def demo(given: Given) -> int:
    """The whole main job, from files to a report by center: on a phantom cohort, or on a folder of your own."""
    from pants_dist.demo import demo as run_demo

    run_demo(given.data, given.out)
    return 0


def doctor(given: Given) -> int:
    """What this machine has and lacks, each lack with its cure."""
    from pants_dist.doctor import findings

    found = findings()
    for finding in found:
        cure = f"; {finding.cure}" if finding.cure else ""
        print(f"{finding.level:<8}{finding.what:<11}{finding.found}{cure}")
    missing = [finding.what for finding in found if finding.level == "missing"]
    after = f"mend what is missing ({', '.join(missing)}), then: pants-dist doctor" if missing else "pants-dist demo"
    return ends(1 if missing else 0, after)


def phantom(given: Given) -> int:
    """Make a synthetic cohort of several centers in PanTS's layout."""
    from pants_dist.phantom import make_phantom
    from pants_dist.progress import shown

    made = itertools.count(1)
    with shown("phantom") as tell:
        make_phantom(
            given.out, given.cases, given.centers, given.seed, given.scale,
            on_case=lambda case: tell(next(made), given.cases, case),
        )  # fmt: skip
    return ends(0, "pants-dist convert", given.out, f"{given.out}-store")


def convert(given: Given) -> int:
    """Repack datasets into a store; the same command again goes on where it stopped."""
    from conversion.choice import parse_cases, parse_slice
    from conversion.run import convert as repack
    from pants_dist.progress import Conversion, shown

    with shown("convert") as tell:
        summary = repack(
            given.sources, given.store, layout=given.layout, metadata=given.metadata, workers=given.workers, ray=given.ray,
            slice_=parse_slice(given.slice) if given.slice else None, limit=given.limit,
            cases=parse_cases(given.cases) if given.cases else None, dry_run=given.dry_run,
            on_event=Conversion(tell).hears,
        )  # fmt: skip
    return ends(*_after_conversion(summary, given.dry_run))


def _after_conversion(summary: Any, dry_run: bool) -> tuple[Any, ...]:
    """Prints what a conversion came to, and what the store holds now; returns its exit code and what to do next."""
    from pants_dist.info import describe, lines
    from pants_dist.store import open_store

    if dry_run:
        return 0, f"the same command without --dry-run converts {len(summary.planned):,} cases"
    converted, kept, refused = (len(part) for part in (summary.converted, summary.kept, summary.refused))
    print(f"{converted:,} cases converted, {kept:,} there already, {refused:,} refused")
    if summary.elsewhere:
        return summary.exit_code, f"convert the other slices: {summary.elsewhere:,} cases are still to do"
    if not summary.digest:
        return summary.exit_code, "mend the sources, then run the same command: no case could be converted"
    print("\n".join(lines(describe(open_store(summary.store)))))
    return summary.exit_code, "pants-dist verify", summary.store


def verify(given: Given) -> int:
    """Prove a store whole, and (--against) equal to its sources; one line a damaged case, exit code 1."""
    from conversion.verify import verify as find_damage
    from pants_dist.progress import shown

    with shown("verify") as tell:
        damage = find_damage(given.store, given.against, on_case=tell)
    print("\n".join(damage) or f"{given.store}: whole")
    if damage:
        return ends(1, f"pants-dist convert {given.against or 'SRC'}", given.store)
    return ends(0, "pants-dist train --config debug.yaml --data.store", given.store)


def export(given: Given) -> int:
    """A case back as NIfTI: OUT/ct.nii.gz and OUT/segmentations/<structure>.nii.gz."""
    from conversion.export import export as write_nifti

    files = write_nifti(given.store, given.case, given.out)
    print(f"{files[0]} and {len(files) - 1} masks in {given.out / 'segmentations'}")
    return ends(0, "open it in a viewer such as ITK-SNAP:", files[0])


def info(given: Given) -> int:
    """What a store holds: cases, centers, sizes, refused cases."""
    from pants_dist.info import describe, lines
    from pants_dist.store import open_store

    facts = describe(open_store(given.store))
    print(json.dumps(facts, indent=2, ensure_ascii=False) if given.json else "\n".join(lines(facts)))
    after = "pants-dist train --config debug.yaml --data.store"
    return ends(0, after, given.store, to=sys.stderr if given.json else sys.stdout)


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


def split(given: Given) -> int:
    """Freeze who is trained on and who is held out, as a file that runs can use (data.split_file) and cite."""
    from pants_dist.freeze import freeze, lines, write_split
    from pants_dist.splits import COLUMNS
    from pants_dist.store import open_store

    setattr(given, "data.store", str(given.store))
    store, settings = open_store(given.store), settings_of(given)
    content = freeze(store.frame(*COLUMNS), settings.data, store.digest)
    write_split(given.out, content)
    print("\n".join(lines(content)))
    after = "pants-dist train --config debug.yaml --data.store"
    return ends(0, after, given.store, "--data.split_file", given.out)


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

    done = upload_runs(given.runs, given.workers, lambda one: print(f"{one.run}: {one.words}", flush=True))
    if any(one.failed for one in done):
        return ends(1, "mend what is said above, then: pants-dist sync", *given.runs)
    return ends(0, "pants-dist status", given.runs[0])


def evaluate(given: Given) -> int:
    """Score a run's cases one by one, and report by center."""
    from pants_dist.evaluate import evaluate as score_run
    from pants_dist.progress import shown

    with shown("evaluate") as tell:
        rows = score_run(given.run, (given.split,) if given.split else None, on_case=tell)
    _print_centers(rows)
    return ends(0, "open", given.run / "evaluation" / "report.html")


def report(given: Given) -> int:
    """Table and report.html again, from a run's rows or from a table of other people's."""
    from pants_dist.results import report_results

    _print_centers(report_results(given.results, given.out))
    return ends(0, "open", given.out / "report.html")


def _print_centers(rows: Any) -> None:
    from rich.console import Console

    from pants_dist.report import center_table, print_table
    from pants_dist.results import structures_of

    structures = structures_of(rows)
    print_table(center_table(rows, structures), structures, Console())


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of everything, and that of each verb."""
    parser = Parser(prog="pants-dist", description="From CT datasets to a model and a report by center, on many nodes.")
    parser.add_argument("--version", action="version", version=f"pants-dist {__version__}")
    adder = parser.add_subparsers(metavar="VERB", title="verbs", parser_class=Parser, required=True)
    verbs: dict[str, Parser] = {}

    def add(run: Callable[[Given], int]) -> Parser:
        verb = adder.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        verb.set_defaults(verb=run)
        verbs[run.__name__] = verb
        return verb

    _add_data_verbs(add)
    _add_run_verbs(add)
    add_cluster_verbs(add)
    return parser, verbs


def _add_data_verbs(add: Callable[[Callable[[Given], int]], Parser]) -> None:
    add(doctor)
    verb = add(phantom)
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder for the cohort")
    verb.add_argument("--cases", type=int, default=24, help="scans (default %(default)s)")
    verb.add_argument("--centers", type=int, default=6, help="hospitals that they come from (default %(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="another seed, another cohort (default %(default)s)")
    verb.add_argument("--scale", type=float, default=0.25, help="size along each axis, 1: full (default %(default)s)")
    verb = add(convert)
    add_convert(verb)
    verb = add(verify)
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--against", metavar="SRC", type=Path, help="compare every voxel with this dataset, too")
    verb.add_argument("--layout", default="auto", help="how SRC is laid out (default: found out)")
    verb = add(export)
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("case", metavar="CASE", help="id of the case, like PanTS_00000001")
    verb.add_argument("out", metavar="OUT", type=Path, help="folder for the files")
    verb = add(info)
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--json", action="store_true", help="as JSON")
    _add_split(add(split))


def _add_split(verb: Parser) -> None:
    from pants_dist.settings import FROZEN

    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="the split, as JSON; one that is there stays")
    verb.add_argument("--config", metavar="FILE", help="settings as YAML, or the name of a shipped file (default: none)")
    verb.usage = "pants-dist split STORE --out FILE [--config FILE] [--data.setting VALUE ...]"
    add_settings(verb, [f"data.{name}" for name in ("clusters", *FROZEN)])


def _add_run_verbs(add: Callable[[Callable[[Given], int]], Parser]) -> None:
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
    verb = add(evaluate)
    verb.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    verb.add_argument("--split", metavar="NAME", help="train, val_seen, held_out or test (default: the middle two)")
    verb = add(report)
    verb.add_argument("results", metavar="RESULTS", type=Path, nargs="+", help="run folders, or tables of rows (parquet, CSV)")
    verb.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("report"), help="folder for report.html (default %(default)s)"
    )


def run(words: Sequence[str]) -> int:
    """Parse and do; returns the exit code. Raises UserError."""
    from pants_dist.config import nearest

    parser, verbs = build_parser()
    if not words:
        parser.print_help()
        return 0
    if not words[0].startswith("-") and words[0] not in verbs:
        raise UserError(f"no verb {words[0]!r}{nearest(words[0], verbs)}")
    if words[0] != "submit":
        verbs.get(words[0], parser).refuse_unknown(words[1:] if words[0] in verbs else words)
    given, beyond = parser.parse_known_args(words)
    if given.verb is submit:
        complete(given, beyond, verbs)
    elif beyond:
        raise UserError(f'{words[0]}: {beyond[0]!r} is more than it takes; see "pants-dist {words[0]} --help"')
    return given.verb(given)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of `pants-dist`; returns the exit code."""
    try:
        return run(sys.argv[1:] if words is None else words)
    except UserError as error:
        return _says(f"pants-dist: {' '.join(str(error).split())}", BAD_INPUT)
    except KeyboardInterrupt:
        return _says("pants-dist: interrupted; the same command goes on where it stopped", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if not error.filename:
            raise
        return _says(f"pants-dist: {error.filename}: {error.strerror}; use a path that is there and open to you", BAD_INPUT)


def _says(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
