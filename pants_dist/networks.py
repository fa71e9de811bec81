"""The networks by name. Each takes (B, 1, z, y, x) and gives logits (B, structures, z, y, x).

While it trains, a network returns a list: logits of its finest resolution first, then those of coarser ones, each at its
own size, if it learns by deep supervision. When it predicts, it returns one tensor. A new network is one function here,
its name in settings.Model, and its stride in strides.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.networks.blocks import Convolution, UnetBasicBlock, UnetOutBlock, UnetUpBlock
from monai.networks.nets import DynUNet, MedNeXt, SegResNetDS, SwinUNETR, UNet
from torch import Tensor, nn

from pants_dist.settings import Model
from pants_dist.strides import CUBES, SWIN_STAGES, Level, Mm, Zyx, at_each_level, dynunet_levels

INSTANCE_NORM = ("INSTANCE", {"affine": True})
ONE = (1, 1, 1)
LEAKY = ("LEAKYRELU", {"negative_slope": 0.01, "inplace": True})


def build_network(model: Model, channels_out: int, patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> nn.Module:
    """The network that the settings name. They must have passed settings.check; `channels_out` is one a structure."""
    return NETWORKS[model.name](model, channels_out, patch_zyx, spacing_mm_zyx)


def arithmetic_of(precision: str, device_type: str) -> torch.dtype:
    """What a network works in: `train.precision`, where "auto" is bf16 on a GPU that has it, float32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device_type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def layout_of(device_type: str) -> torch.memory_format:
    """How weights and features lie in memory: channels last on a GPU, whose convolutions are fastest so."""
    return torch.channels_last_3d if device_type == "cuda" else torch.contiguous_format


def supervision_weights(heads: int) -> tuple[float, ...]:
    """Weight of the loss at each resolution, finest first: 1/2^i, their sum 1 (nnU-Net, Isensee et al. 2021).

    nnU-Net also builds a head at the coarsest resolution and gives it weight 0. Here that head is not built.
    """
    whole = sum(0.5**head for head in range(heads))
    return tuple(0.5**head / whole for head in range(heads))


def unet(model: Model, channels_out: int, patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> nn.Module:
    """MONAI's residual U-Net (Kerfoot et al. 2018), without deep supervision; `blocks` [0] makes it plain."""
    network = UNet(
        spatial_dims=3, in_channels=1, out_channels=channels_out, channels=model.channels,
        strides=(2,) * (len(model.channels) - 1), num_res_units=model.blocks[0], norm="INSTANCE", act="LEAKYRELU",
    )  # fmt: skip
    return _listing(network, 1)


def dynunet(model: Model, channels_out: int, patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> nn.Module:
    """nnU-Net (Isensee et al. 2021): kernels and strides follow patch and spacing. `blocks` [0] is its plain encoder.

    `blocks` [1, 3, 4, 6] is its residual presets (Isensee et al. 2024): a convolution before the first level, residual
    blocks in the encoder, and one convolution at each level of the decoder, where the plain network has two.
    """
    levels = dynunet_levels(len(model.channels), patch_zyx, spacing_mm_zyx or CUBES)
    return DynamicUNet(levels, model.channels, at_each_level(model.blocks, len(levels)), channels_out)


def segresnet_ds(model: Model, channels_out: int, patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> nn.Module:
    """MONAI's SegResNetDS (after Myronenko 2018), instance normalised: batches are too small for batch statistics."""
    levels = len(model.channels)
    network = SegResNetDS(
        init_filters=model.channels[0], out_channels=channels_out, norm="INSTANCE", resolution=spacing_mm_zyx,
        blocks_down=at_each_level(model.blocks, levels), dsdepth=_heads(levels),
    )  # fmt: skip
    return _listing(network, _heads(levels))


def swin_unetr(model: Model, channels_out: int, patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> nn.Module:
    """Swin UNETR (Hatamizadeh et al. 2022) with `blocks` transformer layers at each stage; it has no deep supervision."""
    network = SwinUNETR(
        in_channels=1, out_channels=channels_out, feature_size=model.channels[0],
        depths=at_each_level(model.blocks, SWIN_STAGES),
    )  # fmt: skip
    return _listing(network, 1)


def mednext(model: Model, channels_out: int, patch_zyx: Zyx, spacing_mm_zyx: Mm | None) -> nn.Module:
    """MedNeXt with kernels of 3 (Roy et al. 2023). The decoder mirrors the encoder.

    The sizes of the paper, at five levels from 32 channels, as `blocks` and `expansion`: S [2] and [2], B [2] and
    [2, 3, 4], M [3, 4] and [2, 3, 4], L [3, 4, 8] and [3, 4, 8].
    """
    levels = len(model.channels)
    *blocks, deepest = at_each_level(model.blocks, levels)
    *widths, deepest_width = at_each_level(model.expansion, levels)
    network = MedNeXt(
        init_filters=model.channels[0], out_channels=channels_out, kernel_size=3, use_residual_connection=True,
        blocks_down=blocks, blocks_bottleneck=deepest, blocks_up=blocks[::-1], deep_supervision=_heads(levels) > 1,
        encoder_expansion_ratio=widths, bottleneck_expansion_ratio=deepest_width, decoder_expansion_ratio=widths[::-1],
    )  # fmt: skip
    if network.do_ds:  # heads that have no weight in the loss: DDP would wait for their gradients
        network.out_blocks[0] = network.out_blocks[1] = nn.Identity()
    return _listing(network, _heads(levels))


NETWORKS: dict[str, Callable[[Model, int, Zyx, Mm | None], nn.Module]] = {
    "unet": unet, "dynunet": dynunet, "segresnet_ds": segresnet_ds, "swin_unetr": swin_unetr, "mednext": mednext,
}  # fmt: skip


def _heads(levels: int) -> int:
    """Resolutions with a head: all but the last level, and the coarsest of the decoder, which has no weight."""
    return max(levels - 2, 1)


def _listing(network: nn.Module, heads: int) -> nn.Module:
    """The network, returning a list of `heads` logits while it trains. A hook: its weights keep MONAI's names."""
    network.register_forward_hook(partial(_as_list, heads))
    return network


def _as_list(heads: int, network: nn.Module, inputs: Any, logits: Any) -> Any:
    if not network.training:
        return logits
    return [logits] if isinstance(logits, Tensor) else list(logits[:heads])


class DynamicUNet(nn.Module):
    """nnU-Net's U-Net from MONAI's blocks.

    It is no DynUNet because that one enlarges the logits of all heads to the size of the patch and stacks them, takes
    the kernels of the decoder from the level below, where nnU-Net takes those of the level itself, and has another
    residual encoder.
    """

    def __init__(
        self, levels: list[Level], channels: tuple[int, ...], residual_blocks: tuple[int, ...], channels_out: int
    ) -> None:
        super().__init__()
        residual = any(residual_blocks)
        self.stem = _convolution(1, channels[0], levels[0].kernel_zyx) if residual else nn.Identity()
        above = (channels[0] if residual else 1, *channels[:-1])
        self.encoder = nn.ModuleList(
            _stage(level, before, after, blocks)
            for level, before, after, blocks in zip(levels, above, channels, residual_blocks, strict=True)
        )
        self.decoder = nn.ModuleList(
            _up(levels[n], channels[n + 1], channels[n], levels[n + 1].stride_zyx, residual)
            for n in reversed(range(len(levels) - 1))
        )
        self.heads = nn.ModuleList(UnetOutBlock(3, channels[n], channels_out) for n in range(_heads(len(levels))))
        self.apply(DynUNet.initialize_weights)
        self.apply(_begin_as_shortcut)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        features = [self.stem(image)]
        for stage in self.encoder:
            features.append(stage(features[-1]))
        *skips, decoded = features[1:]
        finest_first: list[Tensor] = []
        for up in self.decoder:
            decoded = up(decoded, skips.pop())
            finest_first.insert(0, decoded)
        if not self.training:
            return self.heads[0](decoded)
        return [head(at_level) for head, at_level in zip(self.heads, finest_first, strict=False)]


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which averages the voxels that it merges (ResNet-D, He et al. 2019)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Zyx, stride: Zyx) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, kernel, stride)
        self.second = _convolution(channels_out, channels_out, kernel, activated=False)
        merging = [nn.AvgPool3d(stride, stride)] if stride != ONE else []
        widening = [_convolution(channels_in, channels_out, ONE, activated=False)] if channels_in != channels_out else []
        self.shortcut = nn.Sequential(*merging, *widening)
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.second(self.first(features)) + self.shortcut(features))


def _convolution(channels_in: int, channels_out: int, kernel: Zyx, stride: Zyx = ONE, activated: bool = True) -> nn.Module:
    """Convolution, instance norm and, unless told, leaky ReLU."""
    return Convolution(
        3, channels_in, channels_out, stride, kernel, adn_ordering="NA", act=LEAKY if activated else None,
        norm=INSTANCE_NORM, bias=False,
    )  # fmt: skip


def _stage(level: Level, channels_in: int, channels_out: int, residual_blocks: int) -> nn.Module:
    kernel, stride = level
    if not residual_blocks:
        return UnetBasicBlock(3, channels_in, channels_out, kernel, stride, INSTANCE_NORM)
    first = ResidualBlock(channels_in, channels_out, kernel, stride)
    return nn.Sequential(first, *(ResidualBlock(channels_out, channels_out, kernel, ONE) for _ in range(residual_blocks - 1)))


def _up(level: Level, channels_below: int, channels: int, stride: Zyx, residual: bool) -> nn.Module:
    """From the level below to this one, beside what the encoder had at it."""
    up = UnetUpBlock(3, channels_below, channels, level.kernel_zyx, 1, stride, INSTANCE_NORM)
    if residual:
        up.add_module("conv_block", _convolution(2 * channels, channels, level.kernel_zyx))
    return up


def _begin_as_shortcut(module: nn.Module) -> None:
    """A residual block adds nothing to its shortcut at first, as in nnU-Net (init_last_bn_before_add_to_0)."""
    if isinstance(module, ResidualBlock):
        second: Any = module.second
        nn.init.zeros_(second.adn.N.weight)
