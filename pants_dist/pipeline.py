"""From a verb and its words to the row of jobs that does it, and the options of `submit` that say where.

A row is submitted at once, each stage after the one before. What ended well is not submitted again, so the same command
goes on from the stage, or the slices, that failed.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pants_dist.errors import UserError
from pants_dist.jobs import Stage, elements, finished, is_done
from pants_dist.submit import Job, Resources

Words = tuple[str, ...]


def folder_of(verb: str, subject: Path, cwd: Path) -> Path:
    """Where the jobs of a verb are kept that has no run: named by the path it works on, for two stores may have one name."""
    whole = Path(os.path.abspath(cwd / subject))
    parts = whole.relative_to(cwd).parts if whole.is_relative_to(cwd) else whole.parts[1:]
    return Path("runs") / "-".join([verb, *(parts or (cwd.name,))])


def convert_stages(words: Words, store: Path, slices: int, resources: Resources, cwd: Path) -> list[Stage]:
    """`convert` as one job, or as an array of slices and a job that then writes the manifest.

    `words` are those of the verb, from "convert" on. Of the slices, those that are not done; all, where all are.
    """
    folder = folder_of("convert", store, cwd)
    resources = replace(resources, nodes=1, gpus_per_node=0)
    if "--workers" not in {word.partition("=")[0] for word in words}:
        words = (*words, "--workers", str(resources.cpus_per_task))
    whole = Job(template="convert", stage="convert" if slices == 1 else "manifest", folder=folder, cwd=cwd, words=words)
    if slices == 1:
        return [Stage(whole, resources)]
    left = [n for n in range(1, slices + 1) if not is_done(folder, f"convert-{n}-of-{slices}")]
    array = ",".join(str(n) for n in left) if left else None if not is_done(folder, "manifest") else f"1-{slices}"
    if array is None:
        return [Stage(whole, resources)]
    array = f"1-{slices}" if len(left) == slices else array
    sliced = Job(template="convert", stage="convert", folder=folder, cwd=cwd, words=words, slices=slices, array=array)
    return [Stage(sliced, resources), Stage(whole, resources)]


def train_stage(
    runs: Sequence[Path], folder: Path, most: int | None, resources: Resources, cwd: Path, configs: Sequence[str] = ()
) -> Stage:
    """`train` of one prepared run folder, or of several as an array of which `most` run at a time.

    Where the folders are not prepared, the script brings along the `configs` of each.
    """
    several = len(runs) > 1 or folder not in runs
    array = f"0-{len(runs) - 1}" + (f"%{most}" if most else "") if several else None
    job = Job(
        template="train", stage="train", folder=folder, cwd=cwd, runs=tuple(runs), array=array, configs=tuple(configs)
    )
    return Stage(job, resources)


def command_stage(
    stage: str, words: Words, folder: Path, resources: Resources, cwd: Path, slices: int = 1
) -> Stage:
    """Any other verb, on one node, or as an array of slices on a node each. `words` begin with the verb."""
    parts: dict[str, Any] = {"slices": slices, "array": f"1-{slices}"} if slices > 1 else {}
    job = Job(template="job", stage=stage, folder=folder, cwd=cwd, words=words, **parts)
    return Stage(job, replace(resources, nodes=1))


def after_training(run: Path, resources: Resources, cwd: Path) -> list[Stage]:
    """`evaluate` and `report` of a run."""
    without_gpu = replace(resources, gpus_per_node=0)
    return [
        command_stage("evaluate", ("evaluate", str(run)), run, resources, cwd),
        command_stage("report", ("report", str(run), "--out", str(run / "report")), run, without_gpu, cwd),
    ]


def still_to_do(stages: Sequence[Stage]) -> list[Stage]:
    """From the first stage that has not ended well on. Raises UserError where all have."""
    left = list(itertools.dropwhile(lambda stage: finished(stage.job), stages))
    if not left:
        marks = sorted({str(folder / "done") for stage in stages for _, folder, _ in elements(stage.job)})
        raise UserError(f"pipeline: every stage is done; to begin anew remove {', '.join(marks)}")
    return left


def sweep(specifications: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of "section.setting=value,value": setting -> value. Raises UserError for one without values."""
    axes: list[list[tuple[str, str]]] = []
    for specification in specifications:
        name, _, given = specification.partition("=")
        values = re.split(r",(?![^\[{]*[\]}])", given)  # not at the commas of a list
        if not name or not all(values):
            raise UserError(f"--sweep {specification}: give a setting and its values, like optim.lr=1e-3,3e-4")
        axes.append([(name, value) for value in values])
    if len({axis[0][0] for axis in axes}) < len(axes):
        raise UserError(f"--sweep: a setting is given twice ({', '.join(specifications)}); put all values into one")
    return [dict(combination) for combination in itertools.product(*axes)]


def check_array(size: int, largest: int | None, what: str) -> None:
    """Raises UserError where an array of this size has no room in this SLURM."""
    if largest is not None and size > largest:
        raise UserError(f"{what}: {size} array elements, but this SLURM takes {largest} (MaxArraySize); ask for fewer")
