"""The one door to SLURM's commands. Each is given a time to answer, and no word of theirs passes through a shell."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pants_dist.errors import UserError

PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class State:
    """What the queue says of a job: a word like RUNNING, and why it waits."""

    word: str
    reason: str = ""


def submit(script: Path, *options: str) -> str:
    """Hand the script to sbatch; returns the job's id. Raises UserError with sbatch's reason where it refuses."""
    answer = _ask("sbatch", "--parsable", *options, str(script))
    return answer.strip().splitlines()[-1].partition(";")[0]


def check(*words: str) -> None:
    """Raises UserError with sbatch's reason where it would not take a script, or options. Nothing is queued."""
    _ask("sbatch", "--test-only", *words)


def states(ids: Sequence[str]) -> dict[str, State]:
    """Job id -> state, of those that the queue still knows; of an array that waits, each element that was asked for."""
    if not ids or not shutil.which("squeue"):
        return {}
    user = f"--user={os.getuid()}"  # it refuses ids that it has forgotten, so it is asked for all of ours
    answer = _ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", user)
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 2]
    return {job: State(word, reason) for job, word, reason in rows if job in ids}


COLUMNS = ("job", "name", "state", "reason", "run for", "left", "nodes", "where")


def mine() -> list[dict[str, str]]:
    """The user's jobs that wait or run, a row each by COLUMNS. Raises UserError where there is no SLURM, or no answer."""
    answer = _ask("squeue", "--noheader", "--format=%i|%j|%T|%r|%M|%L|%D|%N", f"--user={os.getuid()}")
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == len(COLUMNS) - 1]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def accounted(ids: Sequence[str]) -> dict[str, State]:
    """Job id -> state from accounting; {} where the site keeps none."""
    if not ids or not shutil.which("sacct"):
        return {}
    try:
        answer = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={','.join(ids)}")
    except UserError:
        return {}
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 1]
    return {job: State(word.split()[0]) for job, word in rows if job in ids and word}


def cancel(ids: Sequence[str]) -> None:
    """scancel. Raises UserError with its reason."""
    _ask("scancel", *ids)


def interrupt(ids: Sequence[str]) -> None:
    """Tell the batch scripts alone to save and end. Raises UserError with scancel's reason."""
    _ask("scancel", "--batch", "--signal=INT", *ids)


def largest_array_index() -> int | None:
    """One less than MaxArraySize; None where SLURM does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) - 1 if found else None


def _ask(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]}: not on this machine; work on a login node of the cluster, or print the script with --dry-run "
            "and pass it on to sbatch there, or use --local"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]}: no answer in {PATIENCE_SECONDS} s; SLURM is busy or down, try again later") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(f"{words[0]} refused: {'; '.join(lines).replace(f'{words[0]}: error: ', '')}")
    return done.stdout
