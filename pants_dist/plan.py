"""What to read, as a pure function of (seed, sample index): any rank, worker or restart computes the same sample.

Sample i of a run is fixed by the seed, the ordered cases and i alone. A counter-based generator (Philox, Salmon et al.
2011) is keyed by seed and i, so samples need no predecessor. Without weights an epoch is a keyed permutation, so no case
repeats before all were seen; with weights each sample draws its case. Step s of a run with global batch B is samples
s*B ... s*B + B - 1, dealt to ranks in turn: how many ranks there are changes who reads a sample, never which samples a
step has.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pants_dist.errors import UserError
from pants_dist.settings import Settings
from pants_dist.structures import LESION
from pants_dist.weights import requests_of, weigh

if TYPE_CHECKING:
    from pants_dist.splits import Splits
    from pants_dist.store import Store

SAMPLE_STREAM, EPOCH_STREAM = 0, 1  # independent generators under one seed
ARITHMETIC = 3  # counts up when the same fields would give other samples; part of the digest


@dataclass(frozen=True)
class Sample:
    """One patch to read: `structure` is what to centre on (None: anywhere), `draw` picks one of its voxels.

    What the patch then covers of the case is decided by geometry.py.
    """

    index: int
    case: str
    structure: str | None
    draw: int
    uniform_zyx: tuple[float, float, float]  # in [0, 1): the corner where there is nothing to centre on
    augment_seed: int


@dataclass(frozen=True)
class Plan:
    """Which patch every sample of a run is. `present[case]` lists the structures that a patch may be centred on."""

    seed: int
    batch: int  # samples a step, over all ranks
    cases: tuple[str, ...]
    present: dict[str, tuple[str, ...]]
    foreground_fraction: float  # share of samples centred on a structure that the case has
    structure_weights: Mapping[str, float] = field(default_factory=dict)  # against one another; 1 where none is given
    case_weights: tuple[float, ...] = ()  # how often each case is drawn (weights.py); none: by permutation

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError("plan: no cases to train on; check data.store, data.held_out_centers and data.val_fraction")

    @cached_property
    def parts(self) -> dict[str, str]:
        """sha256 of each thing that decides the samples; kept in each checkpoint, so that a resume on other data is refused."""
        centred = self.foreground_fraction, sorted(self.structure_weights.items())
        said: dict[str, Any] = {
            "arithmetic": ARITHMETIC, "seed": self.seed, "batch": self.batch, "cases": self.cases,
            "structures of the cases": [self.present[case] for case in self.cases], "centred patches": centred,
        }  # fmt: skip
        texts = {name: json.dumps(value).encode() for name, value in said.items()}
        texts["weights of the cases"] = np.array(self.case_weights, "<f8").tobytes()
        return {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}

    @cached_property
    def digest(self) -> str:
        """sha256 of all the parts."""
        return hashlib.sha256("".join(self.parts.values()).encode()).hexdigest()

    def sample(self, index: int, attempt: int = 0) -> Sample:
        """Sample number `index` of the run; later attempts are what takes its place where its case is damaged."""
        drawn = words(self.seed, SAMPLE_STREAM, index, 7 * attempt + 7)[7 * attempt :]
        which, structure, z, y, x = uniform(drawn[:5])
        case = self.cases[self._place(index, which) if attempt == 0 else self._any_place(which)]
        named = self._structure(case, structure) if self._centred(index) else None
        draw, augment_seed = (drawn[5:] >> np.uint64(2)).tolist()
        return Sample(index, case, named, draw, (float(z), float(y), float(x)), augment_seed)

    def _centred(self, index: int) -> bool:
        """Whether a sample is centred on a structure: spread evenly, so that of any few samples the right share is."""
        return int((index + 1) * self.foreground_fraction) > int(index * self.foreground_fraction)

    def _place(self, index: int, uniform: float) -> int:
        if self.case_weights:
            return self._any_place(uniform)
        epoch, place = divmod(index, len(self.cases))
        return int(_permutation(self.seed, epoch, len(self.cases))[place])

    def _any_place(self, uniform: float) -> int:
        count = len(self.cases)
        if self.case_weights:
            return min(int(np.searchsorted(self._reach, uniform * self._reach[-1], "right")), count - 1)
        return int(uniform * count)

    @cached_property
    def _reach(self) -> np.ndarray:
        return np.cumsum(self.case_weights)

    def _structure(self, case: str, uniform: float) -> str | None:
        names = self.present[case]
        weights = [self.structure_weights.get(name, 1.0) for name in names]
        left = uniform * sum(weights)
        for name, weight in zip(names, weights, strict=True):
            if left < weight:
                return name
            left -= weight
        return None

    def step_samples(self, step: int, rank: int, ranks: int) -> list[Sample]:
        """The samples of optimizer step `step` (from 0) that this rank reads."""
        return [self.sample(step * self.batch + place) for place in range(rank, self.batch, ranks)]


def plan_of(store: "Store", settings: Settings, splits: "Splits") -> Plan:
    """The plan of a run: training cases of the split, and what a patch of each may be centred on.

    Raises UserError where no case is annotated with a structure that is to be learnt, or shares do not fit the cases.
    """
    data = settings.data
    cases = tuple(splits.by_case.index[splits.by_case == "train"].tolist())
    rows = store.frame("center", *data.shares).loc[list(cases)]
    names = settings.model.outputs.structures
    if stray := sorted(set(names) - (annotated := store.annotated())):
        raise UserError(
            f"model.structures: {stray[0]!r} is annotated in no case of {store.path}; it has {', '.join(sorted(annotated))}"
        )
    has = store.holding(*dict.fromkeys((*names, LESION))).loc[list(cases)]
    rows["lesion"] = has[LESION]
    held = has[list(names)].to_numpy().tolist()
    present = {case: tuple(itertools.compress(names, row)) for case, row in zip(cases, held, strict=True)}
    requests = requests_of(rows, data)
    weights = tuple(weigh(requests, len(cases)).tolist()) if requests else ()
    return Plan(
        settings.seed, settings.train.batch, cases, present, data.foreground_fraction, data.structure_weights, weights
    )  # fmt: skip


def words(seed: int, stream: int, index: int, count: int) -> np.ndarray:
    """Random words (uint64). numpy promises the raw words of a bit generator for ever, unlike what is made of them."""
    return np.random.Philox(key=[seed, 2 * index + stream]).random_raw(count)


def uniform(drawn: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) of random words: their upper 53 bits."""
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.argsort(words(seed, EPOCH_STREAM, epoch, count), kind="stable").astype(np.int32)
