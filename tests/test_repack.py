import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import REAL_CT, need

from conversion import merge, nifti
from conversion.export import export
from conversion.layouts import ABOUT, Source, recognise
from conversion.merge import Combinations
from conversion.nifti import BadImage
from conversion.repack import convert_case
from pants_dist.store import open_store, write_manifest
from pants_dist.structures import LESION, PANTS

AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])


def write_source(
    root: Path, ct: np.ndarray, masks: Mapping[str, np.ndarray], affine: np.ndarray = AFFINE, **ct_header: Any
) -> Source:
    """A case as files; the masks may be of any dtype."""
    nifti.write(root / "ct.nii.gz", ct, affine, **ct_header)
    paths = {name: root / "segmentations" / f"{name}.nii.gz" for name in masks}
    for name, path in paths.items():
        nifti.write(path, masks[name], affine)
    return Source("case_1", "test", root, root / "ct.nii.gz", paths, tuple(sorted(masks)))


def stored(source: Source, folder: Path) -> dict[str, Any]:
    """Convert a case into a store of its own at `folder`; returns its manifest row."""
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    row = convert_case(source, folder / "cases")
    write_manifest(folder, [row])
    return row


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3), seed=st.integers(0, 10_000), order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    dtype=st.sampled_from(["i2", "u2", "i4", "u1", "f4", "f8"]),
    scaling=st.sampled_from([(None, None), (2.0, -1024.0), (0.5, 0.25), (1.0000001, None)]),
    mask_dtype=st.sampled_from(["u1", "i1", "i2", "f4"]), density=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    own=st.sampled_from([0, 3, 100]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_export_gives_back_every_voxel(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple, seed: int, order: list, signs: tuple, dtype: str,
    scaling: tuple, mask_dtype: str, density: float, own: int,
) -> None:  # fmt: skip
    """Any shape, orientation, dtype, slope, overlap: export gives the source's HU, dtype, affine and masks."""
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("property")
    matrix = np.eye(3)[order] * signs * rng.uniform(0.5, 3, 3) + rng.normal(0, 0.02, (3, 3))
    affine = np.vstack([np.hstack([matrix, rng.normal(0, 99, (3, 1))]), [0, 0, 0, 1]]).astype(np.float32)
    low = 0 if dtype[0] == "u" else -1024
    ct = (rng.normal(0, 500, shape) if dtype[0] == "f" else rng.integers(low, 255, shape)).astype(dtype)
    names = [*rng.permutation(PANTS)[:5].tolist(), *(f"own_{n}" for n in range(own))]
    masks = {name: (rng.random(shape) < density).astype(mask_dtype) for name in names}
    source = write_source(root, ct, masks, affine, slope=scaling[0], inter=scaling[1])

    row = stored(source, root / "store")
    export(root / "store", "case_1", root / "out")

    before, after = nifti.read(source.image), nifti.read(root / "out" / "ct.nii.gz")
    assert np.array_equal(before.array_ijk, after.array_ijk)
    assert np.array_equal(before.affine, after.affine)
    assert (before.dtype, before.slope, before.inter) == (after.dtype, after.slope, after.inter)
    assert sorted(path.name for path in (root / "out" / "segmentations").iterdir()) == sorted(f"{n}.nii.gz" for n in names)
    for name in names:
        mask = nifti.read(root / "out" / "segmentations" / f"{name}.nii.gz").array_ijk
        assert mask.dtype == np.uint8 and np.array_equal(mask, masks[name] > 0.5), name
    assert json.loads(row["voxels"]) == {name: int(masks[name].sum()) for name in names}
    palette = [int(mask, 16) for mask in row["palette"]]
    assert palette == sorted(set(palette)) and palette[0] == 0


def test_more_than_255_combinations_take_two_bytes(tmp_path: Path) -> None:
    """28 random overlapping masks make thousands of combinations; no voxel of any is lost."""
    rng = np.random.default_rng(0)
    masks = {name: (rng.random((16, 17, 18)) < 0.3).astype(np.uint8) for name in PANTS}
    row = stored(write_source(tmp_path, np.zeros((16, 17, 18), np.int16), masks), tmp_path / "store")
    assert row["codes_dtype"] == "uint16" and len(row["palette"]) > 4000
    store = open_store(tmp_path / "store")
    _, codes = store.read_patch("case_1", (0, 0, 0), (18, 17, 16))
    view = nifti.original(store.lookup("case_1", PANTS)[codes].transpose(3, 0, 1, 2)[0], AFFINE)
    assert np.array_equal(view, masks[PANTS[0]])


@given(seed=st.integers(0, 10_000), voxels=st.integers(1, 3000), structures=st.integers(1, 40), coarse=st.booleans())
@settings(max_examples=60, deadline=None)
def test_compiled_loops_equal_numpy(seed: int, voxels: int, structures: int, coarse: bool) -> None:
    """The compiled loops and their numpy versions give the same codes, palettes, counts and positions."""
    rng = np.random.default_rng(seed)
    on = np.arange(256) > 0
    edges = np.sort(rng.integers(0, voxels + 1, (structures, 2)), axis=1)
    results = []
    masks = [((np.arange(voxels) >= a) & (np.arange(voxels) < b)) if coarse else rng.random(voxels) < 0.1 for a, b in edges]
    compiled = merge._add, merge._renumber, merge._locate
    for loops in (compiled, (merge._add_plain, merge._renumber_plain, merge._locate_plain)):
        merge._add, merge._renumber, merge._locate = loops
        try:
            combinations = Combinations(voxels)
            counted = [combinations.add(mask.astype(np.uint8) * 3, bit, on) for bit, mask in enumerate(masks)]
            codes, palette, counts, blocks = combinations.palette()
            where = merge.locate(codes, blocks, np.arange(blocks.sum()))
            results.append((np.array(counted), codes, palette, counts, blocks, where))
        finally:
            merge._add, merge._renumber, merge._locate = compiled
    for left, right in zip(*results, strict=True):
        assert np.array_equal(np.array(left, dtype=object), np.array(right, dtype=object))
    codes, palette = results[0][1:3]
    for bit, mask in enumerate(masks):
        assert np.array_equal(np.array([code >> bit & 1 for code in palette], bool)[codes], mask)


def test_foreground_lies_in_its_structure_and_in_every_lesion(tmp_path: Path) -> None:
    """Up to 2,000 coordinates a structure, all inside it; a big lesion leaves none of its small satellites out."""
    shape = (60, 50, 40)
    lesion = np.zeros(shape, np.uint8)
    lesion[5:35, 5:35, 5:35] = 1
    satellites = [(50, 45, 5), (50, 45, 20), (51, 46, 21), (55, 2, 39), (0, 0, 0)]  # the second and third touch
    for voxel in satellites:
        lesion[voxel] = 1
    liver = np.zeros(shape, np.uint8)
    liver[40:44, :4, :4] = 1
    empty = np.zeros(shape, np.uint8)
    source = write_source(tmp_path, np.zeros(shape, np.int16), {LESION: lesion, "liver": liver, "spleen": empty})
    row = stored(source, tmp_path / "store")
    store = open_store(tmp_path / "store")
    foreground = store.foreground("case_1")
    assert sorted(foreground) == ["liver", LESION]
    assert len(foreground["liver"]) == 64 and 1990 < len(foreground[LESION]) <= 2000
    for name, mask in ((LESION, lesion), ("liver", liver)):
        zyx = foreground[name]
        assert nifti.canonical(mask, AFFINE)[tuple(zyx.T)].all() and len(np.unique(zyx, axis=0)) == len(zyx)
    components = cc3d.connected_components(nifti.canonical(lesion, AFFINE).copy(), connectivity=26)
    assert set(components[tuple(foreground[LESION].T)]) == set(range(1, 6)) and components.max() == 5
    assert json.loads(row["voxels"])["spleen"] == 0


def test_foreground_hu_samples_annotated_voxels(tmp_path: Path) -> None:
    """256 HU, only of voxels inside some structure; all of them where there are fewer."""
    ct = np.arange(4000, dtype=np.int16).reshape(10, 20, 20)
    few, many = np.zeros(ct.shape, np.uint8), np.zeros(ct.shape, np.uint8)
    few[2, 3, :5], many[2:6] = 1, 1
    row = stored(write_source(tmp_path / "few", ct, {"liver": few}), tmp_path / "few" / "store")
    assert row["foreground_hu"] == ct[2, 3, :5].tolist()
    row = stored(write_source(tmp_path / "many", ct, {"liver": many, "spleen": few}), tmp_path / "many" / "store")
    assert len(set(row["foreground_hu"])) == 256 and set(row["foreground_hu"]) <= set(ct[many > 0].tolist())


def test_wide_and_fractional_hu_are_kept_and_noted(tmp_path: Path) -> None:
    """HU beyond int16 become int32, fractions stay floating point; a note says which and why."""
    wide, half = np.full((3, 3, 3), 40_000, np.int32), np.full((3, 3, 3), 0.5, np.float32)
    mask = {"colon": np.ones((3, 3, 3), np.uint8)}
    row = stored(write_source(tmp_path / "a", wide, mask), tmp_path / "a" / "store")
    assert row["image_dtype"] == "int32" and row["notes"] == ["HU kept as int32: beyond int16, from 40000 to 40000"]
    row = stored(write_source(tmp_path / "b", half, mask), tmp_path / "b" / "store")
    assert row["image_dtype"] == "float32"
    assert row["notes"] == ["HU kept as float32: not whole numbers, from 0.5 to 0.5"]


def test_a_mask_is_what_is_above_one_half(tmp_path: Path) -> None:
    """A slope that makes 1 load as 1.0000001, 0 and 255, and bool-like bytes all mean the same."""
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3] = True
    source = write_source(tmp_path, np.zeros(inside.shape, np.int16), {n: inside for n in PANTS[:4]})
    nifti.write(source.masks[PANTS[0]], inside, AFFINE, slope=1.0000001, inter=0.0)
    nifti.write(source.masks[PANTS[1]], inside.astype(np.uint8) * 255, AFFINE)
    nifti.write(source.masks[PANTS[2]], (~inside).astype(np.uint8), AFFINE, slope=-1.0, inter=1.0)
    nifti.write(source.masks[PANTS[3]], inside.astype(np.uint8), AFFINE, slope=0.4, inter=0.0)
    row = stored(source, tmp_path / "store")
    assert json.loads(row["voxels"]) == {PANTS[0]: 60, PANTS[1]: 60, PANTS[2]: 60, PANTS[3]: 0}


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_masks_with_more_than_two_values_are_refused(dtype: str, tmp_path: Path) -> None:
    """Whatever the dtype, a third value names the file and some of the values."""
    mask = (np.arange(60).reshape(3, 4, 5) % 3).astype(dtype)
    with pytest.raises(BadImage, match=r"liver.nii.gz: a mask with more than two values, 0, 1, 2"):
        stored(write_source(tmp_path, np.zeros((3, 4, 5), np.int16), {"liver": mask}), tmp_path / "store")


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Masks lie on the image's grid, index by index."""
    source = write_source(tmp_path, np.zeros((3, 4, 5), np.int16), {"liver": np.zeros((3, 4, 4), np.uint8)})
    with pytest.raises(BadImage, match=r"liver.nii.gz: shape \(3, 4, 4\) is not the image's \(3, 4, 5\)"):
        stored(source, tmp_path / "store")


def test_a_declared_tumor_without_lesion_voxels_is_not_annotated(tmp_path: Path) -> None:
    """`tumor?` = 1 and an empty lesion mask: the lesion is unknown, not absent."""
    mask = np.zeros((3, 4, 5), np.uint8)
    source = write_source(tmp_path, np.zeros((3, 4, 5), np.int16), {LESION: mask, "liver": mask + 1})
    declared = Source(**{**vars(source), "about": {**ABOUT, "tumor_flag": True}})
    row = stored(declared, tmp_path / "store")
    assert row["annotated"] == ["liver"] and "taken as not annotated" in row["notes"][0]
    assert stored(source, tmp_path / "other")["annotated"] == ["liver", LESION]


def test_the_real_scan_comes_back_voxel_equal(tmp_path: Path) -> None:
    """A real CT with 28 real masks: every exported voxel, dtype and affine is the source's."""
    source = recognise(need(REAL_CT)).sources[0]
    (tmp_path / "store" / "cases").mkdir(parents=True)
    write_manifest(tmp_path / "store", [convert_case(source, tmp_path / "store" / "cases")])
    files = export(tmp_path / "store", source.case, tmp_path / "out")
    assert len(files) == 29
    for path, original in zip(files, source.files, strict=True):
        before, after = nifti.read(original, scaled=False), nifti.read(path, scaled=False)
        assert np.array_equal(before.array_ijk, after.array_ijk) and before.dtype == after.dtype
        assert np.array_equal(before.affine, after.affine)
