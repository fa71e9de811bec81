"""Every shipped config is trained for two steps, its sizes made small, and does what it says that it is about."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import make_store, plan_of, trained_here

from pants_dist import config
from pants_dist.config import Settings
from pants_dist.plan import Plan
from pants_dist.store import Store, open_store
from pants_dist.targets import PAINT_ORDER
from pants_dist.tracking import read_metrics

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALLER = {
    "data.patch_zyx": "[16, 32, 32]", "model.channels": "[4, 8, 16]", "train.steps": "2", "train.ranks": "1",
    "train.batch": "2", "train.micro_batch": "1", "train.log_every": "1", "loader.readers": "1",
    "loader.kind": "local", "validation.every": "null", "tracking.wandb": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of three centers and two datasets, of which one has not annotated the liver."""
    return make_store(tmp_path_factory.mktemp("configs") / "store", cases=12, datasets=("PanTS", "MSD"))


def small(name: str, store: Path, runs: Path) -> Settings:
    """The config with small sizes, holding out a center that there is if it holds out any."""
    overrides = SMALLER | {"data.store": str(store), "runs": str(runs)}
    shipped = config.load(name, [])
    if shipped.data.held_out_centers:
        overrides["data.held_out_centers"] = "[Center C]"
    if shipped.data.subset:
        overrides["data.subset"] = "4"
    return config.load(name, [f"--{setting}={value}" for setting, value in overrides.items()])


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_steps(name: str, store: Path, tmp_path: Path) -> None:
    """It passes every check as shipped; made small it trains: loss finite, checkpoint there and readable."""
    config.check(config.load(name, []))
    settings = small(name, store, tmp_path)
    config.check(settings)
    run = trained_here(settings, name)
    assert all(math.isfinite(row["train/loss"]) for row in read_metrics(run))
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    opened = open_store(store)
    ABOUT[name](config.load(name, []), plan_of(opened, settings), opened)


def baseline(shipped: Settings, plan: Plan, store: Store) -> None:
    """nnU-Net's recipe: network, optimizer, augmentation; of two patches one is centred on a structure."""
    model, optim, augment, train = shipped.model, shipped.optim, shipped.augment, shipped.train
    assert model.outputs.channels == ("background", *PAINT_ORDER) and model.outputs.activation == "softmax"
    assert (model.name, model.blocks, shipped.data.spacing_mm_zyx) == ("dynunet", (0,), (1.0, 1.0, 1.0))
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 1e-2, 0.99, 3e-5)
    assert (optim.schedule, optim.clip_norm, optim.warmup_steps, optim.ema) == ("poly", 12.0, 0, None)
    assert (augment.rotation_degrees, augment.scale, augment.mirror, augment.intensity) == (30, (0.7, 1.4), "zy", True)
    assert train.steps * train.batch == 1000 * 250 * 2 and train.micro_batch == 2 and train.ranks == 8
    for start in range(0, 40, 2):
        assert sum(plan.sample(index).structure is not None for index in (start, start + 1)) == 1


    counts = Counter(sample.structure for sample in map(plan.sample, range(8000)) if len(plan.present[sample.case]) == 2)
    assert counts["liver"] / counts["pancreas"] == pytest.approx(1, abs=0.2)
    three = Counter(sample.structure for sample in map(plan.sample, range(8000)) if len(plan.present[sample.case]) == 3)
    assert all(three[name] / (three.total() - three[None]) == pytest.approx(1 / 3, abs=0.03) for name in three if name)


def debug(shipped: Settings, plan: Plan, store: Store) -> None:
    """Overlapping regions and a plain network; gradients cross between two ranks, whose patches are drawn as cases come."""
    assert shipped.model.outputs.channels == ("liver", "pancreas", "pancreatic_lesion")
    assert shipped.model.outputs.activation == "sigmoid" and shipped.model.blocks == (0,)
    assert (shipped.train.ranks, shipped.train.batch) == (2, 4) and plan.case_weights == ()


def memorise(shipped: Settings, plan: Plan, store: Store) -> None:
    """Trains on every case that there is, the one that is scored among them; the same targets as debug's."""
    assert shipped.model.outputs == config.load("debug", []).model.outputs
    assert plan.cases == tuple(store.cases)


def ood(shipped: Settings, plan: Plan, store: Store) -> None:
    """Three hospitals are held out; the others are drawn from equally often."""
    assert len(shipped.data.held_out_centers) == 3
    centers = Counter(store.value(plan.sample(index).case, "center") for index in range(4000))
    assert set(centers) == {"Center A", "Center B"} and centers["Center A"] == pytest.approx(2000, abs=150)


def two_class(shipped: Settings, plan: Plan, store: Store) -> None:
    """Three channels; half of the patches from scans with a lesion, three of four centred there on the lesion."""
    assert shipped.model.outputs.channels == ("background", "pancreas", "pancreatic_lesion")
    assert shipped.validation.best == "dsc/pancreatic_lesion"
    samples = [plan.sample(index) for index in range(4000)]
    lesion = [sample for sample in samples if store.voxels(sample.case)["pancreatic_lesion"]]
    named = Counter(sample.structure for sample in lesion if sample.structure)
    assert len(lesion) == pytest.approx(2000, abs=150)
    assert named["pancreatic_lesion"] / named.total() == pytest.approx(0.75, abs=0.05)


def multi_dataset(shipped: Settings, plan: Plan, store: Store) -> None:
    """Overlapping regions, so that what a dataset did not annotate is masked; seven of ten patches are PanTS's."""
    assert shipped.model.outputs.activation == "sigmoid" and "liver" in shipped.model.structures
    datasets = Counter(store.value(plan.sample(index).case, "dataset") for index in range(4000))
    assert set(datasets) == {"PanTS", "MSD"} and datasets["PanTS"] == pytest.approx(2800, abs=150)


def scale(number: int | None) -> Callable[[Settings, Plan, Store], None]:
    def about(shipped: Settings, plan: Plan, store: Store) -> None:
        """So many of the training scans, and nothing else than baseline's."""
        assert shipped.data.subset == number and (number is None or len(plan.cases) == 4)
        assert [key for key, *_ in config.difference(shipped, config.load("baseline", []))] == ["data.subset"] * bool(number)

    return about


def multinode(shipped: Settings, plan: Plan, store: Store) -> None:
    """4 nodes of 8 ranks share each batch, and see as many patches as baseline's."""
    base = config.load("baseline", [])
    assert shipped.train.batch == 4 * base.train.batch and shipped.train.ranks == 8
    assert shipped.train.steps * shipped.train.batch == pytest.approx(base.train.steps * base.train.batch, rel=1e-3)


ABOUT: dict[str, Callable[[Settings, Plan, Store], None]] = {
    "baseline": baseline, "debug": debug, "memorise": memorise, "ood": ood, "two_class": two_class,
    "multi_dataset": multi_dataset, "multinode": multinode,
    "scale_281": scale(281), "scale_2238": scale(2238), "scale_all": scale(None),
}  # fmt: skip
