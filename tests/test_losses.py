"""The loss against MONAI where the definitions are one, against plain numpy elsewhere, and over two processes."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torch.nn.parallel import DistributedDataParallel

from pants_dist.losses import SegmentationLoss, deep_supervised, nearest
from pants_dist.targets import Target, target_of

TWO, ALL = target_of("two_class"), target_of("all_28")
REGIONS = target_of("regions", ("pancreas", "pancreatic_lesion", "liver"))
TARGETS = [TWO, ALL, REGIONS]
SIZE = (3, 4, 5)
WITHIN = {"pancreas_body", "pancreas_head", "pancreas_tail", "pancreatic_duct", "pancreatic_lesion"}

each_target = pytest.mark.parametrize("target", TARGETS, ids=[target.kind for target in TARGETS])
each_dice = pytest.mark.parametrize("batch_dice", [False, True], ids=["per sample", "per batch"])


def random_batch(target: Target, samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (float64), truth, valid and known of a batch: voxels outside, structures absent and structures unknown."""
    torch.manual_seed(seed)
    channels = len(target.channels)
    logits = 3 * torch.randn(samples, channels, *SIZE, dtype=torch.float64)
    if target.activation == "softmax":
        label = torch.randint(0, channels, (samples, 1, *SIZE))
        label[0][label[0] == channels - 1] = 0  # the first sample has no lesion
        truth = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, label, True)
    else:
        truth = torch.rand_like(logits) < 0.3
        truth[0, 1] = False
    known = torch.rand(samples, channels) < 0.6
    known[:, 0] |= target.activation == "softmax"
    return logits, truth, torch.rand(samples, 1, *SIZE) < 0.8, known


def everything(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Valid and known, all of it."""
    return torch.ones_like(logits[:, :1], dtype=torch.bool), torch.ones(logits.shape[:2], dtype=torch.bool)


def by_hand(target: Target, batch: tuple[Tensor, ...], batch_dice: bool) -> float:
    """The loss in numpy: voxels picked by indexing, channels merged by name, logarithms of probabilities."""
    entropies, sums = [], []
    for logits, truth, valid, known in zip(*(part.numpy() for part in batch), strict=True):
        z, t = logits[:, valid[0]], truth[:, valid[0]]
        if target.activation == "softmax":
            p = np.exp(z) / np.exp(z).sum(0)
            p, t = merged(target, known, p), merged(target, known, t)
            entropies.append(-np.log((p * t).sum(0)).mean())
            scored = known & (np.array(target.channels) != "background")
        else:
            p, scored = 1 / (1 + np.exp(-z)), known
            entropies.append(-np.where(t, np.log(p), np.log(1 - p))[known].mean() if known.any() else 0)
        sums.append([[(p * t).sum(1)[c], p.sum(1)[c], t.sum(1)[c]] if scored[c] else [np.nan] * 3 for c in range(len(z))])
    both, predicted, true = np.moveaxis(np.nansum(sums, 0)[None] if batch_dice else np.array(sums), -1, 0)
    counted = ~np.isnan(sums).all((0, -1))[None] if batch_dice else ~np.isnan(both)
    lost = 1 - (2 * both + 1e-5) / (predicted + true + 1e-5)
    dice = [row[there].mean() if there.any() else 0 for row, there in zip(lost, counted, strict=True)]
    return float(np.mean(entropies) + np.mean(dice))


def merged(target: Target, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What is unknown within a known pancreas added to the pancreas, the rest that is unknown to the background."""
    out = values.astype(float) * known[:, None]
    pancreas = target.channels.index("pancreas")
    for number, name in enumerate(target.channels):
        if not known[number]:
            out[pancreas if name in WITHIN and known[pancreas] else 0] += values[number]
    return out


@each_dice
@pytest.mark.parametrize("target", [TWO, ALL])
def test_softmax_with_everything_known_is_monais(target: Target, batch_dice: bool) -> None:
    from monai.losses import DiceCELoss

    logits, truth, *_ = random_batch(target, 3, 0)
    oracle = DiceCELoss(softmax=True, include_background=False, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5)
    loss = SegmentationLoss(target, batch_dice)(logits, truth, *everything(logits))
    assert loss.shape == ()
    torch.testing.assert_close(loss, oracle(logits, truth.double()))


@each_dice
def test_sigmoid_with_everything_known_is_monais(batch_dice: bool) -> None:
    from monai.losses import DiceLoss

    logits, truth, *_ = random_batch(REGIONS, 3, 0)
    dice = DiceLoss(sigmoid=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5)(logits, truth.double())
    expected = dice + binary_cross_entropy_with_logits(logits, truth.double())
    torch.testing.assert_close(SegmentationLoss(REGIONS, batch_dice)(logits, truth, *everything(logits)), expected)


@each_target
@each_dice
@pytest.mark.parametrize("seed", range(4))
def test_partly_known_is_as_by_hand(target: Target, batch_dice: bool, seed: int) -> None:
    """Voxels outside the scan, absent structures, unknown ones (a lesion within a known pancreas among them)."""
    batch = random_batch(target, 4, seed)
    assert SegmentationLoss(target, batch_dice)(*batch).item() == pytest.approx(by_hand(target, batch, batch_dice), rel=1e-9)


@each_target
@each_dice
def test_invalid_voxels_change_nothing(target: Target, batch_dice: bool) -> None:
    """Other logits and another truth outside the scan: the same loss to the bit, and no gradient there."""
    logits, truth, valid, known = random_batch(target, 3, 1)
    loss = SegmentationLoss(target, batch_dice)
    logits.requires_grad_()
    before = loss(logits, truth, valid, known)
    before.backward()
    outside = ~valid.expand_as(logits)
    assert (logits.grad[outside] == 0).all() and (logits.grad[~outside] != 0).any()
    other_logits = torch.where(valid, logits.detach(), logits.detach().flip(1) * 5 + 1)
    assert loss(other_logits, torch.where(valid, truth, truth.roll(1, 1)), valid, known) == before


@each_dice
def test_unknown_regions_have_no_gradient(batch_dice: bool) -> None:
    """Under sigmoid an unknown structure's logits and truth do not matter, in the sample where it is unknown."""
    logits, truth, valid, known = random_batch(REGIONS, 2, 2)
    known[:] = torch.tensor([[True, False, True], [True, True, False]])
    loss = SegmentationLoss(REGIONS, batch_dice)
    logits.requires_grad_()
    before = loss(logits, truth, valid, known)
    before.backward()
    gradient = logits.grad.abs().amax((2, 3, 4))
    assert ((gradient == 0) == ~known).all()
    unknown = ~known[:, :, None, None, None]
    assert loss(torch.where(unknown, -logits.detach(), logits.detach()), truth ^ unknown, valid, known) == before


MERGED = {  # what is unknown -> channels among which probability may move, and two among which it may not
    ("pancreatic_lesion",): ("pancreas", "pancreatic_lesion", "background"),
    ("pancreas", "pancreatic_lesion"): ("background", "pancreatic_lesion", None),
    ("pancreas",): ("background", "pancreas", "pancreatic_lesion"),
}


@pytest.mark.parametrize("unknown", MERGED, ids=lambda names: " and ".join(names))
@each_dice
def test_probability_moves_freely_between_merged_channels(unknown: tuple[str, ...], batch_dice: bool) -> None:
    """Under softmax only the sum of merged channels counts; between others it makes a difference."""
    logits, truth, valid, _ = random_batch(TWO, 2, 3)
    known = torch.tensor([[name not in unknown for name in TWO.channels]] * 2)
    loss = SegmentationLoss(TWO, batch_dice)
    one, other, apart = (TWO.channels.index(name) if name else None for name in MERGED[unknown])
    before = loss(logits, truth, valid, known)
    torch.testing.assert_close(loss(moved(logits, one, other), truth, valid, known), before, rtol=1e-12, atol=1e-12)
    relabelled = truth.clone()
    relabelled[:, [one, other]] = truth[:, [other, one]]
    assert loss(logits, relabelled, valid, known) == before
    if apart is not None:
        assert abs(loss(moved(logits, one, apart), truth, valid, known) - before) > 1e-3


def moved(logits: Tensor, one: int, other: int) -> Tensor:
    """Logits after a random part of the probability of channel `one` has gone to channel `other`."""
    probability = logits.softmax(1)
    part = probability[:, one] * torch.rand_like(probability[:, one])
    probability[:, one] -= part
    probability[:, other] += part
    return probability.log()


def test_unknown_structures_of_all_28() -> None:
    """Parts nobody annotated become pancreas, a liver nobody annotated background: as two_class with the sums of logits."""
    logits, _, valid, _ = random_batch(ALL, 2, 4)
    kept = torch.tensor([name in ("background", "pancreas", "pancreatic_lesion") for name in ALL.channels])
    lesion = torch.tensor([name == "pancreatic_lesion" for name in ALL.channels])
    within = torch.tensor([name in WITHIN | {"pancreas"} for name in ALL.channels]) & ~lesion
    few = torch.stack([logits[:, of].logsumexp(1) for of in (~within & ~lesion, within, lesion)], 1)
    label = torch.randint(0, 3, (2, 1, *SIZE))
    two = torch.zeros_like(few, dtype=torch.bool).scatter_(1, label, True)
    truth = torch.zeros_like(logits, dtype=torch.bool)
    truth[:, kept] = two  # background, pancreas and lesion stand in this order in both
    expected = SegmentationLoss(TWO)(few, two, valid, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(SegmentationLoss(ALL)(logits, truth, valid, kept.expand(2, -1)), expected)


@each_target
@each_dice
def test_nothing_known_or_nothing_valid_adds_0(target: Target, batch_dice: bool) -> None:
    """No NaN, in the loss or its gradient: a sample without annotations, and one that lies wholly outside the scan."""
    logits, truth, valid, known = random_batch(target, 2, 5)
    loss = SegmentationLoss(target, batch_dice)
    nothing = torch.tensor([name == "background" for name in target.channels]).expand_as(known)
    for outside, unknown in ((valid, nothing), (valid & False, nothing), (valid & False, known)):
        logits = logits.detach().float().requires_grad_()
        value = loss(logits, truth, outside, unknown)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert logits.grad.abs().max() <= 1e-6


@each_target
def test_a_sample_with_nothing_known_halves_the_loss_of_two(target: Target) -> None:
    """Per-sample Dice: it adds 0 and is counted as a sample, so that ranks and micro-batches stay comparable."""
    logits, truth, valid, known = random_batch(target, 2, 5)
    known[1] = torch.tensor([name == "background" for name in target.channels])
    loss = SegmentationLoss(target)
    alone = loss(logits[:1], truth[:1], valid[:1], known[:1])
    assert alone > 0.1
    torch.testing.assert_close(loss(logits, truth, valid, known), alone / 2)


@each_target
@each_dice
def test_gradient_is_that_of_finite_differences(target: Target, batch_dice: bool) -> None:
    """gradcheck in float64, with unknown structures and voxels outside."""
    logits, truth, valid, known = (part[:, :, :1, :1, :2] if part.ndim == 5 else part for part in random_batch(target, 2, 6))
    valid[0, 0, 0, 0, 0] = True
    loss = SegmentationLoss(target, batch_dice)
    assert torch.autograd.gradcheck(lambda x: loss(x, truth, valid, known), logits.requires_grad_())


@each_target
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_logits_are_taken_as_float32(target: Target, dtype: torch.dtype) -> None:
    """The loss is float32, that of the same values in float32 to the bit; the gradient comes back in their own type."""
    logits, truth, valid, known = random_batch(target, 2, 7)
    loss = SegmentationLoss(target)
    short = logits.to(dtype).requires_grad_()
    value = loss(short, truth, valid, known)
    assert value.dtype == torch.float32 and value == loss(short.detach().float(), truth, valid, known)
    value.backward()
    assert short.grad.dtype == dtype and short.grad.isfinite().all() and short.grad.any()


@each_target
def test_confidently_wrong_still_learns(target: Target) -> None:
    """Logits so far apart that float32 probabilities are 0 and 1: a finite loss, and a gradient that corrects them."""
    truth = torch.zeros(1, len(target.channels), *SIZE, dtype=torch.bool)
    truth[:, 0] = True
    logits = torch.full(truth.shape, 0.0)
    logits[:, 0], logits[:, 1] = -150, 150
    logits.requires_grad_()
    loss = SegmentationLoss(target)(logits, truth, *everything(logits))
    loss.backward()
    assert loss.isfinite() and loss > 50
    assert (logits.grad[:, 0] < 0).all() and (logits.grad[:, 1] > 0).all()


@each_target
def test_micro_batches_do_not_change_the_loss(target: Target) -> None:
    """Per-sample Dice: two micro-batches weighed by their samples are the whole batch."""
    batch = random_batch(target, 5, 8)
    loss = SegmentationLoss(target)
    first, second = (loss(*(part[of] for part in batch)) for of in (slice(2), slice(2, 5)))
    torch.testing.assert_close(loss(*batch), (2 * first + 3 * second) / 5)


RANKS, SAMPLES = 2, 4
RUNS = list(product(range(len(TARGETS)), [False, True]))


def learner(target: Target, batch_dice: bool) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """A network of one voxel's reach, a loss, and a batch whose logits are the network's images."""
    batch = random_batch(target, SAMPLES, 9)
    torch.manual_seed(9)
    channels = len(target.channels)
    return nn.Conv3d(channels, channels, 1).double(), SegmentationLoss(target, batch_dice), batch


def on_rank(rank: int, folder: str) -> None:
    """Each run's loss and gradient after DDP's average, of this rank's half of the batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found = {}
    for number, batch_dice in RUNS:
        network, loss, batch = learner(TARGETS[number], batch_dice)
        images, truth, valid, known = (part[rank * 2 : rank * 2 + 2] for part in batch)
        ddp = DistributedDataParallel(network)
        value = loss(ddp(images), truth, valid, known)
        value.backward()
        found[f"{number} {batch_dice}"] = [value.detach(), *(weight.grad for weight in network.parameters())]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_do_not_change_the_loss(tmp_path: Path) -> None:
    """Two processes: losses average to that of one process with the whole batch, and so do the gradients."""
    multiprocessing.spawn(on_rank, (str(tmp_path),), RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for number, batch_dice in RUNS:
        network, loss, (images, *others) = learner(TARGETS[number], batch_dice)
        whole = loss(network(images), *others)
        whole.backward()
        (first, *gradients), (second, *same) = (found[f"{number} {batch_dice}"] for found in ranks)
        torch.testing.assert_close((first + second) / 2, whole.detach(), rtol=1e-9, atol=0)
        for weight, gradient, twin in zip(network.parameters(), gradients, same, strict=True):
            torch.testing.assert_close(gradient, weight.grad, rtol=1e-6, atol=1e-9)
            assert torch.equal(gradient, twin)
        halves = [loss(network(images[of]), *(part[of] for part in others)) for of in (slice(2), slice(2, 4))]
        gathered = abs(sum(halves) / 2 - whole).item() > 1e-4
        assert gathered == batch_dice  # halves alone do not make a batch's Dice: it was gathered


def test_nearest_is_torchs_nearest_exact() -> None:
    """Every ratio along each axis, broken ones too, where a center may lie just between two voxels; types stay as they are."""
    volume = torch.rand(1, 2, 26, 30, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for divided in range(1, 37):
        size = (min(divided, 26), min(divided, 30), divided)
        assert torch.equal(nearest(volume, size), interpolate(volume, size, mode="nearest-exact"))
    assert nearest(volume > 0.5, (13, 30, 9)).dtype == torch.bool


@each_target
@each_dice
def test_deep_supervision_weighs_each_resolution(target: Target, batch_dice: bool) -> None:
    """Three heads, the second as fine along z: 4/7, 2/7 and 1/7 of their losses with torch's own coarser truth."""
    torch.manual_seed(10)
    sizes = ((4, 8, 8), (4, 4, 4), (2, 2, 2))
    outputs = [torch.randn(2, len(target.channels), *size, dtype=torch.float64) for size in sizes]
    label = torch.randint(0, len(target.channels), (2, 1, *sizes[0]))
    truth = torch.zeros_like(outputs[0], dtype=torch.bool).scatter_(1, label, True)
    valid, known = torch.rand(2, 1, *sizes[0]) < 0.8, torch.rand(2, len(target.channels)) < 0.7
    known[:, 0] = True
    loss, expected = SegmentationLoss(target, batch_dice), 0.0
    for logits, weight in zip(outputs, (4 / 7, 2 / 7, 1 / 7), strict=True):
        coarse = [interpolate(part.double(), logits.shape[2:], mode="nearest-exact") == 1 for part in (truth, valid)]
        expected += weight * loss(logits, *coarse, known).item()
    assert deep_supervised(loss, outputs, truth, valid, known).item() == pytest.approx(expected, rel=1e-12)
    single = deep_supervised(loss, outputs[:1], truth, valid, known)
    torch.testing.assert_close(single, loss(outputs[0], truth, valid, known))
