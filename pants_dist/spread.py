"""An evaluation on all GPUs of this machine: a process each, which score every n-th case. Nodes share one by slices."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue

import pandas as pd
import torch

from pants_dist.cluster import die_with_parent, usable_cores
from pants_dist.errors import UserError
from pants_dist.evaluate import Evaluation, Order, open_evaluation
from pants_dist.rows import WHOLE, passed_over

SECONDS_BETWEEN_LOOKS = 1.0


def evaluate_on(
    order: Order,
    ranks: int | None = None,
    slice_: tuple[int, int] = WHOLE,
    on_case: Callable[..., None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame | None:
    """As `evaluate.evaluate`, by so many processes of this machine: one for each GPU, or one, unless told.

    `on_case(done, total)` is called now and then, `say(line)` where rows are there that are not taken. Raises UserError, too,
    where a process failed, once the others are through; what they scored is kept.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1")
    evaluation = open_evaluation(order)
    for line in filter(None, (passed_over(evaluation.folder / split, evaluation.head) for split in evaluation.splits)):
        say(line)
    ranks = ranks or max(torch.cuda.device_count(), 1)
    if ranks == 1:
        evaluation.score(slice_, on_case)
    else:
        _together(order, evaluation, ranks, slice_, on_case)
    return evaluation.finish()


def _together(
    order: Order, evaluation: Evaluation, ranks: int, slice_: tuple[int, int], on_case: Callable[..., None] | None
) -> None:
    context, mine = multiprocessing.get_context("forkserver"), evaluation.slice(slice_)
    context.set_forkserver_preload(["pants_dist.mortal", "pants_dist.evaluate"])  # ends with us; imported once for all
    refusals = context.SimpleQueue()
    slices = [(slice_[0] + slice_[1] * rank, slice_[1] * ranks) for rank in range(ranks)]
    arguments = [(order, part, rank, ranks, refusals) for rank, part in enumerate(slices)]
    processes = [context.Process(target=_rank, args=args, daemon=True) for args in arguments]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if on_case:
            known = {case for split in evaluation.splits for case in evaluation.known(split)}
            on_case(sum(case in known for _, case in mine), len(mine))
    if not refusals.empty():
        raise UserError(refusals.get())
    for number, process in enumerate(processes, 1):
        if process.exitcode:
            raise UserError(
                f"evaluate: process {number} of {ranks} ended with exit code {process.exitcode} (-9: killed, mostly for want "
                "of memory; use fewer --ranks); the same command goes on with what is not scored yet"
            )


def _rank(order: Order, slice_: tuple[int, int], rank: int, ranks: int, refusals: SimpleQueue) -> None:
    """One of the processes, on a GPU of its own, or on a share of the cores."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends our parent, and that us
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(rank % gpus)
    torch.set_num_threads(max(usable_cores() // ranks, 1))
    try:
        open_evaluation(order).score(slice_)
    except UserError as error:
        refusals.put(str(error))
