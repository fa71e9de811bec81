"""Worker processes that may die: each works on one job at a time, and a death costs that one job.

The pools of the standard library give up altogether when a worker is killed, which is what happens to the one that
meets a volume too large for the memory of the machine.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from pants_dist.cluster import Died, die_with_parent

PRELOAD = ["conversion.repack"]  # imported once, in the process that the workers are forked from
PATIENCE_SECONDS = 5.0


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Any = None


def run_jobs(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Generator[tuple[Any, Any], None, None]:
    """Yield (job, function(job)) as they are done, in any order; (job, Died) where the job's worker died.

    `function` must be importable and should not raise. The workers end with the generator, and with this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    waiting, busy, idle = iter(jobs), list[_Worker](), list[_Worker]()
    try:
        while True:
            while len(busy) < workers and (job := next(waiting, None)) is not None:
                busy.append(_give(idle.pop() if idle else _hire(context, function), job))
            if not busy:
                return
            for worker in _finished(busy):
                busy.remove(worker)
                result = _result(worker)
                if not isinstance(result, Died):
                    idle.append(worker)
                yield worker.job, result
    finally:
        _dismiss(busy, idle)


def _hire(context: BaseContext, function: Callable[[Any], Any]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()  # so that its end closes when the worker dies
    return _Worker(process, ours)


def _give(worker: _Worker, job: Any) -> _Worker:
    worker.job = job
    with contextlib.suppress(BrokenPipeError):  # it died while idle: the answer will say so
        worker.connection.send(job)
    return worker


def _finished(busy: list[_Worker]) -> list[_Worker]:
    ready = wait([worker.connection for worker in busy])
    return [worker for worker in busy if worker.connection in ready]


def _result(worker: _Worker) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(PATIENCE_SECONDS)
        return Died(_cause(worker.process.exitcode))


def _cause(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "its worker process was killed: most likely out of memory; try fewer --workers"
    if exit_code is not None and exit_code < 0:
        return f"its worker process crashed ({signal.Signals(-exit_code).name})"
    return f"its worker process ended with code {exit_code}"


def _dismiss(busy: list[_Worker], idle: list[_Worker]) -> None:
    """Let workers end what they are at, so that they leave nothing half written; those that take too long are ended."""
    for worker in busy + idle:
        worker.connection.close()
    for worker in busy + idle:
        worker.process.join(PATIENCE_SECONDS)
        worker.process.terminate()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: jobs in, results out, until the other end is closed."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that hands out the jobs
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(function(connection.recv()))
