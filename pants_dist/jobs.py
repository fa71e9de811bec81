"""Jobs of a run folder: their scripts are kept there, their ids remembered, their ends marked by the scripts themselves.

jobs.jsonl          a line a job: id ("123", of an array "123_4"), stage, log; a script that is not in it yet adds itself
done/<stage>        empty; written by the script when the stage ended well
"""

import contextlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pants_dist import queue
from pants_dist.errors import UserError
from pants_dist.site import Site
from pants_dist.submit import Job, Resources, render
from pants_dist.tracking import write_atomically

RECORD, DONE = "jobs.jsonl", "done"
END_OF_SCRIPT = "END OF SCRIPT"
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class Submitted:
    """A job, or an element of an array, that was handed to SLURM."""

    job: str
    stage: str
    log: Path
    time: float


@dataclass(frozen=True)
class Stage:
    """A job and what it asks for, in a row of such."""

    job: Job
    resources: Resources


def submitted(folder: Path) -> list[Submitted]:
    """Every job of a run folder, the oldest first."""
    path, found = folder / RECORD, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):  # two nodes wrote at a time
            row = json.loads(line)
            found.append(Submitted(row["job"], row["stage"], Path(row["log"]), row["time"]))
    return found


def last_of_each(folder: Path) -> dict[str, Submitted]:
    """Stage -> the last job of it."""
    return {job.stage: job for job in submitted(folder)}


def is_done(folder: Path, stage: str) -> bool:
    """Whether the stage's last job ended well."""
    return (folder / DONE / stage).exists()


def family(folder: Path) -> list[Path]:
    """The folder of a run, and of a sweep those of its runs."""
    below = sorted(path.parent for path in folder.glob(f"*/{RECORD}")) if (folder / "submit.sbatch").is_file() else []
    return [folder, *below]


def in_queue(*folders: Path) -> dict[str, queue.State]:
    """State of each of the jobs of runs, or of sweeps, that wait or run, by id."""
    ids = [job for folder in folders for job in _last_ids(folder)]
    return {job: state for job, state in queue.states(ids).items() if state.word not in OVER}


def _last_ids(folder: Path) -> list[str]:
    return [job.job for run in family(folder) for job in last_of_each(run).values()]


def withdraw(folder: Path, now: bool) -> list[str]:
    """Take the folder's jobs from the queue; those that run save first, unless `now`. Returns their ids."""
    found = in_queue(folder)
    running = [] if now else [job for job, state in found.items() if state.word == "RUNNING"]
    if waiting := [job for job in found if job not in running]:
        queue.cancel(waiting)
    if running:
        queue.interrupt(running)
    return list(found)


def elements(job: Job) -> Iterator[tuple[str, Path, str]]:
    """(suffix of the id, folder, stage) of each element of an array, or of the one job there is."""
    if job.array is None:
        yield "", job.runs[0] if job.runs else job.folder, job.stage
        return
    for index in indices(job.array):
        if job.runs:
            yield f"_{index}", job.runs[index], job.stage
        else:
            yield f"_{index}", job.folder, f"{job.stage}-{index}-of-{job.slices}"


def indices(array: str) -> list[int]:
    """The indices of an array's specification, like "1-3,7%2"."""
    ranges = [part.partition("-") for part in array.partition("%")[0].split(",")]
    return [index for first, _, last in ranges for index in range(int(first), int(last or first) + 1)]


def finished(job: Job) -> bool:
    """Whether every element of it ended well."""
    return all(is_done(folder, stage) for _, folder, stage in elements(job))


def send(stages: Sequence[Stage], site: Site, after: str | None) -> list[str]:
    """Submit the stages, each once the one before has ended well, the first after job `after`; returns their ids.

    Raises UserError where one of them is in the queue already, or SLURM refuses one; those before are then withdrawn.
    """
    folders = dict.fromkeys(folder for stage in stages for _, folder, _ in elements(stage.job))
    waiting = in_queue(*folders)
    for folder in folders:
        if ours := sorted(waiting.keys() & _last_ids(folder)):
            raise UserError(
                f"run {folder}: job {ours[0]} is in the queue already; wait for it (pants-dist status {folder}), or "
                f"withdraw it (pants-dist cancel {folder})"
            )
    scripts = [keep(stage, site) for stage in stages]
    for script in scripts:
        queue.check(str(script))
    ids: list[str] = []
    try:
        for stage, script in zip(stages, scripts, strict=True):
            before = ids[-1] if ids else after
            options = [f"--dependency=afterok:{before}", "--kill-on-invalid-dep=yes"] if before else []
            ids.append(queue.submit(script, *options))
            _remember(stage.job, ids[-1])
    except UserError:
        if ids:
            queue.cancel(ids)
        raise
    return ids


def keep(stage: Stage, site: Site) -> Path:
    """Write the script to its place; what its job did before no longer counts."""
    job = stage.job
    script = job.cwd / job.script
    text = render(job, stage.resources, site)
    script.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(script, text)
    for _, folder, name in elements(job):
        (job.cwd / folder / DONE / name).unlink(missing_ok=True)
    return script


def _remember(job: Job, job_id: str) -> None:
    lines: dict[Path, str] = {}
    for suffix, folder, stage in elements(job):
        line = {"job": job_id + suffix, "stage": stage, "log": str(job.cwd / job.log(job_id + suffix)), "time": time.time()}
        lines[folder] = lines.get(folder, "") + json.dumps(line) + "\n"
    for folder, text in lines.items():
        with open(job.cwd / folder / RECORD, "a", encoding="utf-8") as file:
            file.write(text)


def run_here(stages: Sequence[Stage], site: Site) -> int:
    """Run the very same scripts on this machine, one after the other, until one fails; returns the exit code."""
    for stage in stages:
        script = keep(stage, site)
        for index in indices(stage.job.array) if stage.job.array else [None]:
            environment = os.environ | ({} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)})
            if code := subprocess.call(["bash", str(script)], env=environment):
                return code
    return 0


def text(stages: Sequence[Stage], site: Site, after: str | None) -> str:
    """What would be submitted, for sbatch on another machine: the script, or of several one that submits them in a row.

    The folders of their logs are made, for SLURM makes none.
    """
    for stage in stages:
        (stage.job.cwd / stage.job.folder).mkdir(parents=True, exist_ok=True)
    if len(stages) == 1:
        return render(stages[0].job, replace(stages[0].resources, after=after), site)
    return "".join(_submitting(stages, site, after))


def _submitting(stages: Sequence[Stage], site: Site, after: str | None) -> Iterator[str]:
    yield f"#!/bin/bash\n# {len(stages)} jobs, each after the one before. Give this to bash, or to sbatch, on a login node\n"
    yield f"job={shlex.quote(after or '')}\n"
    for stage in stages:
        text = render(stage.job, stage.resources, site)
        assert END_OF_SCRIPT not in text.splitlines()
        yield "job=$(sbatch --parsable ${job:+--dependency=\"afterok:${job%%;*}\" --kill-on-invalid-dep=yes} "
        yield f"<<'{END_OF_SCRIPT}'\n{text}{END_OF_SCRIPT}\n) || exit 1\n"
        yield f"echo \"${{job%%;*}}  \"{shlex.quote(stage.job.stage)}\n"


def wait(stages: Sequence[Stage], ids: Sequence[str]) -> int:
    """Until the last job has left the queue; 0 where all ended well, else 1."""
    wanted = [job_id + suffix for stage, job_id in zip(stages, ids, strict=True) for suffix, *_ in elements(stage.job)]
    while any(state.word not in OVER for state in queue.states(wanted).values()):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return 0 if all(finished(stage.job) for stage in stages) else 1


def follow(log: Path, folder: Path, rank: str | None = None, on: bool = True) -> Iterator[str]:
    """Lines of a log, with `rank` of that rank alone; `on`: as they come, until no job of the folder is in the queue."""
    while on and not log.is_file() and in_queue(folder):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if not log.is_file():
        return
    with open(log, encoding="utf-8", errors="replace") as file:
        while True:
            on = on and bool(in_queue(folder))
            for line in file:
                if rank is None or line.startswith(f"[rank{rank}]"):
                    yield line
            if not on:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)
