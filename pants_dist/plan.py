"""What to read, as a pure function of (seed, sample index): any rank, worker or restart computes the same sample.

Sample i of a run is fixed by the seed, the ordered cases and i alone. A counter-based generator (Philox, Salmon et al.
2011) is keyed by seed and i, so samples need no predecessor; epochs are keyed permutations, so no case repeats before
all were seen. Step s of a run with global batch B is samples s*B ... s*B + B - 1, dealt to ranks in turn: how many
ranks there are changes who reads a sample, never which samples a step has.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from pants_dist.errors import UserError

SAMPLE_STREAM, EPOCH_STREAM = 0, 1  # independent generators under one seed


@dataclass(frozen=True)
class Sample:
    """One patch to read: `structure` is what to centre on (None: anywhere), `draw` picks one of its voxels."""

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
    foreground_fraction: float  # share of samples centred on a structure, uniform among those present

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError("plan: no cases to train on; check data.store, data.held_out_centers and data.val_fraction")

    def digest(self) -> str:
        """sha256 of everything that decides the samples; kept in each checkpoint, so that a resume on other data is refused."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def sample(self, index: int) -> Sample:
        """Sample number `index` of the run."""
        rng = _generator(self.seed, SAMPLE_STREAM, index)
        epoch, place = divmod(index, len(self.cases))
        case = self.cases[_permutation(self.seed, epoch, len(self.cases))[place]]
        centred, which = rng.random(2)
        names = self.present[case]
        structure = names[int(which * len(names))] if names and centred < self.foreground_fraction else None
        draw, augment_seed = (int(n) for n in rng.integers(2**62, size=2))
        z, y, x = (float(u) for u in rng.random(3))
        return Sample(index, case, structure, draw, (z, y, x), augment_seed)

    def step_samples(self, step: int, rank: int, ranks: int) -> list[Sample]:
        """The samples of optimizer step `step` (from 0) that this rank reads."""
        return [self.sample(step * self.batch + place) for place in range(rank, self.batch, ranks)]


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 2 * index + stream]))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return _generator(seed, EPOCH_STREAM, epoch).permutation(count)


def corner_of(
    sample: Sample, shape_zyx: tuple[int, ...], size_zyx: tuple[int, ...], voxels_zyx: np.ndarray | None
) -> tuple[int, int, int]:
    """First voxel (z, y, x) of the sample's patch in a case of this shape. Pure.

    With `voxels_zyx` (n, 3), the coordinates of the sample's structure, the patch is centred on voxel `draw mod n`,
    else it lies anywhere. It stays inside the case along every axis that is long enough, and is centred on the others.
    """
    corner = []
    for axis, (length, size) in enumerate(zip(shape_zyx, size_zyx, strict=True)):
        room = length - size
        if room <= 0:
            corner.append(room // 2)
        elif voxels_zyx is not None and len(voxels_zyx):
            corner.append(int(np.clip(voxels_zyx[sample.draw % len(voxels_zyx), axis] - size // 2, 0, room)))
        else:
            corner.append(int(sample.uniform_zyx[axis] * (room + 1)))
    z, y, x = corner
    return z, y, x
