"""Each network at a small size: shapes, gradients, and MONAI's own networks as oracles."""

from collections.abc import Iterator
from typing import get_args, get_type_hints

import pytest
import torch
from monai.networks.nets import DynUNet
from monai.networks.nets.mednext import create_mednext
from torch import nn
from torch.nn.functional import (
    avg_pool3d,
    binary_cross_entropy_with_logits,
    conv3d,
    conv_transpose3d,
    instance_norm,
    interpolate,
    leaky_relu,
)

from pants_dist.networks import NETWORKS, build_network, supervision_weights
from pants_dist.optimizers import make_optimizer
from pants_dist.settings import Model, Optim
from pants_dist.strides import network_misfits, strides_of

OUT = 3
SMALL = {  # settings, patch, spacing, strides and number of heads as worked by hand
    "unet": (Model(channels=(4, 8, 16)), (8, 8, 16), None, (4, 4, 4), 1),
    "unet, plain": (Model(channels=(4, 8), blocks=(0,)), (8, 8, 8), None, (2, 2, 2), 1),
    "dynunet": (Model(name="dynunet", channels=(4, 8, 8, 8), blocks=(0,)), (8, 32, 32), (5.0, 1.0, 1.0), (2, 8, 8), 2),
    "dynunet, residual": (Model(name="dynunet", channels=(4, 8, 8), blocks=(1, 2)), (16, 16, 16), None, (4, 4, 4), 1),
    "segresnet_ds": (Model(name="segresnet_ds", channels=(8, 16, 32, 64)), (8, 16, 16), (2.0, 1.0, 1.0), (4, 8, 8), 2),
    "swin_unetr": (Model(name="swin_unetr", channels=(12, 24, 48, 96)), (32, 32, 64), None, (32, 32, 32), 1),
    "mednext": (Model(name="mednext", channels=(4, 8, 16, 32)), (16, 16, 16), None, (8, 8, 8), 2),
    "mednext, two levels": (Model(name="mednext", channels=(4, 8)), (8, 8, 8), None, (2, 2, 2), 1),
}


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest):
    """Network, patch, and what is expected of them."""
    model, patch, spacing, strides, heads = SMALL[request.param]
    torch.manual_seed(0)
    return build_network(model, OUT, patch, spacing), model, patch, spacing, strides, heads


def test_every_name_has_its_network() -> None:
    """What the settings allow is what can be built; the list above has each of them."""
    names = set(get_args(get_type_hints(Model)["name"]))
    assert set(NETWORKS) == names == {model.name for model, *_ in SMALL.values()}
    assert all(build.__name__ == name for name, build in NETWORKS.items())


def test_trains_at_every_head(small) -> None:
    """Heads finest first at their own sizes, gradients for every weight (DDP waits for them), a step lowers the loss."""
    network, _, patch, _, _, heads = small
    torch.manual_seed(1)
    image, target = torch.randn(1, 1, *patch), (torch.rand(1, OUT, *patch) < 0.2).float()

    def loss() -> torch.Tensor:
        logits = network.train()(image)
        assert isinstance(logits, list) and len(logits) == heads
        assert logits[0].shape == (1, OUT, *patch)
        assert all(fine.numel() > coarse.numel() for fine, coarse in zip(logits, logits[1:], strict=False))
        weights = supervision_weights(len(logits))
        masks = [interpolate(target, at_level.shape[2:]) for at_level in logits]
        parts = [binary_cross_entropy_with_logits(*pair) for pair in zip(logits, masks, strict=True)]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    before = loss()
    before.backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
    make_optimizer(Optim(name="sgd", lr=1e-2, momentum=0, weight_decay=0), network.parameters()).step()
    assert loss().item() < before.item()


def test_takes_multiples_of_its_stride_alone(small) -> None:
    """At the patch it predicts one tensor; half a stride more along any axis is refused by the settings and does not work."""
    network, model, patch, spacing, strides, _ = small
    assert strides_of(model, patch, spacing) == strides
    assert list(network_misfits(model, patch, spacing)) == []
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 1, *patch)).shape == (1, OUT, *patch)
        for axis in range(3):
            longer = [size + strides[axis] // 2 * (axis == other) for other, size in enumerate(patch)]
            assert len(list(network_misfits(model, tuple(longer), spacing))) == 1
            assert predicted_shape(network, longer) != (1, OUT, *longer)


def predicted_shape(network: nn.Module, patch: list[int]) -> tuple[int, ...] | None:
    """Shape of the logits; None where the network cannot take the patch."""
    try:
        return tuple(network(torch.zeros(1, 1, *patch)).shape)
    except (RuntimeError, ValueError):
        return None


@pytest.mark.parametrize("name", ["dynunet", "segresnet_ds", "mednext"])
def test_each_head_has_a_gradient_of_its_own(name: str) -> None:
    """The loss at one resolution moves that head's weights and no other head's."""
    model, patch, spacing, _, heads = SMALL[name]
    network = build_network(model, OUT, patch, spacing).train()
    moved = []
    for head in range(heads):
        network.zero_grad()
        network(torch.randn(1, 1, *patch))[head].square().mean().backward()
        parameters = network.named_parameters()
        rows = {name for name, weight in parameters if len(weight) == OUT and weight.ndim == 1}  # the heads' biases
        with_gradient = {name for name, weight in network.named_parameters() if weight.grad is not None}
        moved.append(rows & with_gradient)
    assert all(len(names) == 1 for names in moved)
    assert len(set.union(*moved)) == heads


def test_weights_of_the_heads() -> None:
    """1, 1/2, 1/4 over their sum; one head has it all."""
    assert supervision_weights(3) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert supervision_weights(1) == (1.0,)


def test_dynunet_is_monais_before_it_enlarges() -> None:
    """With the weights of MONAI's DynUNet: the same prediction, and its heads are ours enlarged."""
    channels, strides = (4, 6, 8, 10, 12), (1, 2, 2, 2, 2)
    torch.manual_seed(0)
    theirs = DynUNet(3, 1, OUT, (3,) * 5, strides, strides[1:], channels, deep_supervision=True, deep_supr_num=2)
    ours = build_network(Model(name="dynunet", channels=channels, blocks=(0,)), OUT, (64, 64, 64), None)
    pairs = [
        *zip(ours.encoder, [theirs.input_block, *theirs.downsamples, theirs.bottleneck], strict=True),
        *zip(ours.decoder, theirs.upsamples, strict=True),
        *zip(ours.heads, [theirs.output_block, *theirs.deep_supervision_heads], strict=True),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    image = torch.randn(1, 1, 32, 32, 32)
    heads, stacked = ours.train()(image), theirs.train()(image).unbind(1)
    for head, enlarged in zip(heads, stacked, strict=True):
        torch.testing.assert_close(interpolate(head, image.shape[2:]), enlarged)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))


def test_residual_dynunet_is_nnunets_formula() -> None:
    """Its weights in functional torch: stem, blocks with averaging shortcuts, one convolution a level of the decoder.

    Weights are taken in the order in which nnU-Net's ResidualEncoderUNet makes and uses them; all of them are used up.
    """
    model, patch, spacing = Model(name="dynunet", channels=(4, 6, 6), blocks=(1, 2)), (16, 32, 32), (3.0, 1.0, 1.0)
    torch.manual_seed(0)
    network = build_network(model, OUT, patch, spacing)
    with torch.no_grad():
        for weight in network.parameters():  # no norm is trivial, no block its shortcut
            weight.copy_(torch.randn_like(weight) * 0.3)
    left = list(network.named_parameters())
    assert [name.split(".")[0] for name, _ in left[:3]] == ["stem"] * 3
    expected = nnunet_residual(iter([weight for _, weight in left]), torch.ones(1, 1, *patch).cumsum(4).sin())
    torch.testing.assert_close(network.eval()(torch.ones(1, 1, *patch).cumsum(4).sin()), expected)


def nnunet_residual(weights: Iterator[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """Three levels of 4, 6, 6 channels, of 1, 2, 2 blocks; kernels are flat at the first, strides 1 2 2 and 2 2 2."""

    def convolved(features: torch.Tensor, stride: tuple[int, ...] = (1, 1, 1)) -> torch.Tensor:
        kernel, scale, shift = next(weights), next(weights), next(weights)
        padding = [length // 2 for length in kernel.shape[2:]]
        return instance_norm(conv3d(features, kernel, None, stride, padding), weight=scale, bias=shift)

    def block(features: torch.Tensor, stride: tuple[int, ...] = (1, 1, 1), widens: bool = False) -> torch.Tensor:
        beside = convolved(leaky_relu(convolved(features, stride)))
        merged = avg_pool3d(features, stride)
        return leaky_relu(beside + (convolved(merged) if widens else merged))

    fine = block(leaky_relu(convolved(image)))
    middle = block(block(fine, (1, 2, 2), widens=True))
    coarse = block(block(middle, (2, 2, 2)))
    for skip, stride in ((middle, (2, 2, 2)), (fine, (1, 2, 2))):
        coarse = torch.cat([conv_transpose3d(coarse, next(weights), None, stride), skip], 1)
        coarse = leaky_relu(convolved(coarse))
    logits = conv3d(coarse, next(weights), next(weights))
    assert next(weights, None) is None
    return logits


def test_dynunet_has_the_kernels_of_each_level() -> None:
    """Flat kernels where slices are thick, in the encoder and, as in nnU-Net, at the same level of the decoder."""
    model = Model(name="dynunet", channels=(4, 8, 8, 8), blocks=(0,))
    network = build_network(model, OUT, (16, 64, 64), (5.0, 1.0, 1.0))
    kernels = [stage.conv1.conv.kernel_size for stage in network.encoder]
    assert kernels == [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert [up.conv_block.conv1.conv.kernel_size for up in network.decoder] == kernels[-2::-1]
    assert [up.transp_conv.conv.stride for up in network.decoder] == [(2, 2, 2), (1, 2, 2), (1, 2, 2)]


def test_residual_encoder_has_the_blocks_asked_for() -> None:
    """1, 3, 4, 6 and 6 again; each adds nothing to its shortcut at first."""
    model = Model(name="dynunet", channels=(4,) * 5, blocks=(1, 3, 4, 6))
    network = build_network(model, OUT, (64, 64, 64), None)
    assert [len(stage) for stage in network.encoder] == [1, 3, 4, 6, 6]
    assert all(not block.second.adn.N.weight.any() for stage in network.encoder for block in stage)


@pytest.mark.parametrize(
    ("size", "blocks", "expansion"),
    [("S", (2,), (2,)), ("B", (2,), (2, 3, 4)), ("M", (3, 4), (2, 3, 4)), ("L", (3, 4, 8), (3, 4, 8))],
)
def test_mednext_has_the_sizes_of_the_paper(size: str, blocks: tuple[int, ...], expansion: tuple[int, ...]) -> None:
    """The weights have MONAI's names and shapes, but for the two heads without a part in the loss."""
    model = Model(name="mednext", channels=(32, 64, 128, 256, 512), blocks=blocks, expansion=expansion)
    with torch.device("meta"):
        ours = build_network(model, OUT, (64, 64, 64), None)
        theirs: nn.Module = create_mednext(size, out_channels=OUT, deep_supervision=True)
    expected = {name: weight.shape for name, weight in theirs.named_parameters()}
    shapes = {name: weight.shape for name, weight in ours.named_parameters()}
    assert {name for name in expected if name not in shapes} == {
        f"out_blocks.{n}.conv_out.{part}" for n in (0, 1) for part in ("weight", "bias")
    }
    assert all(expected[name] == shape for name, shape in shapes.items())
