"""What can be known to go wrong before anything is queued: said now, in seconds, instead of after a night in the queue."""

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pants_dist.errors import DamagedError, UserError
from pants_dist.site import Site
from pants_dist.store import Store

SAMPLED = 200  # files of the store that are looked at
QUOTA_SECONDS = 3


def check_files(store: Store) -> None:
    """Raises UserError where one of 200 cases, drawn with a fixed seed, is missing or has another size than it had."""
    cases = list(store.cases)
    for case in random.Random(0).sample(cases, min(SAMPLED, len(cases))):
        try:
            store.open_case(case)
        except (DamagedError, OSError) as error:
            raise UserError(f"store {store.path}: {error}; run pants-dist verify {store.path}") from error


def quota_lines(site: Site, folder: Path) -> list[str]:
    """What is known of the quota at `folder`, in the words of the first command that answers; "unknown" never refuses."""
    for command in _quota_commands(site, folder):
        if shutil.which(command[0]):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(command, capture_output=True, text=True, timeout=QUOTA_SECONDS, check=True)
                if said := [line.rstrip() for line in done.stdout.splitlines() if line.strip()]:
                    return said
    return ["unknown"]


def _quota_commands(site: Site, folder: Path) -> Iterator[list[str]]:
    if site.quota_command:
        yield list(site.quota_command)
    yield ["lfs", "quota", "-h", str(folder)]
    yield ["mmlsquota"]
    yield ["quota", "-s"]
