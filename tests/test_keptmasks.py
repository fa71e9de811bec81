"""Predicted masks kept beside the rows: equal to what was predicted, whole after a kill, bounded, read by patch."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pants_dist import keptmasks
from pants_dist.errors import DamagedError
from pants_dist.keptmasks import KeptMasks, drop_others, kept_in, read_kept

HEAD = {"checkpoint": "a"}


def masks_of(shape: tuple[int, int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """A pancreas and a lesion of random boxes, and a liver that no picture outlines."""
    rng, masks = np.random.default_rng(seed), {}
    for name in ("liver", "pancreas", "pancreatic_lesion"):
        masks[name] = np.zeros(shape, bool)
        low = [rng.integers(0, n // 2 + 1) for n in shape]
        masks[name][tuple(slice(a, a + n // 3 + 1) for a, n in zip(low, shape, strict=True))] = True
    return masks


def test_every_box_is_what_was_predicted(tmp_path: Path) -> None:
    """Of grids smaller and larger than a chunk, in any box, and of a case where nothing was predicted."""
    writer, shapes = KeptMasks(tmp_path, HEAD), {"a": (40, 70, 33), "b": (5, 7, 9), "c": (33, 40, 40)}
    for case, shape in shapes.items():
        masks = masks_of(shape) if case != "c" else {"pancreas": np.zeros(shape, bool)}
        writer.add(case, masks, worst=False)
    found = kept_in(writer.path)
    assert list(found) == ["a", "b", "c"] and found["a"].structures == ("pancreas", "pancreatic_lesion")
    for case, corner, size in (("a", (0, 0, 0), (40, 70, 33)), ("a", (31, 5, 30), (9, 1, 3)), ("b", (0, 3, 0), (5, 1, 9))):
        box, masks = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True)), masks_of(shapes[case])
        codes = read_kept(found[case], corner, size)
        for bit, name in enumerate(("pancreas", "pancreatic_lesion")):
            assert np.array_equal(codes >> bit & 1, masks[name][box])
    assert not read_kept(found["c"], (0, 0, 0), shapes["c"]).any()


def test_a_torn_record_is_left_out_and_written_again(tmp_path: Path) -> None:
    """Wherever a kill tears the last record, those before it stand, and the next writer goes on behind them."""
    writer = KeptMasks(tmp_path, HEAD)
    writer.add("a", masks_of((9, 9, 9)), worst=False)
    whole = writer.path.read_bytes()
    writer.add("b", masks_of((9, 9, 9), 1), worst=False)
    both = writer.path.read_bytes()
    for cut in (len(whole) + 5, len(whole) + 30, len(both) - 1):
        writer.path.write_bytes(both[:cut])
        assert list(kept_in(writer.path)) == ["a"]
        KeptMasks(tmp_path, HEAD).add("b", masks_of((9, 9, 9), 1), worst=False)
        assert writer.path.read_bytes() == both


def test_masks_of_another_checkpoint_go(tmp_path: Path) -> None:
    """The same writer begins anew; files of other writers go when the evaluation is finished."""
    for slice_ in ((1, 1), (1, 2)):
        KeptMasks(tmp_path, HEAD, slice_).add("a", masks_of((9, 9, 9)), worst=False)
    now = {"checkpoint": "b"}
    assert kept_in(KeptMasks(tmp_path, now).path) == {}
    drop_others(tmp_path, now)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.masks"]


def test_a_full_file_takes_the_worst_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = KeptMasks(tmp_path, HEAD)
    monkeypatch.setattr(keptmasks, "FULL_BYTES", 0)
    writer.add("fair", masks_of((9, 9, 9)), worst=False)
    writer.add("bad", masks_of((9, 9, 9)), worst=True)
    assert list(kept_in(writer.path)) == ["bad"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    """One wrong bit in a chunk, or in the index, is an error that names the file."""
    writer = KeptMasks(tmp_path, HEAD)
    writer.add("a", masks_of((40, 40, 40)), worst=False)
    kept, good = kept_in(writer.path)["a"], writer.path.read_bytes()
    for place in (kept.offset + 20, len(good) - 10):
        writer.path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DamagedError, match="predictions.masks"):
            read_kept(kept, (0, 0, 0), (40, 40, 40))


def test_a_slice_takes_no_memory_of_a_volume(tmp_path: Path) -> None:
    """A plane of 256^3 voxels, 16 MB as uint8, takes less than 1 MB, across any axis."""
    writer = KeptMasks(tmp_path, HEAD)
    writer.add("a", masks_of((256, 256, 256)), worst=False)
    kept = kept_in(writer.path)["a"]
    for axis in range(3):
        size = [256, 256, 256]
        size[axis] = 1
        read_kept(kept, (0, 0, 0), tuple(size))  # what is loaded once
        tracemalloc.start()
        read_kept(kept, (0, 0, 0), tuple(size))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
