"""Targets against painting voxel by voxel in numpy, interpolation by scipy, and examples worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from small import make_store

from pants_dist.errors import UserError
from pants_dist.store import open_store
from pants_dist.structures import PANTS
from pants_dist.targets import (
    PAINT_ORDER,
    PredictedMasks,
    Target,
    decided,
    finished,
    holding,
    known,
    log_odds,
    region,
    table,
    target_of,
)  # fmt: skip

IN_PANCREAS = {"pancreas_body", "pancreas_head", "pancreas_tail", "pancreatic_duct", "pancreatic_lesion"}
NAMES = (*PANTS, "cyst")  # a dataset's own structure has the next bit
REGIONS = ("pancreas", "pancreatic_lesion", "liver", "cyst")
TARGETS = [target_of("two_class"), target_of("all_28"), target_of("regions", REGIONS)]


def overlapping(seed: int) -> tuple[list[int], np.ndarray, dict[str, np.ndarray]]:
    """A palette of nothing, each structure alone and 60 random sets; codes (9, 10, 11); the mask of each structure."""
    rng = np.random.default_rng(seed)
    random = rng.random((60, len(NAMES))) < rng.choice([0.04, 0.1, 0.4], (60, 1))
    sets = np.concatenate([np.zeros((1, len(NAMES)), bool), np.eye(len(NAMES), dtype=bool), random])
    palette = [sum(1 << int(bit) for bit in np.flatnonzero(row)) for row in sets]
    codes = rng.integers(0, len(palette), (9, 10, 11))
    return palette, codes, {name: sets[codes, bit] for bit, name in enumerate(NAMES)}


def painted(channels: tuple[str, ...], masks: dict[str, np.ndarray]) -> np.ndarray:
    """Channel number of each voxel: the structures painted one after another on a background of 0."""
    label = np.zeros(masks["liver"].shape, int)
    for number, name in enumerate(channels[1:], 1):
        for part in {"pancreas"} | IN_PANCREAS if name == "pancreas" else {name}:
            label[masks[part]] = number
    return label


@pytest.mark.parametrize("kind", ["two_class", "all_28"])
@pytest.mark.parametrize("seed", range(3))
def test_softmax_planes_are_the_painted_labels(kind: str, seed: int) -> None:
    """Structures that overlap at random, painted one by one: the same channel at every voxel, and inside is 1."""
    target = target_of(kind)
    palette, codes, masks = overlapping(seed)
    planes = table(target, palette, NAMES)[codes]
    label = painted(target.channels, masks)
    assert planes.dtype == np.float32 and planes.shape == (*codes.shape, len(target.planes))
    np.testing.assert_array_equal(planes[..., :-1], np.eye(len(target.channels))[label])
    assert (planes[..., -1] == 1).all() and target.planes[-1] == "inside"
    assert len(np.unique(label)) == len(target.channels)  # each is seen somewhere


@pytest.mark.parametrize("seed", range(3))
def test_regions_overlap_and_the_pancreas_is_all_within(seed: int) -> None:
    """Each region is its own mask, whatever else is there; the pancreas is the union of six."""
    palette, codes, masks = overlapping(seed)
    planes = table(target_of("regions", REGIONS), palette, NAMES)[codes]
    union = np.any([masks[name] for name in {"pancreas"} | IN_PANCREAS], axis=0)
    expected = [union, masks["pancreatic_lesion"], masks["liver"], masks["cyst"], np.ones(codes.shape)]
    np.testing.assert_array_equal(planes, np.stack(expected, axis=-1))


def test_a_structure_that_the_case_lacks_has_no_voxel() -> None:
    """A region of another dataset's own, and a palette of background alone."""
    palette, codes, masks = overlapping(0)
    planes = table(target_of("regions", ("cyst", "liver")), palette, PANTS)[codes]
    assert not planes[..., 0].any()
    np.testing.assert_array_equal(planes[..., 1], masks["liver"])
    np.testing.assert_array_equal(table(target_of("two_class"), [0], PANTS), [[1, 0, 0, 1]])


def test_one_store_serves_all(tmp_path: Path) -> None:
    """Each target's voxels of one stored case, whose codes are 1 liver, 2 pancreas, 3 pancreas and lesion."""
    store = open_store(make_store(tmp_path / "s", cases=2))
    case = store.cases[1]
    _, codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))
    assert set(np.unique(codes)) == {0, 1, 2, 3}
    palette, structures = store.palette(case), store.structures(case)
    expected = {
        "two_class": {"background": codes < 2, "pancreas": codes == 2, "pancreatic_lesion": codes == 3},
        "all_28": {"liver": codes == 1, "pancreas": codes == 2, "pancreatic_lesion": codes == 3, "spleen": codes > 3},
        "regions": {"pancreas": codes >= 2, "pancreatic_lesion": codes == 3, "liver": codes == 1, "cyst": codes > 3},
    }
    for target in TARGETS:
        planes = table(target, palette, structures)[codes]
        for name, mask in expected[target.kind].items():
            np.testing.assert_array_equal(planes[..., target.channels.index(name)], mask)


@pytest.mark.parametrize(
    ("there", "wins"),
    [
        (set(PANTS), "pancreatic_lesion"),
        (set(PANTS) - {"pancreatic_lesion"}, "pancreatic_duct"),
        ({"pancreas", "pancreas_head"}, "pancreas_head"),
        ({"pancreas", "duodenum"}, "pancreas"),
        ({"pancreas_tail", "spleen", "stomach", "colon"}, "pancreas_tail"),
        ({"pancreas_body", "veins", "aorta"}, "veins"),
        ({"pancreas_head", "common_bile_duct", "duodenum"}, "common_bile_duct"),
        ({"pancreatic_lesion", "pancreas", "superior_mesenteric_artery"}, "pancreatic_lesion"),
        ({"liver", "gall_bladder"}, "gall_bladder"),
        ({"celiac_artery", "aorta"}, "celiac_artery"),
        ({"kidney_left", "adrenal_gland_left"}, "adrenal_gland_left"),
        ({"prostate", "bladder"}, "prostate"),
        (set(), "background"),
    ],
)
def test_what_is_painted_last(there: set[str], wins: str) -> None:
    """all_28, by hand: a lesion above everything, parts above the pancreas, thin vessels and ducts above organs."""
    target = target_of("all_28")
    row = table(target, [sum(1 << PANTS.index(name) for name in there)], PANTS)[0]
    assert [name for name, value in zip(target.planes, row, strict=True) if value] == [wins, "inside"]


def test_each_of_the_28_is_painted_once() -> None:
    assert sorted(PAINT_ORDER) == sorted(PANTS)
    assert target_of("all_28").channels == ("background", *PAINT_ORDER)


def test_what_lies_in_the_pancreas() -> None:
    """Regions and parents by hand, with and without a pancreas channel."""
    assert set(region("pancreas")) == {"pancreas"} | IN_PANCREAS
    assert region("liver") == ("liver",)
    assert target_of("two_class").parents == (0, 0, 1)
    target = target_of("all_28")
    named = {name: target.channels[parent] for name, parent in zip(target.channels, target.parents, strict=True)}
    assert {name for name, parent in named.items() if parent == "pancreas"} == IN_PANCREAS
    assert set(named.values()) == {"background", "pancreas"}


def test_known_is_what_was_annotated() -> None:
    """By name; nobody annotates the background, and it is known everywhere."""
    assert known(target_of("two_class"), ["pancreas", "liver"]).tolist() == [True, True, False]
    assert known(target_of("regions", REGIONS), ["liver"]).tolist() == [False, False, True, False]
    assert known(target_of("all_28"), []).tolist() == [True] + [False] * 28
    assert known(target_of("all_28"), PANTS).all()


def test_the_background_is_not_scored() -> None:
    assert [len(target.channels) - len(target.structures) for target in TARGETS] == [1, 1, 0]
    assert [target.activation for target in TARGETS] == ["softmax", "softmax", "sigmoid"]
    assert target_of("two_class").structures == ("pancreas", "pancreatic_lesion")


@pytest.mark.parametrize(
    ("kind", "structures", "says"),
    [
        ("three_class", (), "model.target 'three_class': there is no such target; choose two_class, all_28 or regions"),
        ("regions", (), "model.structures is empty; name one structure or more"),
        ("regions", ("liver", "colon", "liver"), "model.structures: liver is named 2 times; name it once"),
    ],
)
def test_targets_that_there_are_not(kind: str, structures: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as raised:
        target_of(kind, structures)
    assert str(raised.value) == says


def interpolated(planes: np.ndarray, linear: np.ndarray, shift: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Planes (z, y, x, channels) as (1, channels, *size), each by scipy: trilinear, 0 outside the scan."""
    moved = [
        affine_transform(plane, linear, shift, size, order=1, mode="grid-constant") for plane in planes.transpose(3, 0, 1, 2)
    ]
    return np.stack(moved)[None]


@pytest.mark.parametrize("target", TARGETS, ids=[target.kind for target in TARGETS])
def test_finished_after_interpolation(target: Target) -> None:
    """A turned, scaled patch that hangs over the scan: truth and validity as numpy makes them of scipy's planes."""
    palette, codes, _ = overlapping(5)
    turn = np.array([[0.7, 0.2, 0.0], [-0.2, 0.6, 0.1], [0.0, -0.1, 0.8]])
    planes = interpolated(table(target, palette, NAMES)[codes], turn, np.array([-1.3, 0.4, 0.7]), (11, 10, 12))
    truth, valid = (part.numpy() for part in finished(target, torch.from_numpy(planes)))
    shares, inside = planes[:, :-1], planes[:, -1:]
    np.testing.assert_array_equal(valid, inside >= 0.5)
    assert 0 < valid.mean() < 1 and ((0 < inside) & (inside < 1)).any()
    if target.activation == "softmax":
        np.testing.assert_array_equal(
            truth, np.eye(len(target.channels), dtype=bool)[shares.argmax(1)].transpose(0, 4, 1, 2, 3)
        )
        assert (truth.sum(1) == 1).all()
    else:
        part = np.divide(shares, inside, out=np.zeros_like(shares), where=inside > 0)
        sure = abs(part - 0.5) > 1e-6  # a quotient rounds where a product does not
        np.testing.assert_array_equal(truth[sure], ((part >= 0.5) & valid)[sure])
        assert not truth[:, 1][~truth[:, 0]].any()  # a lesion is in the pancreas after interpolation too


def test_finished_by_hand() -> None:
    """Five voxels in a line: whole, mixed, a tie, just inside the scan, just outside it."""
    background, pancreas, lesion = [1, 0.3, 0.5, 0.2, 0.2], [0, 0.4, 0.5, 0.4, 0.28], [0, 0.3, 0, 0, 0]
    inside = [1, 1, 1, 0.6, 0.48]
    planes = torch.tensor([background, pancreas, lesion, inside])[None, :, None, None]
    truth, valid = finished(target_of("two_class"), planes)
    assert truth.dtype == valid.dtype == torch.bool
    assert valid[0, 0, 0, 0].tolist() == [True, True, True, True, False]
    assert truth[0, :, 0, 0].int().argmax(0)[:4].tolist() == [0, 1, 0, 1]
    planes = torch.tensor([[0, 0.49, 0.5, 0.3, 0.48], inside])[None, :, None, None]
    truth, valid = finished(target_of("regions", ("pancreas",)), planes)
    assert truth[0, 0, 0, 0].tolist() == [False, False, True, True, False]
    assert valid[0, 0, 0, 0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("seed", range(2))
def test_the_painted_pancreas_comes_back_as_a_union(seed: int) -> None:
    """all_28 of logits that are the painted truth: the pancreas is what lies in it, less what is painted over it."""
    target = target_of("all_28")
    palette, codes, masks = overlapping(seed)
    logits = torch.from_numpy(table(target, palette, NAMES)[codes]).movedim(-1, 0)[:-1]
    predicted = PredictedMasks(target, decided(target, logits))
    above = {
        "veins",
        "adrenal_gland_left",
        "adrenal_gland_right",
        "superior_mesenteric_artery",
        "celiac_artery",
        "common_bile_duct",
    }
    over = np.any([masks[name] for name in above], axis=0)
    last = masks["pancreatic_duct"] | masks["pancreatic_lesion"]
    union = np.any([masks[name] for name in {"pancreas"} | IN_PANCREAS], axis=0)
    np.testing.assert_array_equal(predicted["pancreas"], union & (~over | last))
    np.testing.assert_array_equal(predicted["pancreatic_lesion"], masks["pancreatic_lesion"])
    label = painted(target.channels, masks)
    for name in set(PANTS) - {"pancreas"}:
        np.testing.assert_array_equal(predicted[name], label == target.channels.index(name))


def test_predicted_masks_of_two_class() -> None:
    """The lesion is pancreas too. Structures come in the target's order, without the background."""
    logits = torch.tensor([[3.0, 0, 0, 1], [1, 2, 0, 1], [0, 0, 5, 0]]).reshape(3, 1, 1, 4)
    target = target_of("two_class")
    masks = PredictedMasks(target, decided(target, logits))
    assert list(masks) == ["pancreas", "pancreatic_lesion"] and len(masks) == 2
    assert masks["pancreas"].tolist() == [[[False, True, True, False]]]
    assert masks["pancreatic_lesion"].tolist() == [[[False, False, True, False]]]
    for name in ("background", "liver"):
        with pytest.raises(KeyError, match=name):
            masks[name]


def test_predicted_masks_of_regions() -> None:
    """Each by its own logit, above 0, whatever the others say."""
    logits = torch.tensor([[0.0, 0.1, -1], [2, -2, 0]]).reshape(2, 1, 1, 3)
    target = target_of("regions", ("pancreas", "pancreatic_lesion"))
    masks = PredictedMasks(target, decided(target, logits))
    assert masks["pancreas"].tolist() == [[[False, True, False]]]
    assert masks["pancreatic_lesion"].tolist() == [[[True, False, False]]]
    assert all(mask.dtype == bool for mask in masks.values())


def test_more_regions_than_a_byte_has_bits() -> None:
    """Eleven structures, each with its own random voxels."""
    names = PANTS[:11]
    target = target_of("regions", names)
    logits = torch.randn(11, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    decisions = decided(target, logits)
    assert decisions.shape == (2, 3, 4, 5) and decisions.dtype == np.uint8
    for name, mask in PredictedMasks(target, decisions).items():
        np.testing.assert_array_equal(mask, logits[names.index(name)] > 0)


def test_log_odds_are_those_of_the_probability() -> None:
    """Softmax: of the structure's channel against all others; sigmoid: its own logit."""
    logits = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probability = logits.softmax(0)[2]
    expected = torch.log(probability / (1 - probability))
    torch.testing.assert_close(log_odds(target_of("two_class"), logits, "pancreatic_lesion"), expected)
    regions = target_of("regions", ("liver", "pancreas", "pancreatic_lesion"))
    assert torch.equal(log_odds(regions, logits, "pancreas"), logits[1])


def test_codes_are_held_by_regions() -> None:
    """The pancreas holds the codes of its duct and its lesion; a structure that is no bit of the case holds none."""
    structures = ("pancreas", "pancreatic_duct", "liver")
    found = holding(("pancreas", "liver", "spleen"), [0b000, 0b001, 0b010, 0b100, 0b110], structures)
    assert found.T.tolist() == [[False, True, True, False, True], [False, False, False, True, True], [False] * 5]
