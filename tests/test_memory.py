"""What does not fit into memory is refused before it is tried."""

import pytest
import torch

from pants_dist import config, memory
from pants_dist.errors import UserError
from pants_dist.model import Segmenter
from pants_dist.networks import NETWORKS
from pants_dist.settings import Settings

SIZES = {"unet": "[4, 8]", "dynunet": "[4, 8, 8]", "segresnet_ds": "[4, 8, 8]", "swin_unetr": "[12]", "mednext": "[4, 8, 8]"}


def settings(*more: str) -> Settings:
    return config.load("debug", ["--data.store=s", "--data.patch_zyx=[32, 32, 32]", *more])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_count_is_what_the_layers_give_back(name: str) -> None:
    """Of every network, without any memory: twice the patches, twice the outputs; weights are counted once."""
    wanted = settings(f"--model.name={name}", f"--model.channels={SIZES[name]}", "--model.blocks=[1]")
    one, two, half = (memory.step_bytes(wanted, (64, 64, 64), n, bits) for n, bits in ((1, 32), (2, 32), (1, 16)))
    weights = 4 * 4 * sum(p.numel() for p in network_of(wanted).parameters())
    assert two - one == one - weights and half - weights == (one - weights) / 2 > 0


def network_of(wanted: Settings) -> torch.nn.Module:
    from pants_dist.model import Intensity

    return Segmenter(wanted, Intensity(0, 1, 0, 1), None).network  # type: ignore[arg-type]


def test_a_plain_convolution_is_counted_by_hand() -> None:
    """A U-Net of two plain levels: each convolution, norm, dropout and activation gives back so many voxels."""
    wanted = settings("--model.channels=[2, 4]", "--model.blocks=[0]", "--model.structures=[liver]", "--optim.name=sgd")
    network, voxels = network_of(wanted), 32**3
    fine, coarse = voxels, voxels // 8
    down = [2 * coarse, 4 * coarse]  # the first level already halves
    up = [1 * fine]
    expected = 3 * sum(down) + up[0]
    weights = 3 * 4 * sum(p.numel() for p in network.parameters())
    assert memory.step_bytes(wanted, (32, 32, 32), 1, 32) == 4 * expected + weights


@pytest.mark.parametrize("gigabytes, fits", [
    (15.0, "train.micro_batch 3 would fit"), (4.5, "train.micro_batch 1 with data.patch_zyx [96, 128, 128] would fit"),
    (0.1, "use a smaller network"),
])  # fmt: skip
def test_what_would_fit_is_said(gigabytes: float, fits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with so much memory, 4 patches of 128 cubed for nnU-Net's network are too much."""
    wanted = config.load("baseline", ["--data.store=s", "--train.micro_batch=4", "--train.ranks=1", "--model.target=two_class"])
    monkeypatch.setattr(memory.cluster, "memory_limit", lambda: int(gigabytes * 1e9))
    with pytest.raises(UserError, match=r"memory: a step needs at least \d+\.\d GB for micro-batches of 4 patches") as raised:
        memory.check(wanted)
    assert fits in str(raised.value), raised.value
