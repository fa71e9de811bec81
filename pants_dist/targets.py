"""What a network learns: palette codes become output channels by a look-up table, and channels become masks again.

A target's table has a row a palette code and a column a channel, then one column more, `inside`, of ones. The columns, looked
up, are interpolated as one plane each, with 0 outside the scan; so `inside` says where there is a scan, and codes are never
interpolated. `finished` makes truth and validity of the planes. One store serves all targets.

Under softmax a voxel has one channel: channels are painted in their order, later over earlier. Under sigmoid structures may
overlap. The pancreas is everywhere the union of its mask, its parts, its duct and its lesion: under softmax these are painted
over it and take its voxels away, and `PredictedMasks` gives them back. Other structures that are painted over it keep theirs.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pants_dist.errors import UserError
from pants_dist.structures import LESION, PANCREAS, PANCREAS_PARTS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Kind = Literal["two_class", "all_28", "regions"]
BACKGROUND = "background"
INSIDE = "inside"
WITHIN_PANCREAS = (*PANCREAS_PARTS, "pancreatic_duct", LESION)
PAINT_ORDER = (  # large before small, and what lies in another after it, so that no structure is lost under its neighbour
    "lung_left", "lung_right", "liver", "colon", "stomach", "spleen", "kidney_left", "kidney_right", "bladder", "femur_left",
    "femur_right", "prostate", "aorta", "duodenum", "postcava", "gall_bladder", PANCREAS, *PANCREAS_PARTS, "veins",
    "adrenal_gland_left", "adrenal_gland_right", "superior_mesenteric_artery", "celiac_artery", "common_bile_duct",
    "pancreatic_duct", LESION,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A network's output channels by name, and what makes probabilities of them; with softmax the first is background."""

    kind: Kind
    channels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid"]

    @property
    def structures(self) -> tuple[str, ...]:
        """What is scored: every channel but the background."""
        return tuple(name for name in self.channels if name != BACKGROUND)

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the table's columns: the channels, then `inside`."""
        return *self.channels, INSIDE

    @property
    def parents(self) -> tuple[int, ...]:
        """For each channel that of the structure it lies in: the pancreas for its parts, duct and lesion, else channel 0.

        Under softmax this is where a structure's voxels are labelled in a dataset that did not annotate it (losses.py).
        """
        pancreas = self.channels.index(PANCREAS) if PANCREAS in self.channels else 0
        return tuple(pancreas if name in WITHIN_PANCREAS else 0 for name in self.channels)


def target_of(kind: Kind, structures: Sequence[str] = ()) -> Target:
    """The target of that kind. Raises UserError for a kind that there is not, and for regions without or with equal names.

    two_class: background, pancreas, lesion; softmax. all_28: background and PanTS's 28 in PAINT_ORDER; softmax.
    regions: `structures`, sigmoid; the other kinds have their own.
    """
    if kind == "two_class":
        return Target(kind, (BACKGROUND, PANCREAS, LESION), "softmax")
    if kind == "all_28":
        return Target(kind, (BACKGROUND, *PAINT_ORDER), "softmax")
    if kind != "regions":
        raise UserError(f"model.target {kind!r}: there is no such target; choose two_class, all_28 or regions")
    if not structures:
        raise UserError("model.structures is empty; name one structure or more")
    if twice := [name for name in structures if structures.count(name) > 1]:
        raise UserError(f"model.structures: {twice[0]} is named {structures.count(twice[0])} times; name it once")
    return Target(kind, tuple(structures), "sigmoid")


def region(name: str) -> tuple[str, ...]:
    """The structures that together are this one: the pancreas with all that lies in it; any other alone."""
    return (PANCREAS, *WITHIN_PANCREAS) if name == PANCREAS else (name,)


def table(target: Target, palette: Sequence[int], structures: Sequence[str]) -> "np.ndarray":
    """Look-up table (codes, channels + 1), float32 of 0 and 1: `table(...)[codes]` are the target's planes, last axis.

    `palette` has the bitmask of each code and `structures` the name of each bit, as the store gives them for a case. A
    structure that is no bit there has no voxel. The last column, `inside`, is 1.
    """
    import numpy as np  # not above: settings use this module, and `pants-dist --help` is quick

    columns = holding(target.channels, palette, structures)
    if target.activation == "softmax":
        last = columns.shape[1] - 1 - columns[:, ::-1].argmax(axis=1)
        columns = np.arange(columns.shape[1]) == np.where(columns.any(axis=1), last, 0)[:, None]
    return np.column_stack([columns, np.ones(len(palette))]).astype(np.float32)


def holding(names: Sequence[str], palette: Sequence[int], structures: Sequence[str]) -> "np.ndarray":
    """Which codes lie in which of these structures, as regions: bool (codes, names). `[:, n][codes]` is the mask of one."""
    import numpy as np

    bits = {name: 1 << bit for bit, name in enumerate(structures)}
    wanted = [sum(bits.get(part, 0) for part in region(name)) for name in names]
    return np.array([[mask & bit != 0 for bit in wanted] for mask in palette], bool).reshape(len(palette), len(names))


def known(target: Target, annotated: Sequence[str]) -> "np.ndarray":
    """Which channels (channels,) the case's dataset annotated, bool; the background always is."""
    import numpy as np

    return np.array([name == BACKGROUND or name in annotated for name in target.channels])


def finished(target: Target, planes: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Truth (B, channels, z, y, x) and validity (B, 1, z, y, x), bool, of interpolated planes (B, channels + 1, z, y, x).

    Softmax: each voxel has the channel with most of it, the earlier of two alike. Sigmoid: a structure is where it has at
    least half of what lies inside the scan. A voxel is valid with at least half of it inside; elsewhere the loss ignores it.
    """
    shares, inside = planes[:, :-1], planes[:, -1:]
    valid = inside >= 0.5
    if target.activation == "sigmoid":
        return (shares >= 0.5 * inside) & valid, valid
    truth = valid.new_zeros(shares.shape).scatter_(1, shares.argmax(1, keepdim=True), True)
    return truth, valid


def log_odds(target: Target, logits: "Tensor", name: str) -> "Tensor":
    """How likely a structure's own channel is against all others, as a logit (z, y, x), of logits (channels, z, y, x)."""
    own = target.channels.index(name)
    if target.activation == "sigmoid":
        return logits[own]
    others = [channel for channel in range(len(target.channels)) if channel != own]
    return logits[own] - logits[others].logsumexp(0)


def decided(target: Target, logits: "Tensor") -> "np.ndarray":
    """What each voxel is, in as few bits as say it: uint8 (planes, z, y, x) of logits (channels, z, y, x).

    Softmax: one plane, the number of the channel with the greatest logit, the earlier of two alike. Sigmoid: one bit a
    channel, set where its logit is above 0, the first channel in the highest bit of the first plane.
    """
    import numpy as np

    if target.activation == "softmax":
        return logits.argmax(0, keepdim=True).byte().cpu().numpy()
    return np.packbits((logits > 0).cpu().numpy(), axis=0)


class Masks(Mapping[str, "np.ndarray"]):
    """Boolean masks (z, y, x) by structure, each made when it is asked for: all at once they would take gigabytes."""

    def __init__(self, names: Sequence[str], make: Callable[[str], "np.ndarray"]) -> None:
        self._names, self._make = tuple(names), make

    def __getitem__(self, name: str) -> "np.ndarray":
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PredictedMasks(Masks):
    """Masks of a target's structures out of what is `decided`.

    Sigmoid: where the structure's bit is set. Softmax: where the channel is the structure's own, or that of what lies in it.
    """

    def __init__(self, target: Target, decisions: "np.ndarray") -> None:
        super().__init__(target.structures, self._mask)
        self.target, self._decisions = target, decisions

    def _mask(self, name: str) -> "np.ndarray":
        channel = self.target.channels.index(name)
        if self.target.activation == "sigmoid":
            return self._decisions[channel // 8] & (128 >> channel % 8) != 0
        mask = self._decisions[0] == channel
        for part in set(region(name)) & set(self.target.channels) - {name}:
            mask |= self._decisions[0] == self.target.channels.index(part)
        return mask


def swapped_left_right(names: tuple[str, ...]) -> list[int]:
    """Channel permutation after a left-right flip: channel n of the result is channel `[n]` of the flipped one.

    A structure's other side has the same name with left and right exchanged as whole words; one without either stays.
    Raises UserError where the other side is not among the names: flipped, it would be taken for this one.
    """
    places = {name: place for place, name in enumerate(names)}
    others = [re.sub(r"(?<![a-z])(?:left|right)(?![a-z])", _other_side, name) for name in names]
    for name, other in zip(names, others, strict=True):
        if other not in places:
            raise UserError(f"there is {name} but no {other}; add it to the structures, or do not flip along x")
    return [places[other] for other in others]


def _other_side(side: re.Match[str]) -> str:
    return "right" if side[0] == "left" else "left"
