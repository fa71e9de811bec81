"""What a training step needs of a device's memory, counted before anything is started."""

import math
from collections.abc import Iterator

import psutil
import torch
from torch import Tensor, nn

from pants_dist import cluster
from pants_dist.errors import UserError
from pants_dist.networks import arithmetic_of, build_network
from pants_dist.settings import Settings
from pants_dist.strides import network_misfits, strides_of

Zyx = tuple[int, int, int]
COPIES = {"adamw": 4, "sgd": 3}  # weights, gradients, and what the optimizer keeps of each


def step_bytes(settings: Settings, patch_zyx: Zyx, micro_batch: int, bits: int) -> int:
    """Bytes that a training step takes at least: every layer's output, of `bits` bits, and weights, gradients, optimizer.

    The network is run without memory (torch's meta device). What a step really takes is more, by what
    convolutions work in and by the loss; a patch that is refused does not fit.
    """
    outputs = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal outputs
        outputs += output.numel() if isinstance(output, Tensor) else 0

    channels = len(settings.model.outputs.channels)
    with torch.random.fork_rng(devices=[]):
        network = build_network(settings.model, channels, patch_zyx, settings.data.spacing_mm_zyx).train().to("meta")
    for module in network.modules():
        nothing = isinstance(module, nn.Dropout) and not module.p
        if not list(module.children()) and not nothing:
            module.register_forward_hook(count)
    network(torch.empty(micro_batch, 1, *patch_zyx, device="meta"))
    copies = COPIES[settings.optim.name] + (settings.optim.ema is not None)
    return outputs * bits // 8 + copies * 4 * sum(weight.numel() for weight in network.parameters())


def check(settings: Settings, elsewhere: float | None = None) -> None:
    """Raises UserError, with what would fit, where a patch or micro-batch is more than this machine's memory can hold.

    `elsewhere`: bytes that a rank has on the CPUs of another machine instead; infinite where nobody knows.
    """
    if elsewhere == math.inf:
        return
    there: float
    if elsewhere is not None:
        there, what = elsewhere, "a rank's share of the job's memory"
    elif torch.cuda.is_available():
        there, what = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    else:
        whole = min(psutil.virtual_memory().total, cluster.memory_limit() or math.inf)
        there, what = int(whole / settings.train.ranks), "a rank's share of this machine's memory"
    device = "cuda" if torch.cuda.is_available() and elsewhere is None else "cpu"
    kind = arithmetic_of(settings.train.precision, device)
    bits, patch, micro = 8 * kind.itemsize, settings.data.patch_zyx, _at_once(settings)
    need = step_bytes(settings, patch, micro, bits)
    if need <= there:
        return
    said = f"a step needs at least {need / 1e9:.1f} GB for micro-batches of {micro} patches, {what} has {there / 1e9:.1f} GB"
    for smaller, size in _smaller(settings):
        if step_bytes(settings, size, smaller, bits) <= there:
            fits = f"train.micro_batch {smaller}" + ("" if size == patch else f" with data.patch_zyx {list(size)}")
            raise UserError(f"memory: {said}; {fits} would fit")
    raise UserError(f"memory: {said}; use a smaller network (model.channels)")


def _at_once(settings: Settings) -> int:
    """Patches that a rank sends through the network at once: no more than its share of a step."""
    return min(settings.train.micro_batch, settings.train.batch // settings.train.ranks)


def _smaller(settings: Settings) -> Iterator[tuple[int, Zyx]]:
    """Smaller micro-batches, then smaller patches one by one, each along its longest axis by the network's stride."""
    model, spacing, (z, y, x) = settings.model, settings.data.spacing_mm_zyx, settings.data.patch_zyx
    yield from ((micro, (z, y, x)) for micro in range(_at_once(settings) - 1, 0, -1))
    size, stride = [z, y, x], strides_of(model, (z, y, x), spacing)
    while True:
        axis = max(range(3), key=lambda axis: size[axis] - stride[axis])
        size[axis] -= stride[axis]
        z, y, x = size
        if size[axis] <= 0:
            return
        if not list(network_misfits(model, (z, y, x), spacing)):
            yield 1, (z, y, x)
