"""From what is to run, and on what, to the text of a SLURM script. Pure: `render` asks nothing and writes nothing.

The words are in slurm/*.j2. Whatever a user or a site gave reaches the script quoted; only a site's `setup` lines stand
as they are. The same script runs without SLURM, too: `bash RUN/submit.sbatch`.
"""

import json
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pants_dist import __version__
from pants_dist.errors import UserError
from pants_dist.site import Site, needed, program, quoted

NOTICE_SECONDS = 180  # before the time limit; SLURM may be up to 60 s early
HEREDOC = "END OF CONFIG"  # no line of YAML that we write
GB_PER_CPU = 4  # asked for where --mem is not given: Ray's shared memory counts as the job's


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks of SLURM. None: the site's default. `sbatch` holds further options by name; "" has no value."""

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 4  # a node runs one task
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None
    after: str | None = None  # job id that must have ended well
    mail_user: str | None = None
    sbatch: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job, or one array of jobs.

    `folder` keeps script and log; `stage` is what it does, and names both; `words` follow `pants-dist`. `runs` are the
    run folders of a "train" script, one an array element; `slices` the number of parts of any other, an array element each.
    `configs` are config.yaml of each of the runs, where the script has to bring them along.
    """

    template: Literal["job", "train", "convert"]
    stage: str
    folder: Path
    cwd: Path
    words: tuple[str, ...] = ()
    runs: tuple[Path, ...] = ()
    configs: tuple[str, ...] = ()
    slices: int | None = None
    array: str | None = None  # like "1-8%4" or "2,5"

    @property
    def script(self) -> Path:
        """Where the script is kept: `submit.sbatch` for the work that the folder is about, else by its stage."""
        about = self.stage in ("train", "convert")
        return self.folder / ("submit.sbatch" if about else f"{self.stage}.sbatch")

    def log(self, job_id: str) -> Path:
        """Where the job's output goes; `job_id` like "123" or, of an array, "123_4"."""
        return self.folder / f"{self.stage}-{job_id}.out"


def render(job: Job, resources: Resources, site: Site) -> str:
    """The script. Raises UserError where a name or a path has characters that no script can carry."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options = list(directives(job, resources, site))
    _check([*job.words, str(job.cwd), str(job.folder), *map(str, job.runs)], options)
    environment = Environment(
        loader=FileSystemLoader(templates()), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template(f"{job.template}.sbatch.j2").render(
        title=f"{job.stage} of {job.folder.name}", version=__version__, script=shlex.quote(str(job.script)),
        directives=options, cwd=shlex.quote(str(job.cwd)), folder=shlex.quote(str(job.folder)),
        stage=shlex.quote(job.stage), modules=quoted(site.modules), setup=site.setup,
        scratch=shlex.quote(site.scratch) if site.scratch else None,
        on_nodes=job.template == "train" or site.environment == "tarball",
        outlives="--no-kill" in options,
        tarball=shlex.quote(needed(site)) if site.environment == "tarball" else None,
        program=" ".join(program(site)), words=" ".join(quoted(job.words)), runs=quoted([str(run) for run in job.runs]),
        configs=list(zip(quoted([str(run) for run in job.runs]), job.configs, strict=False)), heredoc=HEREDOC,
        stage_begins=_begins("stage", job.stage), log_begins=_begins("log", f"{job.cwd / job.folder}/{job.stage}-"),
        slices=job.slices, interface=shlex.quote(site.interface) if site.interface else None,
        ports="{}-{}".format(*site.ports),
    )  # fmt: skip


def _begins(name: str, text: str) -> str:
    """An entry of a JSON object that a shell goes on with."""
    return shlex.quote(f'"{name}": {json.dumps(text)[:-1]}')


def templates() -> Path:
    """slurm/ lies inside the package once installed, and beside it in a clone."""
    here = Path(__file__).parent
    return here / "slurm" if (here / "slurm").is_dir() else here.parent / "slurm"


def directives(job: Job, resources: Resources, site: Site) -> Iterator[str]:
    """The options of sbatch as its own reader takes them back, each once: --sbatch.NAME wins, then our own, then the site's."""
    for name, value in (site.sbatch | _own(job, resources, site) | resources.sbatch).items():
        yield f"--{name}={shlex.quote(value)}" if value else f"--{name}"


def _own(job: Job, resources: Resources, site: Site) -> dict[str, str]:
    asked = {
        "job-name": f"{job.stage}:{job.folder.name}",
        "output": _log_pattern(job),
        "open-mode": "append",  # a requeue keeps the log
        "nodes": str(resources.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(resources.cpus_per_task),
        "mem": resources.mem or site.sbatch.get("mem") or f"{GB_PER_CPU * resources.cpus_per_task}G",
        "time": resources.time,
        "signal": f"B:USR1@{notice_seconds(resources.time or site.sbatch.get('time'))}",
        "partition": resources.partition or site.partition,
        "account": resources.account or site.account,
        "qos": resources.qos or site.qos,
        "constraint": resources.constraint or site.constraint,
        **_gpus(resources, site),
        "array": job.array,
        "dependency": f"afterok:{resources.after}" if resources.after else None,
        "kill-on-invalid-dep": "yes" if resources.after else None,
        "mail-user": resources.mail_user,
    }
    return {name: value for name, value in asked.items() if value} | {"requeue": ""}


def notice_seconds(limit: str | None) -> int:
    """How long before the time limit the script is told: of a short job a third, else it would stop as it begins."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit or "")
    days, first, second, third = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    if found and (found[1] or found[4]):  # D-H[:M[:S]] or H:M:S
        whole = ((24 * days + first) * 60 + second) * 60 + third
    else:  # M[:S]
        whole = 60 * first + second
    return min(NOTICE_SECONDS, max(whole // 3, 1)) if whole else NOTICE_SECONDS


def _gpus(resources: Resources, site: Site) -> dict[str, str]:
    if not resources.gpus_per_node:
        return {}
    kind = resources.gpu_type or site.gpu_type
    count = f"{kind}:{resources.gpus_per_node}" if kind else str(resources.gpus_per_node)
    return {"gres": f"gpu:{count}"} if site.ask_gpus_by == "gres" else {"gpus-per-node": count}


def _log_pattern(job: Job) -> str:
    folder = str(job.cwd / job.folder).replace("%", "%%")
    return f"{folder}/{job.log('%A_%a' if job.array else '%j').name}"


def _check(texts: Sequence[str], options: Sequence[str]) -> None:
    for text in (*texts, *options):
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise UserError(f"{text!r}: has a line break or another control character; use a name without it")
    for text in options:
        if "\\" in text:
            raise UserError(f"{text}: has a backslash, which sbatch does not keep; use a name without it")
