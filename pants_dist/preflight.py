"""What can be known to go wrong before anything is queued: said now, in seconds, instead of after a night in the queue."""

import contextlib
import math
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pants_dist import queue
from pants_dist.errors import UserError
from pants_dist.settings import Settings
from pants_dist.site import Site
from pants_dist.submit import GB_PER_CPU, Job, Resources, directives

SAMPLED = 200  # files of the store that are looked at
QUOTA_SECONDS = 3

if TYPE_CHECKING:
    from pants_dist.store import Store


class Preflight:
    """Checks of trainings that are to be queued at once: what several of them have in common is looked at once."""

    def __init__(self, resources: Resources, site: Site) -> None:
        self.resources, self.site = resources, site
        self._known: dict[str, Any] = {}

    def store(self, settings: Settings) -> "Store":
        """Opened, with SAMPLED of its cases read."""
        from pants_dist.launch import check_cases
        from pants_dist.store import open_store

        data, path = settings.data, str(Path(settings.data.store).resolve())
        store: Store = self._once(lambda: open_store(data.store), "store", path)
        self._once(lambda: check_cases(store, SAMPLED, data), "cases", path, data.on_damage)
        return store

    def opened(self, settings: Settings) -> tuple[Settings, str]:
        """The settings as they are kept, and a line on the store. Raises UserError where memory or store will not do."""
        from pants_dist import config
        from pants_dist.launch import check_shares, found_from_anywhere

        config.check(settings)
        check_shares(settings.train, self.resources.nodes)
        data, step = settings.data, (settings.model, settings.train, settings.optim.name, settings.optim.ema)
        self._once(lambda: self._check_memory(settings), "memory", *step, data.patch_zyx, data.spacing_mm_zyx)
        store = self.store(settings)
        return found_from_anywhere(settings, store), f"store digest {store.digest}"

    def fitted(self, settings: Settings) -> tuple[Settings, str]:
        """The same of a run whose split of the store is checked as well, which takes half a second for 36,390 cases."""
        from pants_dist.launch import fitting
        from pants_dist.splits import COLUMNS, patients_of, splits_of

        settings, _ = self.opened(settings)
        store, data = self.store(settings), settings.data
        patient = None if data.split_file else self._once(lambda: patients_of(store.frame(*COLUMNS)), "patients", data.store)
        splits = self._once(lambda: splits_of(store, data, patient), "split", data)
        asked = settings.model.outputs, settings.train.batch, settings.validation
        return settings, self._once(lambda: fitting(settings, store, splits).about, "plan", data, *asked)

    def _once(self, look: Callable[[], Any], *about: object) -> Any:
        """What `look` finds, which depends on nothing but `about`."""
        if (key := repr(about)) not in self._known:
            self._known[key] = look()
        return self._known[key]

    def _check_memory(self, settings: Settings) -> None:
        there = rank_bytes(self.resources, settings, self.site)
        if there < math.inf:
            from pants_dist import memory  # takes seconds

            memory.check(settings, there)


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
