"""Every shipped config is trained for two steps: sizes made small, everything else as it stands."""

import math
from pathlib import Path

import pytest
import torch
from small import make_store, plan_of

from pants_dist import config, train
from pants_dist.store import open_store
from pants_dist.tracking import read_metrics

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALLER = {
    "data.patch_zyx": "[16, 32, 32]", "model.channels": "[4, 8, 16]", "train.steps": "2", "train.ranks": "1",
    "train.batch": "2", "train.micro_batch": "1", "train.log_every": "1", "loader.readers": "1",
    "loader.kind": "local", "validation.every": "null", "tracking.wandb": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("configs") / "store", cases=6)


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_steps(name: str, store: Path, tmp_path: Path) -> None:
    """Loss finite, checkpoint there and readable; held-out centers, where the config has any, are not trained on."""
    overrides = SMALLER | {"data.store": str(store), "runs": str(tmp_path)}
    held_out = bool(config.load(name, []).data.held_out_centers)
    if held_out:
        overrides["data.held_out_centers"] = "[Center C]"
    settings = config.load(name, [f"--{setting}={value}" for setting, value in overrides.items()])
    assert train.launch(settings, name) == 0
    assert all(math.isfinite(row["train/loss"]) for row in read_metrics(tmp_path / name))
    saved = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    cases = plan_of(open_store(store), settings).cases
    assert any(open_store(store).value(case, "center") == "Center C" for case in cases) != held_out
