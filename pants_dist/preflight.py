"""What can be known to go wrong before anything is queued: said now, in seconds, instead of after a night in the queue."""

import contextlib
import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pants_dist import queue
from pants_dist.errors import UserError
from pants_dist.settings import Settings
from pants_dist.site import Site
from pants_dist.submit import GB_PER_CPU, Job, Resources, directives

SAMPLED = 200  # files of the store that are looked at
QUOTA_SECONDS = 3


def quota_lines(site: Site, folder: Path) -> list[str]:
    """What is known of the quota at `folder`, in the words of the first command that answers; "unknown" never refuses."""
    with ThreadPoolExecutor() as at_once:
        answers = list(at_once.map(_answer, _quota_commands(site, folder)))
    return next(filter(None, answers), ["unknown"])


def _answer(command: list[str]) -> list[str]:
    """Lines that a command says within its seconds; none where it is not here, fails or hangs."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUOTA_SECONDS, check=True)
        return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    return []


def _quota_commands(site: Site, folder: Path) -> Iterator[list[str]]:
    if site.quota_command:
        yield list(site.quota_command)
    yield ["lfs", "quota", "-h", str(folder)]
    yield ["mmlsquota"]
    yield ["quota", "-s"]


def refusal(site: Site, folder: Path) -> str:
    """Why SLURM would not take a job with the defaults of this site, "" if it would. Nothing is queued."""
    job = Job(template="job", stage="doctor", folder=Path("."), cwd=folder)
    asked = directives(job, Resources(gpus_per_node=1 if site.gpu_type else 0), site)
    try:
        queue.check("--wrap=true", *(shlex.split(option)[0] for option in asked))
    except UserError as error:
        return str(error)
    return ""


def rank_bytes(resources: Resources, settings: Settings, site: Site) -> float:
    """Memory that the job gives to a rank that computes on CPUs; without a limit where that is not known yet, as of GPUs."""
    words = resources.mem or site.sbatch.get("mem") or f"{GB_PER_CPU * resources.cpus_per_task}G"
    asked = re.fullmatch(r"(\d+)([KMGT]?)B?", words)
    if resources.gpus_per_node or not asked or not int(asked[1]):  # --mem=0: all that the node has
        return math.inf
    return int(asked[1]) * 1024 ** " KMGT".index(asked[2] or "M") / settings.train.ranks
