"""Names the rank that the others wait for. Each rank says what it does; where a step hangs, the ranks compare.

Ranks tell each other through the store of torchrun's agent, by which they also met: no files, no collectives, which are
what hangs. A thread of each rank publishes what it does every few seconds. Where a rank has been at one thing for too long,
it looks at all the others; the first of those that still answer says whom they wait for.
"""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

LATE_S = float(os.environ.get("PANTS_DIST_LATE_S", 60))  # seconds at one thing, from which on a step is said to hang
PATIENT_S = 15 * LATE_S  # the same for what may well take long
EVERY_S = LATE_S / 12  # between two words of a rank
SILENT = 3  # so many times without a new word: the process is stopped or gone
PHASES = {name: place for place, name in enumerate((
    "starting", "reading", "forward", "backward", "update", "logging", "validation", "checkpoint",
))}  # fmt: skip
PATIENT = {"starting", "validation"}


@dataclass(frozen=True)
class Doing:
    """What a rank does, at which step, for how long already, and its how-manieth word this is."""

    host: str
    step: int
    phase: str
    seconds: float
    word: int = 0


_now: tuple[str, int, float] = ("starting", 0, time.monotonic())
_spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)


def doing(phase: str, step: int | None = None) -> None:
    """Note what this process does from now on; costs nothing."""
    global _now
    before, at, since = _now
    _now = phase, at if step is None else step, time.monotonic()
    _spent[before] += _now[2] - since


def seconds_in(phase: str) -> float:
    """Seconds that this process has spent in a phase so far, without the stay there that goes on."""
    return _spent[phase]


def present(word: int = 0) -> Doing:
    """What this process does."""
    phase, step, since = _now
    return Doing(socket.gethostname(), step, phase, time.monotonic() - since, word)


def waited_for(ranks: dict[int, Doing], silent: set[int]) -> list[int]:
    """The ranks that all others wait for: those that are silent, else those that are the least far."""
    if silent:
        return sorted(silent)
    least = min((each.step, PHASES[each.phase]) for each in ranks.values())
    return [rank for rank, each in sorted(ranks.items()) if (each.step, PHASES[each.phase]) == least]


def in_words(ranks: dict[int, Doing], silent: set[int]) -> str:
    """One line on who is waited for. Where all do the same, a collective or the network hangs.

    The step is that of the ranks that answer: what a silent one said last may be seconds old.
    """
    culprits = waited_for(ranks, silent)
    step = min(each.step for rank, each in ranks.items() if rank not in silent or len(silent) == len(ranks))
    each = [
        f"rank {rank} on {ranks[rank].host} ({ranks[rank].phase}{', does not answer' if rank in silent else ''}, "
        f"{ranks[rank].seconds:.0f} s)"
        for rank in culprits[:8]
    ]
    more = f" and {len(culprits) - 8} more" if len(culprits) > 8 else ""
    if len(culprits) == len(ranks) > 1:
        return f"step {step + 1} hangs: all ranks are at the same thing, as when the network between them does: {each[0]}"
    return f"step {step + 1} hangs: waiting for {', '.join(each)}{more}"


class Heartbeat:
    """The thread of one rank, from `start` to `stop`. Without torchrun, as in tests of one process, there is none."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self._end = threading.Event()
        self._heard: dict[int, tuple[int, int]] = {}  # rank -> (its last word, how often it was the last)
        self._looks = 0
        self._told: tuple[str, int] | None = None

    def start(self) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._end.set()

    def _beat(self) -> None:
        from torch.distributed import PrefixStore, TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            shared = PrefixStore("heartbeat", TCPStore(address, port, is_master=False))
            word = 0
            while not self._end.wait(EVERY_S if word else 0):
                word += 1
                mine = present(word)
                shared.set(str(self.rank), json.dumps(asdict(mine)))
                if mine.seconds > (PATIENT_S if mine.phase in PATIENT else LATE_S):
                    self._compare(shared, mine)
                else:
                    self._heard, self._looks = {}, 0
        except (RuntimeError, OSError):  # the agent has gone, and we go with it
            return

    def _compare(self, shared: "Store", mine: Doing) -> None:
        keys = [str(rank) for rank in range(self.ranks)]
        if not shared.check(keys):  # a rank has not come as far as its first word
            return
        others = {rank: Doing(**json.loads(text)) for rank, text in enumerate(shared.multi_get(keys))}
        for rank, other in others.items():
            last, times = self._heard.get(rank, (0, 0))
            self._heard[rank] = (other.word, times + 1 if other.word == last else 0)
        silent = {rank for rank, (_, times) in self._heard.items() if times >= SILENT}
        self._looks += 1
        speaker = min(rank for rank in others if rank not in silent)
        if self._looks > SILENT and speaker == self.rank and self._told != (mine.phase, mine.step):
            self._told = mine.phase, mine.step
            print(f"pants-dist: {in_words(others, silent)}", file=sys.stderr, flush=True)
