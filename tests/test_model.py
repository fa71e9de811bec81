"""The way from a window to network input and targets, and back from logits to the scan."""

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import make_store, trained_here

from pants_dist import config
from pants_dist.errors import UserError
from pants_dist.geometry import Geometry
from pants_dist.inference import logits_of
from pants_dist.loader import Reader
from pants_dist.model import Intensity, Segmenter
from pants_dist.plan import Plan
from pants_dist.store import Store, open_store
from pants_dist.train import geometry_of, intensity_of

SMALL = ["--data.patch_zyx=[16, 16, 32]", "--model.channels=[4, 8]", "--optim.ema=0.9", "--data.store=s"]
INTENSITY = Intensity(-100.0, 300.0, 60.0, 80.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("model") / "s", cases=4))


def settings(*more: str) -> config.Settings:
    return config.load("debug", [*SMALL, *more])


def micro_of(store: Store, wanted: config.Settings, index: int = 0):
    present = {case: tuple(store.foreground(case)) for case in store.cases}
    plan = Plan(0, 2, tuple(store.cases), present, 1.0)
    return Reader(store, geometry_of(wanted)).read([plan.sample(index), plan.sample(index + 1)])


def test_without_changes_the_network_sees_the_voxels_of_the_store(store: Store) -> None:
    """The input is the standardised HU and the targets are the masks of the patch, air and nothing where it overhangs."""
    wanted = settings("--data.patch_zyx=[48, 16, 32]")
    module, micro = Segmenter(wanted, INTENSITY, store), micro_of(store, wanted)
    patches = module.patches(micro)
    images, targets = patches.images, patches.truth
    for number, part in enumerate(micro.parts):
        corner = tuple(round(c + row[3]) for c, row in zip(part.window.corner_zyx, part.window.to_image, strict=True))
        image, codes = store.read_patch(part.sample.case, corner, (48, 16, 32))
        assert torch.equal(images[number, 0], INTENSITY(torch.from_numpy(image.astype(np.float32))))
        masks = store.lookup(part.sample.case, wanted.model.structures)[codes]
        assert np.array_equal(targets[number].numpy(), np.moveaxis(masks, -1, 0))
        inside = np.zeros((48, 16, 32), bool)
        inside[tuple(slice(max(-c, 0), n - c) for c, n in zip(corner, store.shape_zyx(part.sample.case), strict=True))] = True
        assert np.array_equal(patches.valid[number, 0].numpy(), inside) and not inside.all()


def test_turned_and_resampled_targets_follow_the_image(store: Store) -> None:
    """Under spacing, turns, zooms and flips, where the image has the liver's HU its mask is: they went the same way."""
    turned = "--augment.rotation_degrees=30", "--augment.scale=[0.7, 1.4]", "--augment.mirror=zy"
    wanted = settings("--data.spacing_mm_zyx=[1.5, 1.5, 1.5]", *turned)
    module, agreed = Segmenter(wanted, INTENSITY, store), []
    for index in range(0, 24, 2):
        micro = micro_of(store, wanted, index)
        images, targets, valid, _ = module.patches(micro)
        assert images.shape == (2, 1, 16, 16, 32) and targets.shape == (2, 3, 16, 16, 32)
        hu, liver = images[:, 0] * 80 + 60, targets[:, 0]
        agreed += [float((hu[liver] > 50).float().mean()), float((hu[~targets.any(1) & valid[:, 0]] < 20).float().mean())]
    assert np.nanmean(agreed) > 0.9


def test_a_left_right_flip_needs_pairs(store: Store) -> None:
    """Mirrored along x, left and right structures change places; one without its other side is refused."""
    paired = settings("--augment.mirror=x", '--model.structures=["kidney_left", "kidney_right", "liver"]')
    module = Segmenter(paired, INTENSITY, store)
    flipped = [micro_of(store, paired, index).parts[0].window.to_image[2][2] < 0 for index in range(20)]
    assert 3 < sum(flipped) < 17
    assert module.patches(micro_of(store, paired, flipped.index(True))).truth.shape[1] == 3
    with pytest.raises(UserError, match="augment.mirror is 'x': there is kidney_left but no kidney_right"):
        config.check(settings("--augment.mirror=x", '--model.structures=["kidney_left", "liver"]'))


@pytest.mark.parametrize("spacing", ["null", "[1.0, 1.0, 1.0]", "[2.0, 2.0, 2.0]"])
def test_logits_come_back_to_the_grid_of_the_scan(store: Store, spacing: str) -> None:
    """A network that gives back a ramp of HU, at whatever spacing it works, predicts that ramp in the source grid."""
    wanted = settings(f"--data.spacing_mm_zyx={spacing}")
    module = Segmenter(wanted, INTENSITY, store).eval()
    module.forward = lambda hu: hu.repeat(1, 3, 1, 1, 1)  # type: ignore[method-assign]
    z, y, x = np.indices((20, 30, 40))
    ramp = (10 * z + 3 * y - 2 * x).astype(np.int16)
    logits = torch.cat(list(logits_of([module], ramp, (2.0, 1.0, 1.5))), 1)
    assert logits.shape == (3, 20, 30, 40)
    inner = (slice(3, -3),) * 3
    assert np.abs(logits[1].numpy() - ramp)[inner].max() < 0.51  # means of blocks are whole HU, as in training


def test_every_network_learns_at_all_its_resolutions(store: Store) -> None:
    """The loss of a network with deep supervision reaches every weight, coarse heads included."""
    wanted = settings("--model.name=dynunet", "--model.channels=[4, 8, 8, 8]", "--data.patch_zyx=[32, 32, 32]")
    module = Segmenter(wanted, INTENSITY, store)
    assert len(module.network(torch.zeros(1, 1, 32, 32, 32))) == 2
    module.loss(micro_of(store, wanted)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.network.parameters() if p.ndim > 1)


def test_intensity_changes_are_those_of_the_sample(store: Store) -> None:
    """A patch is changed by its own seed alone: the same in another micro-batch; its targets are not touched."""
    plain, wanted = settings(), settings("--augment.intensity=true")
    module, other = Segmenter(wanted, INTENSITY, store), Segmenter(plain, INTENSITY, store)
    differ = 0
    for index in range(12):
        changed, following = (module.patches(micro_of(store, wanted, n)) for n in (index, index + 1))
        assert torch.equal(changed.images[1], following.images[0])
        before = other.patches(micro_of(store, plain, index))
        assert torch.equal(changed.truth, before.truth)
        differ += not torch.equal(changed.images, before.images)
    assert differ > 3


def test_intensities_are_percentiles_of_the_cases_given_and_kept(store: Store) -> None:
    """0.5 and 99.5 percentiles, then mean and deviation of what is clipped; a resumed model sees as the saved one did."""
    hu = [np.array(store.value(case, "foreground_hu")) for case in store.cases]
    some, every = np.concatenate(hu[:2]), np.concatenate(hu)
    low, high = np.quantile(some, [0.005, 0.995])
    clipped = np.minimum(np.maximum(some, low), high)
    found = intensity_of(store, tuple(store.cases[:2]))
    assert astuple(found) == pytest.approx((low, high, clipped.mean(), clipped.std()), rel=1e-5)
    assert abs(np.quantile(every, 0.005) - low) > 1e-3
    before, after, kept = Segmenter(settings(), found, store), Segmenter(settings(), INTENSITY, store), dict[str, object]()
    before.on_save_checkpoint(kept)
    after.on_load_checkpoint(kept)
    assert after.intensity == found


def test_geometry_follows_the_settings() -> None:
    """What the reader is told is what the settings say."""
    wanted = settings("--data.spacing_mm_zyx=[1, 2, 3]", "--augment.mirror=z", "--data.max_window_mb=3")
    assert geometry_of(wanted) == Geometry((16, 16, 32), (1.0, 2.0, 3.0), 0.0, (1.0, 1.0), "z", 3 << 20)
    assert geometry_of(replace(wanted, data=replace(wanted.data, spacing_mm_zyx=None))).spacing_mm_zyx is None


@pytest.mark.long
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    """With train.compile the network is one that torch has compiled, and after two steps its weights are the plain one's."""
    make_store(tmp_path / "s", cases=4)
    more = [f"--data.store={tmp_path}/s", f"--runs={tmp_path}", "--train.steps=2", "--train.ranks=1", "--loader.kind=local"]
    weights = {}
    for name in ("false", "true"):
        torch._dynamo.utils.counters.clear()
        run = trained_here(settings(*more, "--optim.name=sgd", "--tracking.wandb=off", f"--train.compile={name}"), name)
        weights[name] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == (name == "true")
    assert weights["true"].keys() == weights["false"].keys()
    for key, value in weights["false"].items():
        torch.testing.assert_close(weights["true"][key], value, rtol=1e-4, atol=1e-5)
