"""How often each case is drawn, so that all shares that were asked for hold at once. Pure.

A request divides the cases into groups (by center, phase, lesion, any column) and says which share of the samples a group
gets. Weights are raked (iterative proportional fitting, Deming and Stephan 1940): request by request, the weights of each
group are scaled to its share, until every request holds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pants_dist.errors import UserError
from pants_dist.settings import Data

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = 500
CLOSE = 1e-4  # of a share: a hundredth of what is promised


@dataclass(frozen=True)
class Request:
    """`groups` names the group of each case, `shares` the share of some groups; `setting` is what asks for it.

    The groups that are not named share what is left, in their own proportions.
    """

    setting: str
    groups: Sequence[str]
    shares: Mapping[str, float]


def requests_of(table: "pd.DataFrame", data: Data) -> list[Request]:
    """What the settings ask for; nothing where cases are drawn as they come.

    `table` has a row a case, with center, lesion (whether it has one) and the columns that `data.shares` names.
    """
    requests = []
    if data.lesion_fraction is not None:
        groups = ["lesion" if lesion else "none" for lesion in table["lesion"]]
        wanted = {"lesion": data.lesion_fraction, "none": 1 - data.lesion_fraction}
        shares = {group: share for group, share in wanted.items() if share or group in groups}
        requests.append(Request("data.lesion_fraction", groups, shares))
    if data.center_temperature != 1:
        requests.append(tempered("data.center_temperature", table["center"].tolist(), data.center_temperature))
    for column, shares in data.shares.items():
        requests.append(Request(f"data.shares.{column}", table[column].astype(str).tolist(), shares))
    return requests


def tempered(setting: str, groups: Sequence[str], temperature: float) -> Request:
    """Every group gets a share that goes with its size to the power of `temperature`: 1 by size, 0 all alike."""
    sizes = {group: count**temperature for group, count in sorted(Counter(groups).items())}
    whole = sum(sizes.values())
    return Request(setting, groups, {group: size / whole for group, size in sizes.items()})


def weigh(requests: Sequence[Request], cases: int) -> np.ndarray:
    """Weight of each case, their sum 1. Raises UserError for shares that cannot be had, alone or together."""
    targets = [_targets(request) for request in requests]
    weights = np.full(cases, 1 / cases)
    for _ in range(ROUNDS):
        for numbers, shares in targets:
            have = np.bincount(numbers, weights, len(shares))
            weights *= np.divide(shares, have, out=np.zeros(len(shares)), where=have > 0)[numbers]
        off = [float(np.abs(np.bincount(numbers, weights, len(shares)) - shares).max()) for numbers, shares in targets]
        if max(off, default=0) <= CLOSE:
            return weights / weights.sum()
    worst = requests[int(np.argmax(off))]
    others = " and ".join(request.setting for request in requests if request is not worst)
    raise UserError(f"{worst.setting}: shares cannot be met together with {others} (off by {max(off):.2f}); change one")


def _targets(request: Request) -> tuple[np.ndarray, np.ndarray]:
    """(group number of each case, share of each group). What is not named is group 0."""
    setting, shares = request.setting, request.shares
    there = set(request.groups)
    if missing := sorted(set(shares) - there):
        listed = ", ".join(sorted(there)[:8])
        raise UserError(f"{setting}: no training case has {missing[0]!r}; there are {listed}")
    total = sum(shares.values())
    if min(shares.values(), default=0) < 0 or total > 1 + 1e-9:
        raise UserError(f"{setting}: shares {dict(shares)} sum to {total:g}; each must be 0 or more, their sum at most 1")
    if there == set(shares) and total < 1 - 1e-9:
        raise UserError(f"{setting}: shares {dict(shares)} name every value and sum to {total:g}; make it 1")
    names = {name: number for number, name in enumerate(sorted(shares), 1)}
    numbers = np.array([names.get(group, 0) for group in request.groups])
    return numbers, np.array([max(1 - total, 0.0), *(shares[name] for name in sorted(shares))])
