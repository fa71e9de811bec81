"""The arithmetic of levels and patches, against rules worked by hand and MONAI's own answers."""

import re
from itertools import product
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from monai.networks.nets import SegResNetDS

from pants_dist.settings import Model
from pants_dist.strides import at_each_level, dynunet_levels, multiples_near, network_misfits, strides_of

SPACINGS = [None, (1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (2.5, 0.8, 0.8), (2.0, 1.0, 1.0), (1.9, 1.0, 1.0), (8.0, 1.0, 2.0)]
CHANNELS = (12, 24, 48, 96)


def test_nnunet_of_thin_voxels_halves_all_axes_alike() -> None:
    """128^3 at 1 mm: 128, 64, 32, 16, 8, 4, so six levels; kernels are 3 throughout."""
    levels = dynunet_levels(9, (128, 128, 128), (1.0, 1.0, 1.0))
    assert [level.stride_zyx for level in levels] == [(1, 1, 1), *[(2, 2, 2)] * 5]
    assert {level.kernel_zyx for level in levels} == {(3, 3, 3)}


def test_nnunet_of_thick_slices_halves_the_plane_first() -> None:
    """40 x 224 x 224 at 2.5 x 0.8 x 0.8 mm, by hand.

    Slices are 3.1 times as thick, so the first level is flat and halves the plane alone; at 1.6 mm they are below twice.
    z goes 40, 20, 10, 5 and stops; the plane goes on to 7.
    """
    levels = dynunet_levels(9, (40, 224, 224), (2.5, 0.8, 0.8))
    assert [level.stride_zyx for level in levels] == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert [level.kernel_zyx for level in levels] == [(1, 3, 3), *[(3, 3, 3)] * 5]


def test_nnunet_leaves_a_single_axis_of_less_than_12() -> None:
    """4 x 4 x 8 could be halved along x alone, and is not; 4 x 4 x 12 is."""
    assert len(dynunet_levels(9, (4, 4, 8), (1.0, 1.0, 1.0))) == 1
    assert [level.stride_zyx for level in dynunet_levels(9, (4, 4, 12), (1.0, 1.0, 1.0))] == [(1, 1, 1), (1, 1, 2)]


def test_fewer_levels_than_the_patch_bears_end_in_full_kernels() -> None:
    """Two levels of flat voxels: the first has kernel 1 along z, the last has 3 everywhere."""
    first, last = dynunet_levels(2, (40, 224, 224), (5.0, 0.5, 0.5))
    assert (first.kernel_zyx, last.kernel_zyx, last.stride_zyx) == ((1, 3, 3), (3, 3, 3), (1, 2, 2))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("levels", [2, 3, 5])
def test_segresnet_strides_are_monais(levels: int, spacing: tuple[float, float, float] | None) -> None:
    """MONAI's network, asked which multiples it needs, says the same."""
    channels = tuple(8 * 2**level for level in range(levels))
    network = SegResNetDS(init_filters=8, blocks_down=(1,) * levels, resolution=spacing)
    model = Model(name="segresnet_ds", channels=channels)
    assert strides_of(model, (64, 64, 64), spacing) == tuple(int(factor) for factor in network.shape_factor())


def test_numbers_for_each_level() -> None:
    """The last number goes on; more than there are levels are cut."""
    assert at_each_level((1, 3), 4) == (1, 3, 3, 3)
    assert at_each_level((1, 2, 3), 2) == (1, 2)


def test_multiples_near() -> None:
    """Both neighbours, one that is a multiple already, and never 0."""
    assert [multiples_near(size, 8) for size in (30, 32, 3)] == [[24, 32], [32], [8]]


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(get_args(get_type_hints(Model)["name"])),
    patch=st.tuples(*[st.integers(1, 200)] * 3),
    spacing=st.sampled_from(SPACINGS),
)
def test_what_is_offered_fits(name: str, patch: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> None:
    """Whatever is wrong with a patch, every choice of the sizes that the refusal offers passes."""
    model = Model(name=name, channels=CHANNELS)  # type: ignore[arg-type]
    problems = list(network_misfits(model, patch, spacing))
    strides = strides_of(model, patch, spacing)
    if not problems:
        assert not any(size % stride for size, stride in zip(patch, strides, strict=True))
    for offered in problems:
        if sizes := re.search(r"use ([^:]+) along z, y, x", offered):
            choices = product(*([int(size) for size in axis.split(" or ")] for axis in sizes[1].split(", ")))
            assert not any(problem for choice in choices for problem in network_misfits(model, choice, spacing))
        elif channels := re.search(r"use model.channels \[([^]]+)\]", offered):
            fewer = Model(name=name, channels=tuple(int(n) for n in channels[1].split(",")))  # type: ignore[arg-type]
            assert not any("levels" in problem for problem in network_misfits(fewer, patch, spacing))
        elif least := re.search(r"use \[([^]]+)\] or more", offered):
            z, y, x = (int(size) for size in least[1].split(","))
            shallow = model if "one voxel" in offered else Model(name=name, channels=(12, 24))  # type: ignore[arg-type]
            assert not list(network_misfits(shallow, (z, y, x), spacing))
        else:
            raise AssertionError(offered)
