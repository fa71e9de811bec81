"""A scan slab by slab against MONAI's sliding window over the whole of it and one resampling back; memory of a long scan."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import map_coordinates
from torch import Tensor

from pants_dist import config, inference
from pants_dist.augment import resampled
from pants_dist.casefile import AIR_HU, RECORD
from pants_dist.errors import UserError
from pants_dist.inference import Windows, logits_of, mirror_axes, segmented
from pants_dist.loader import Reader
from pants_dist.model import Intensity, Segmenter
from pants_dist.plan import Sample
from pants_dist.store import open_store, write_case, write_manifest
from pants_dist.structures import LESION
from pants_dist.train import geometry_of

PATCH = (16, 24, 32)
SPACING = (2.0, 0.9, 0.7)
TARGETS = {
    "two_class": ["--model.target=two_class"],
    "all_28": ["--model.target=all_28"],
    "regions": ["--model.structures=[liver, pancreas, pancreatic_lesion]"],
}


def model_of(*more: str, seed: int = 0) -> Segmenter:
    """A small network with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    small = ["--data.store=s", f"--data.patch_zyx={list(PATCH)}", "--model.channels=[4, 8]"]
    return Segmenter(config.load("debug", [*small, *more]), Intensity(-100.0, 300.0, 60.0, 80.0)).eval()


def scan(*shape_zyx: int) -> np.ndarray:
    return np.random.default_rng(0).normal(50, 200, shape_zyx).astype(np.int16)


def scaled(step: Sequence[float]) -> Tensor:
    """Voxels `step` times as long, from the same outer corner on."""
    return torch.tensor([[*(np.eye(3)[n] * each), (each - 1) / 2] for n, each in enumerate(step)], dtype=torch.float64)


def block_reduce(image: np.ndarray, block: Sequence[int]) -> np.ndarray:
    """Means of blocks of voxels."""
    (z, y, x), (bz, by, bx) = (n // b for n, b in zip(image.shape, block, strict=True)), block
    return image.reshape(z, bz, y, by, x, bx).mean((1, 3, 5), dtype=np.float64)


@torch.no_grad()
def whole(model: Segmenter, image: np.ndarray, spacing: Sequence[float] = SPACING) -> Tensor:
    """The same by MONAI over the whole scan after one resampling, and back by SciPy."""
    trained = model.settings.data.spacing_mm_zyx or spacing
    step = [to / own for to, own in zip(trained, spacing, strict=True)]
    size = tuple(math.ceil(n / s) for n, s in zip(image.shape, step, strict=True))
    block = [max(int(s), 1) for s in step]
    merged = np.rint(block_reduce(np.pad(image, [(0, -n % b) for n, b in zip(image.shape, block, strict=True)], "edge"), block))
    left = scaled([s / b for s, b in zip(step, block, strict=True)])
    hu = resampled(torch.from_numpy(merged.astype(np.float32))[None], left, size, AIR_HU)
    logits = sliding_window_inference(hu[None], PATCH, 1, model, 0.5, mode="gaussian", cval=AIR_HU)[0]
    return by_scipy(logits, step, image.shape)


def by_scipy(logits: Tensor, step: Sequence[float], shape: Sequence[int]) -> Tensor:
    """Logits (C, z, y, x) at the centers of voxels 1 / `step` as long, linear between centers, the edge continued."""
    places = np.meshgrid(*[(np.arange(n) + 0.5) / s - 0.5 for n, s in zip(shape, step, strict=True)], indexing="ij")
    channels = [map_coordinates(channel.double().numpy(), places, order=1, mode="nearest") for channel in logits]
    return torch.from_numpy(np.stack(channels)).float()


@pytest.mark.parametrize("spacing", ["null", "[1.1, 1.0, 1.2]", "[5.0, 2.5, 0.5]"])
@pytest.mark.parametrize("target", TARGETS)
def test_slabs_are_the_whole(target: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in the grid of the scan, plane after plane, for each target: in its spacing, finer, coarser."""
    monkeypatch.setattr(inference, "VOXELS_AT_ONCE", 3 * 41 * 50)
    model, image = model_of(*TARGETS[target], f"--data.spacing_mm_zyx={spacing}"), scan(37, 41, 50)
    slabs = list(logits_of([model], image, SPACING))
    assert {slab.shape[1] for slab in slabs[:-1]} == {3}
    assert all(slab.dtype == torch.float32 and not slab.requires_grad for slab in slabs)
    torch.testing.assert_close(torch.cat(slabs, 1), whole(model, image), atol=2e-4, rtol=1e-4)


def test_inference_sees_what_training_saw(tmp_path: Path) -> None:
    """A scan of voxels 3.5, 3 and 1.5 times as fine as the patch's: the same HU, filter and all, where nothing is turned.

    The scan is as long as the patch, which lies in its middle. At the far end training reads no part of a block.
    """
    patch, shape, store = (14, 14, 14), (49, 42, 21), tmp_path / "store"
    (store / "cases").mkdir(parents=True)
    record = {name: None for name in RECORD.names} | {"case": "c", "spacing_mm_zyx": [1.0, 1.0, 1.0], "annotated": []}
    record |= {"palette": ["0x0", "0x1"], "structures": ["liver"]}
    image, middle = scan(*shape), np.array([[1 + 47 // 2, 1 + 40 // 2, 10]])
    row = write_case(store / "cases" / "c.ozx", record, image, np.zeros(shape, np.uint8), {"liver": middle})
    write_manifest(store, [row])
    small = ["--data.patch_zyx=[14, 14, 14]", "--data.spacing_mm_zyx=[3.5, 3, 1.5]", "--model.channels=[4, 8]"]
    settings = config.load("debug", [f"--data.store={store}", *small])
    model = Segmenter(settings, Intensity(-9999.0, 9999.0, 0.0, 1.0), open_store(store)).eval()
    sample = Sample(0, "c", "liver", 0, (0.0, 0.0, 0.0), 0)
    trained = model.patches(Reader(model.store, geometry_of(settings)).read([sample])).images[0, 0]
    seen: list[Tensor] = []
    model.forward = lambda hu: seen.append(hu) or hu.repeat(1, 3, 1, 1, 1)  # type: ignore[method-assign,func-returns-value]
    assert sum(slab.shape[1] for slab in logits_of([model], image, (1.0, 1.0, 1.0))) == shape[0]
    assert [tuple(hu.shape) for hu in seen] == [(1, 1, *patch)]
    torch.testing.assert_close(seen[0][0, 0, :-2], trained[:-2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(5, 41, 20), (16, 24, 32), (1, 7, 9), (17, 24, 33)])
def test_scans_about_as_small_as_a_window(shape: tuple[int, int, int]) -> None:
    """Shorter than the patch, exactly as long, and by one longer."""
    model, image = model_of(), scan(*shape)
    found = torch.cat(list(logits_of([model], image, SPACING)), 1)
    torch.testing.assert_close(found, whole(model, image), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_decided_is_that_of_the_logits(target: str) -> None:
    """Masks and the lesion's log-odds equal those of all logits at once, in plain torch."""
    model, image = model_of(*TARGETS[target], "--data.spacing_mm_zyx=[1.1, 1.0, 1.2]"), scan(30, 33, 50)
    logits = torch.cat(list(logits_of([model], image, SPACING)), 1)
    found, channels = segmented([model], image, SPACING), model.target.channels
    lesion = channels.index(LESION)
    if target == "regions":
        expected, odds = logits > 0, logits[lesion]
    else:
        expected = torch.nn.functional.one_hot(logits.argmax(0), len(channels)).movedim(-1, 0).bool()
        probability = logits.double().softmax(0)[lesion]
        odds = (probability / (1 - probability)).log().float()
    np.testing.assert_array_equal(found.masks[LESION], expected[lesion])
    if target != "two_class":
        np.testing.assert_array_equal(found.masks["liver"], expected[channels.index("liver")])
    assert found.lesion_log_odds_zyx is not None and found.lesion_log_odds_zyx.dtype == np.float32
    np.testing.assert_allclose(found.lesion_log_odds_zyx, odds, atol=1e-4)
    assert 0 < expected[lesion].sum() < expected[lesion].numel()


def test_several_models_are_averaged_before_the_decision() -> None:
    """The logits of three are the mean of each one's."""
    models, image = [model_of(seed=seed) for seed in range(3)], scan(20, 30, 40)
    together = torch.cat(list(logits_of(models, image, SPACING)), 1)
    each = torch.stack([torch.cat(list(logits_of([model], image, SPACING)), 1) for model in models])
    torch.testing.assert_close(together, each.mean(0), atol=1e-5, rtol=1e-5)
    assert (each[0] - each[1]).abs().max() > 0.1


def test_mirrored_windows_are_averaged() -> None:
    """With augment.mirror zyx a scan of one window has the mean of four: as it is, by z, by y, by both, never by x."""
    model, image = model_of("--augment.mirror=zyx"), scan(*PATCH)
    found = torch.cat(list(logits_of([model], image, SPACING, mirror=True)), 1)
    hu = torch.from_numpy(image).float()[None, None]
    with torch.no_grad():
        each = [model(hu.flip(axes)).flip(axes) for axes in ([], [2], [3], [2, 3])]
    torch.testing.assert_close(found, torch.stack(each).mean(0)[0], atol=1e-5, rtol=1e-5)


def test_mirroring_needs_training_that_did() -> None:
    """Only axes that every model was trained with; none, or only left-right, is refused."""
    assert mirror_axes([model_of("--augment.mirror=zy"), model_of("--augment.mirror=yx")]) == (1,)
    with pytest.raises(UserError, match="--mirror: training mirrored no patch along z or y"):
        mirror_axes([model_of("--augment.mirror=x")])


def test_models_that_differ_are_refused() -> None:
    """What differs is named, with both values."""
    with pytest.raises(UserError, match=r"data.spacing_mm_zyx is None in one and \(1.0, 1.0, 1.0\) in another"):
        next(logits_of([model_of(), model_of("--data.spacing_mm_zyx=[1, 1, 1]")], scan(9, 9, 9), SPACING))


@pytest.mark.parametrize("length", [16, 17, 24, 40, 41])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_windows_cover_everything(length: int, overlap: float) -> None:
    """From the first voxel to the last, without a gap, each overlapping the one before by the share or more."""
    starts = Windows((length, 24, 32), PATCH, overlap).starts(0)
    assert starts[0] == 0 and starts[-1] + 16 == length
    assert all(0 < after - before <= 16 * (1 - overlap) for before, after in zip(starts, starts[1:], strict=False))


LONG = """
import resource, sys, numpy as np, torch
from pants_dist import config
from pants_dist.inference import segmented
from pants_dist.model import Intensity, Segmenter
settings = config.load("debug", ["--data.store=s", "--data.patch_zyx=[64, 128, 128]", "--model.channels=[2, 2]",
    "--model.target=all_28", "--data.spacing_mm_zyx=[1.5, 1.5, 1.5]", "--validation.overlap=0"])
model = Segmenter(settings, Intensity(-100.0, 300.0, 60.0, 80.0)).eval()
planes = int(sys.argv[1])
image = np.random.default_rng(0).integers(-1000, 1000, (planes, 512, 512), np.int16)
found = segmented([model], image, (0.75, 0.75, 0.75))
print(found.masks["liver"].shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_long_scan_stays_under_16_gb(capsys: pytest.CaptureFixture) -> None:
    """512 x 512 x 1200 voxels with 28 structures, in a process of its own."""
    said = subprocess.run([sys.executable, "-c", LONG, "1200"], capture_output=True, text=True, check=True).stdout
    shape, peak = said.rsplit(maxsplit=1)
    with capsys.disabled():
        print(f"\npeak memory of a scan of 512 x 512 x 1200: {int(peak) / 1e9:.1f} GB")
    assert shape == "(1200, 512, 512)" and int(peak) < 16e9
