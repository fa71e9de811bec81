"""How far each network shrinks a patch, and which sizes fit it. Whole numbers alone: settings are checked without torch."""

import math
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pants_dist.settings import Model

Zyx = tuple[int, int, int]
Mm = tuple[float, float, float]

CUBES = (1.0, 1.0, 1.0)
SMALLEST_EDGE = 4  # voxels that nnU-Net leaves of an axis at the last level
SWIN_STAGES, SWIN_UNIT, SWIN_STRIDE = 4, 12, 32  # transformer stages, what its channels divide by, total stride
DOUBLING = ("segresnet_ds", "swin_unetr", "mednext")  # MONAI gives them twice the channels at every level
PUBLISHED_BLOCKS = {"segresnet_ds": "[1, 2, 2, 4]", "swin_unetr": "[2]", "mednext": "[2]"}


class Level(NamedTuple):
    """One resolution of a network: its kernels, and its stride against the level above."""

    kernel_zyx: Zyx
    stride_zyx: Zyx


def strides_of(model: "Model", patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> Zyx:
    """Total stride along z, y, x, of which a patch must be a multiple. Without a spacing voxels count as cubes."""
    levels, spacing = len(model.channels), spacing_mm_zyx or CUBES
    if model.name == "dynunet":
        z, y, x = zip(*(level.stride_zyx for level in dynunet_levels(levels, patch_zyx, spacing)), strict=True)
        return math.prod(z), math.prod(y), math.prod(x)
    if model.name == "segresnet_ds":
        return _segresnet_strides(levels, spacing)
    stride = SWIN_STRIDE if model.name == "swin_unetr" else 2 ** (levels - 1)
    return stride, stride, stride


def dynunet_levels(most: int, patch_zyx: Zyx, spacing_mm_zyx: Mm) -> list[Level]:
    """nnU-Net's kernels and strides, finest level first; at most `most` levels, fewer where the patch bears no more.

    Isensee et al. 2021, as in get_pool_and_conv_props of nnunetv2: from level to level those axes are halved that keep 4
    voxels and whose spacing is below twice the finest of them; a single axis left to halve must have 12 voxels. An axis
    has kernel 1 until its spacing is below twice the finest, then 3. The last level has kernel 3 along all.
    """
    sizes, spacing = list(patch_zyx), list(spacing_mm_zyx)
    kernel, stride = [1, 1, 1], [1, 1, 1]
    levels: list[Level] = []
    while len(levels) < most - 1 and (halved := _halved_axes(sizes, spacing)):
        kernel = [3 if mm < 2 * min(spacing) else before for before, mm in zip(kernel, spacing, strict=True)]
        levels.append(_level(kernel, stride))
        stride = [2 if axis in halved else 1 for axis in range(3)]
        sizes = [-(-size // step) for size, step in zip(sizes, stride, strict=True)]
        spacing = [mm * step for mm, step in zip(spacing, stride, strict=True)]
    return [*levels, _level([3, 3, 3], stride)]


def _level(kernel: list[int], stride: list[int]) -> Level:
    return Level((kernel[0], kernel[1], kernel[2]), (stride[0], stride[1], stride[2]))


def _halved_axes(sizes: list[int], spacing: list[float]) -> list[int]:
    long = [axis for axis in range(3) if sizes[axis] >= 2 * SMALLEST_EDGE]
    halved = [axis for axis in long if spacing[axis] < 2 * min(spacing[other] for other in long)]
    return [] if len(halved) == 1 and sizes[halved[0]] < 3 * SMALLEST_EDGE else halved


def _segresnet_strides(levels: int, spacing_mm_zyx: Mm) -> Zyx:
    """MONAI's rule (scales_for_resolution): fine axes alone are halved until voxels are nearly cubes, then all."""
    alone = [math.floor(math.log2(max(spacing_mm_zyx) / mm)) for mm in spacing_mm_zyx]
    z, y, x = (2 ** sum(step < count or step >= max(alone) for step in range(levels - 1)) for count in alone)
    return z, y, x


def at_each_level(numbers: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """`numbers` for each of the levels, the last of them for all that follow: (1, 3) of 4 levels is (1, 3, 3, 3)."""
    return (*numbers, *numbers[-1:] * levels)[:levels]


def network_misfits(model: "Model", patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> Iterator[str]:
    """What keeps the network from being built or from taking the patch, a line each, with the values that would fit."""
    if len(model.channels) < 2:
        yield f"model.channels is {list(model.channels)}; the network needs two levels or more, like [16, 32]"
    elif problem := _channel_misfit(model) or _block_misfit(model):
        yield problem
    elif problem := _patch_misfit(model, patch_zyx, spacing_mm_zyx):
        yield problem


def _channel_misfit(model: "Model") -> str | None:
    levels, unit = len(model.channels), 1
    if model.name == "swin_unetr":
        levels, unit = SWIN_STAGES, SWIN_UNIT
    first = max(model.channels[0] // unit, 1) * unit
    fitting = [first * 2**level for level in range(levels)]
    if model.name not in DOUBLING or list(model.channels) == fitting:
        return None
    return f"model.channels is {list(model.channels)}, but {model.name} doubles them from level to level; use {fitting}"


def _block_misfit(model: "Model") -> str | None:
    for setting, numbers in (("blocks", model.blocks), ("expansion", model.expansion)):
        if not 1 <= len(numbers) <= len(model.channels):
            fits = f"1 to {len(model.channels)} numbers, one a level (model.channels)"
            return f"model.{setting} is {list(numbers)}; give {fits}: the last counts for all levels that follow"
    if model.name == "unet" and len(set(model.blocks)) > 1:
        return f"model.blocks is {list(model.blocks)}, but unet has as many at every level; use [{model.blocks[0]}]"
    if model.name in PUBLISHED_BLOCKS and 0 in model.blocks:
        published = PUBLISHED_BLOCKS[model.name]
        return f"model.blocks is {list(model.blocks)}, but {model.name} has no level without; use {published}, as published"
    if model.name != "mednext" and model.expansion != (2,):
        return f"model.expansion is {list(model.expansion)}, which is mednext's alone; leave it at [2] with {model.name}"
    return None


def _patch_misfit(model: "Model", patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> str | None:
    given, levels, borne = list(patch_zyx), len(model.channels), _levels_borne(model, patch_zyx, spacing_mm_zyx)
    if borne < 2:
        return f"data.patch_zyx is {given}, too small for two levels of {model.name}; use [12, 12, 12] or more"
    if borne < levels:
        fits = f"use model.channels {list(model.channels[:borne])} or a larger patch"
        return f"data.patch_zyx is {given}, which bears {borne} of the {levels} levels (model.channels) of {model.name}; {fits}"
    strides = strides_of(model, patch_zyx, spacing_mm_zyx)
    if patch_zyx == strides:
        more = [*strides[:2], 2 * strides[2]]
        return f"data.patch_zyx is {given}, which leaves one voxel at the last level of {model.name}; use {more} or more"
    if not _divides(strides, patch_zyx):
        near = _nearest_that_fit(model, patch_zyx, spacing_mm_zyx)
        fits = ", ".join(" or ".join(str(size) for size in sizes) for sizes in near)
        multiples = ", ".join(str(stride) for stride in strides)
        needs = f"{model.name} with {list(model.channels)} (model.channels) needs multiples of {multiples}"
        return f"data.patch_zyx is {given}, but {needs}: use {fits} along z, y, x"
    return None


def _divides(strides: Zyx, patch_zyx: Zyx) -> bool:
    return not any(size % stride for size, stride in zip(patch_zyx, strides, strict=True))


def _levels_borne(model: "Model", patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> int:
    levels = len(model.channels)
    return len(dynunet_levels(levels, patch_zyx, spacing_mm_zyx or CUBES)) if model.name == "dynunet" else levels


def _nearest_that_fit(model: "Model", patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> list[list[int]]:
    """Sizes along z, y, x, any choice of which fits: the multiples on both sides, else the next one above.

    Above, nnU-Net's rule gives the strides that it gave for the patch itself; below, a level may get lost.
    """
    strides = strides_of(model, patch_zyx, spacing_mm_zyx)
    both = [multiples_near(size, stride) for size, stride in zip(patch_zyx, strides, strict=True)]
    if all(_takes(model, (z, y, x), spacing_mm_zyx) for z, y, x in product(*both)):
        return both
    above = [sizes[-1:] for sizes in both]
    return above if above != [[stride] for stride in strides] else [*above[:2], [2 * strides[2]]]


def _takes(model: "Model", patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> bool:
    strides = strides_of(model, patch_zyx, spacing_mm_zyx)
    enough = _levels_borne(model, patch_zyx, spacing_mm_zyx) == len(model.channels)
    return enough and patch_zyx != strides and _divides(strides, patch_zyx)


def multiples_near(value: int, step: int) -> list[int]:
    """The multiples of `step` on both sides of `value`; a value that is one already stands alone."""
    return sorted({size for size in (value // step * step, -(-value // step) * step) if size > 0})
