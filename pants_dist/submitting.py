"""The verbs of a cluster: submit, status, logs, cancel. What is to run is checked here, before anything is queued."""

import argparse
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from pants_dist.errors import UserError
from pants_dist.parser import Given, Parser, add_convert, add_train, ends, run_name_of, settings_of

VERBS = ("convert", "verify", "train", "evaluate", "report", "pipeline", "dashboard")
OPTIONS_OF = {
    "--nodes": ("convert", "train", "evaluate", "pipeline"), "--slices": ("convert", "evaluate", "pipeline"),
    "--sweep": ("train",), "--leave-one-center-out": ("train",), "--max-running": ("train",),
}  # fmt: skip
SECONDS_BETWEEN_TABLES = 5.0
FOLDS_CHECKED = 2  # whose split is worked out before they are queued: those that leave least to train on


class Variant(NamedTuple):
    """A run of a sweep: its name and settings, and whether its split is worked out here, or only when it begins."""

    name: str
    settings: Any
    fitted: bool = True


def submit(given: Given) -> int:
    """Hand a verb to SLURM: pants-dist submit VERB [the verb's own options] [options of submit]."""
    from pants_dist import jobs, preflight
    from pants_dist.site import load_site

    given.site = site = load_site(given.cluster)
    _refuse_of_others(given)
    stages = _stages(given)
    if given.dry_run:
        print(jobs.text(stages, site, given.after), end="")
        return 0
    folder = stages[-1].job.folder
    if given.local:
        return ends(jobs.run_here(stages, site), "pants-dist status", folder)
    print(f"quota: {'; '.join(preflight.quota_lines(site, folder))}")
    ids = jobs.send(stages, site, given.after)
    for stage, job_id in zip(stages, ids, strict=True):
        array = f" (array {stage.job.array})" if stage.job.array else ""
        print(f"{job_id}  {stage.job.stage}{array}: sbatch {shlex.quote(str(stage.job.script))}")
    code = jobs.wait(stages, ids) if given.wait else 0
    if given.what == "dashboard" and not given.wait:
        return ends(code, "its address, once it runs: pants-dist logs", folder, "--follow")
    return ends(code, "pants-dist status", Path(given.settings.runs) if given.what == "pipeline" else folder)


def _refuse_of_others(given: Given) -> None:
    """Raises UserError for an option that is of other verbs: what would be passed over is not what was meant."""
    for option, verbs in OPTIONS_OF.items():
        asked = getattr(given, option.strip("-").replace("-", "_"))
        if given.what not in verbs and asked not in (None, False, [], 1):
            raise UserError(f"submit {given.what}: {option} is for {', '.join(verbs)}; leave it out")


def complete(given: Given, beyond: list[str], verbs: dict[str, Parser]) -> None:
    """Adds to the options of "submit" those that are not its own: of the verb (`own`, `words`), of sbatch, settings."""
    given.sbatch, beyond = sbatch_options(beyond)
    target = verbs.get(given.what) or _pipeline_parser()
    target.options += verbs["submit"].options  # the nearest may be one of those
    target.refuse_unknown(beyond)
    given.own, more = target.parse_known_args(beyond)
    if more:
        raise UserError(f"submit {given.what}: {more[0]!r} is more than it takes")
    given.words = (given.what, *beyond)
    if "config" not in given.own:
        return
    if given.what == "pipeline":
        given.words = _words_of_convert(given.own)
        setattr(given.own, "data.store", str(given.own.store.resolve()))
    if given.gpus_per_node and "train.ranks" not in given.own:
        setattr(given.own, "train.ranks", str(given.gpus_per_node))
    given.settings, given.run_name = settings_of(given.own), run_name_of(given.own)
    given.with_changes = lambda changes: settings_of(argparse.Namespace(**vars(given.own) | changes))


def _pipeline_parser() -> Parser:
    parser = Parser(prog="pants-dist submit pipeline")
    add_convert(parser)
    add_train(parser)
    return parser


def _words_of_convert(own: Given) -> tuple[str, ...]:
    chosen = {f"--{name}": getattr(own, name) for name in ("layout", "metadata", "workers", "limit", "cases")}
    options = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    return "convert", *map(str, own.sources), str(own.store), *options


def sbatch_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options --sbatch.NAME=VALUE by name ("" where no value is given), and the other words."""
    found = [re.fullmatch(r"--sbatch\.([a-z][a-z-]*)(?:=(.*))?", word, re.DOTALL) for word in words]
    options = {match[1]: match[2] or "" for match in found if match}
    return options, [word for word, match in zip(words, found, strict=True) if not match]


def _stages(given: Given) -> list[Any]:
    """What the command line asks for, as a row of jobs; run folders of trainings are prepared on the way."""
    return {"convert": _convert, "train": _train, "evaluate": _evaluate, "pipeline": _pipeline}.get(given.what, _command)(given)


def _resources(given: Given, **more: Any) -> Any:
    from pants_dist.submit import Resources

    names = {entry.name for entry in fields(Resources)} - {"sbatch", "after"}
    asked = {name: value for name, value in vars(given).items() if name in names and value is not None}
    return Resources(**more | asked, sbatch=given.sbatch)


def _convert(given: Given) -> list[Any]:
    from pants_dist.pipeline import convert_stages

    if given.own.slice:
        raise UserError("submit convert: --slice is of a single process; give the number of slices as --slices N")
    given.slices = max(given.slices, given.nodes)
    _check_conversion(given)
    return convert_stages(given.words, given.own.store, given.slices, _resources(given), Path.cwd())


def _check_slices(given: Given, slices: int) -> None:
    from pants_dist import queue
    from pants_dist.pipeline import check_array

    if slices > 1 and not given.dry_run and not given.local:
        check_array(slices, queue.largest_array_index(), f"--slices {slices}")


def _check_conversion(given: Given) -> None:
    _check_slices(given, given.slices)
    for source in given.own.sources:
        if not source.exists():
            raise UserError(f"source {source}: no such folder")


def _train(given: Given) -> list[Any]:
    from pants_dist import queue
    from pants_dist.pipeline import check_array, train_stage
    from pants_dist.preflight import Preflight

    check = Preflight(_for_training(given), given.site)
    variants = _variants(given, check)
    if len(variants) > 1 and not given.dry_run and not given.local:
        check_array(len(variants), queue.largest_array_index(), "submit train")
    runs = [Path(variant.settings.runs) / variant.name for variant in variants]
    configs = _configs(runs, variants, check, given.dry_run)
    folder = Path(given.settings.runs) / given.run_name  # of the one run, or of a sweep that of its runs' folders
    return [train_stage(runs, folder, given.max_running, _for_training(given), Path.cwd(), configs if given.dry_run else ())]


def _variants(given: Given, check: Any) -> list[Variant]:
    """The one run, or each of a sweep, whose folders lie in one of the sweep's name."""
    from pants_dist import config
    from pants_dist.pipeline import sweep

    if given.leave_one_center_out:
        return _folds(given, check)
    changes = sweep(given.sweep)
    for name in changes[0]:
        if name not in config.catalog():
            raise UserError(f"--sweep: no setting {name!r}{config.nearest(name, config.catalog())}")
    if changes == [{}]:
        return [Variant(given.run_name, given.settings)]
    runs = str(Path(given.settings.runs) / given.run_name)
    return [Variant(_name(change), given.with_changes(change | {"runs": runs})) for change in changes]


def _folds(given: Given, check: Any) -> list[Variant]:
    """A run without each of the hospitals, in the order of data.leave_one_center_out; other words on who is held out go."""
    from pants_dist.splits import hospitals

    if given.sweep:
        raise UserError("submit train: --sweep and --leave-one-center-out are two arrays; submit them one by one")
    frame = check.store(given.settings).frame("center", "center_kind", "official_split")
    names, cases, runs = hospitals(frame), frame["center"].value_counts(), str(Path(given.settings.runs) / given.run_name)
    largest = sorted(names, key=lambda name: -cases[name])[:FOLDS_CHECKED]
    folds = [
        replace(given.settings.data, held_out_fraction=None, held_out_centers=(), split_file=None, leave_one_center_out=number)
        for number in range(len(names))
    ]
    return [
        Variant(_name({f"{number:03d}": name}), replace(given.settings, data=data, runs=runs), name in largest)
        for number, (name, data) in enumerate(zip(names, folds, strict=True))
    ]


def _name(change: dict[str, str]) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{name}={value.strip('[]')}" for name, value in change.items()))


def _configs(runs: list[Path], variants: list[Variant], check: Any, dry_run: bool) -> list[str]:
    """config.yaml of each run, once all are checked; written to their folders, with --dry-run not."""
    from pants_dist.launch import check_same, config_text, keep_config

    ready = [(check.fitted if variant.fitted else check.opened)(variant.settings) for variant in variants]
    for run, (settings, _) in zip(runs, ready, strict=True):
        check_same(settings, run)
    for run, (settings, about) in zip(runs, ready, strict=True):
        if not dry_run:
            keep_config(settings, run, about)
    return [config_text(settings, run, about) for run, (settings, about) in zip(runs, ready, strict=True)]


def _for_training(given: Given) -> Any:
    """A core for each rank, for each of its readers, and one for Ray, where no number is given.

    A run that goes on with fewer nodes (train.min_nodes) needs a job that does, too.
    """
    settings = given.settings
    resources = _resources(given, cpus_per_task=settings.train.ranks * (1 + settings.loader.readers) + 1)
    return resources if settings.train.min_nodes is None else replace(resources, sbatch={"no-kill": "", **resources.sbatch})


def _pipeline(given: Given) -> list[Any]:
    from pants_dist.launch import check_same, config_text, prepare_run
    from pants_dist.pipeline import after_training, command_stage, convert_stages, still_to_do, train_stage

    _check_conversion(given)
    resources, cwd, store = _resources(given), Path.cwd(), str(given.own.store)
    run = Path(given.settings.runs) / given.run_name
    about = "of a store that is still to be made"
    check_same(given.settings, run)
    if not given.dry_run:
        prepare_run(given.settings, given.run_name, about)
    configs = [config_text(given.settings, run, about)] if given.dry_run else []
    verify = ("verify", store)
    from_scratch = [
        *convert_stages(given.words, given.own.store, given.slices, resources, cwd),
        command_stage("verify", verify, run, replace(resources, gpus_per_node=0), cwd),
        train_stage([run], run, None, _for_training(given), cwd, configs),
        *after_training(run, resources, cwd),
    ]
    return still_to_do(from_scratch)


def _evaluate(given: Given) -> list[Any]:
    """Of a node, or of an array of slices, as many as --slices or --nodes says; each passes over what is scored already."""
    from pants_dist.pipeline import command_stage

    if given.own.slice:
        raise UserError("submit evaluate: --slice is of a single process; give the number of slices as --slices N")
    slices = max(given.slices, given.nodes)
    _check_slices(given, slices)
    return [command_stage("evaluate", given.words, given.own.run, _resources(given), Path.cwd(), slices)]


def _command(given: Given) -> list[Any]:
    from pants_dist.pipeline import command_stage, folder_of

    subject = next(getattr(given.own, name) for name in ("store", "out", "runs") if hasattr(given.own, name))
    folder = folder_of(given.what, subject, Path.cwd())
    return [command_stage(given.what, given.words, folder, _resources(given), Path.cwd())]


def status(given: Given) -> int:
    """Where all runs stand: a row a stage, from the queue and from the run folders."""
    from pants_dist.status import lines, rows

    while True:
        table = lines(rows(given.runs))
        if given.watch:
            print("\033[2J\033[H", end="")
        print("\n".join(table), flush=True)
        if not given.watch:
            return ends(0, "pants-dist logs RUN --follow")
        time.sleep(SECONDS_BETWEEN_TABLES)


def logs(given: Given) -> int:
    """What a run's last job wrote."""
    from pants_dist.jobs import family, follow, last_of_each

    known = last_of_each(given.run)
    if given.stage and given.stage not in known:
        raise UserError(f"run {given.run}: no job of stage {given.stage}; there are {', '.join(known) or 'none'}")
    if not known:
        runs = ", ".join(str(run) for run in family(given.run)[1:])
        instead = f"its runs are {runs}" if runs else "see pants-dist status"
        raise UserError(f"run {given.run}: nothing was submitted for it; {instead}")
    job = known[given.stage] if given.stage else max(known.values(), key=lambda job: job.time)
    for line in follow(job.log, given.run, given.rank, given.follow):
        print(line, end="", flush=True)
    return ends(0, "pants-dist status", given.run)


def cancel(given: Given) -> int:
    """Withdraw a run's jobs; what runs saves first, and the same command submits it again."""
    from pants_dist.jobs import withdraw

    ids = withdraw(given.run, given.now)
    print(f"withdrawn: {', '.join(ids)}" if ids else f"run {given.run}: none of its jobs waits or runs")
    return ends(0, "pants-dist status", given.run)


def add_cluster_verbs(add: Callable[[Callable[[Given], int]], Parser]) -> None:
    """Their options."""
    verb = add(submit)
    verb.usage = "pants-dist submit VERB [the verb's own options] [options]"
    verb.add_argument("what", metavar="VERB", choices=VERBS, help=f"one of {', '.join(VERBS)}")
    verb.add_argument("--cluster", metavar="FILE", help="what the cluster is like (default ~/.config/pants-dist/cluster.yaml)")
    _add_resources(verb)
    verb.add_argument("--slices", metavar="N", type=int, default=1, help="convert, evaluate: jobs that share the cases")
    verb.add_argument("--sweep", metavar="SETTING=A,B", action="append", default=[], help="train: a run for each value")
    verb.add_argument("--leave-one-center-out", action="store_true", help="train: a run for each center, without it")
    verb.add_argument("--max-running", metavar="N", type=int, help="train: runs of a sweep that may run at a time")
    verb.add_argument("--after", metavar="JOBID", help="begin once this job has ended well")
    verb.add_argument("--wait", action="store_true", help="return when the jobs have ended")
    verb.add_argument("--dry-run", action="store_true", help="only print the script")
    verb.add_argument("--local", action="store_true", help="run the very same script here, without a scheduler")
    verb = add(status)
    verb.add_argument("runs", metavar="RUNS", type=Path, nargs="?", default=Path("runs"), help="folder of runs, or one run")
    verb.add_argument("--watch", action="store_true", help="again and again")
    verb = add(logs)
    verb.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    verb.add_argument("--follow", action="store_true", help="go on while it runs")
    verb.add_argument("--rank", metavar="R", help="only the lines of this rank")
    verb.add_argument("--stage", metavar="NAME", help="of this stage (default: the last that was submitted)")
    verb = add(cancel)
    verb.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    verb.add_argument("--now", action="store_true", help="without saving first")


def _add_resources(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("resources", "defaults come from the cluster's file")
    group.add_argument("--nodes", metavar="N", type=int, default=1, help="nodes; convert, evaluate: like --slices (default 1)")
    verb_options: Any = verb
    for option, kind, text in (
        ("--gpus-per-node", int, "GPUs of each node; train: one rank each"),
        ("--cpus-per-task", int, "cores of each node (default: 4; train: by ranks and readers)"),
        ("--mem", str, "memory of each node, like 64G (default: 4 GB a core)"),
        ("--time", str, "limit, like 8:00:00; the job saves and queues again before it"),
        ("--partition", str, "partition"),
        ("--account", str, "account"),
        ("--qos", str, "quality of service"),
        ("--constraint", str, "features that nodes must have"),
        ("--gpu-type", str, "kind of GPU"),
        ("--mail-user", str, "who gets mail"),
    ):
        group.add_argument(option, metavar=option[2].upper(), type=kind, help=text)
        verb_options.options.append(option)
    group.add_argument("--sbatch.NAME", metavar="VALUE", help="--sbatch.NAME=VALUE is sbatch's --NAME=VALUE; so for any NAME")
    verb_options.options += ["--nodes", "--sbatch.NAME"]
