"""Optimizers, the learning rate of every step, and the moving average of the weights."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pants_dist.settings import Optim


def make_optimizer(optim: Optim, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum as nnU-Net's. All weights decay alike, as there."""
    if optim.name == "adamw":
        return torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        parameters, lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0, weight_decay=optim.weight_decay
    )


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`. Pure.

    poly: lr * (1 - step/steps)^0.9, nnU-Net's (Isensee et al. 2021), which it sets once an epoch and this at every step;
    cosine: lr * (1 + cos(pi * step/steps)) / 2 (Loshchilov and Hutter 2017). The first `warmup_steps` steps are scaled
    by (step + 1) / (warmup_steps + 1) besides.
    """
    done = min(step, steps) / steps
    decay = (1 - done) ** 0.9 if optim.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
    return optim.lr * min(1.0, (step + 1) / (optim.warmup_steps + 1)) * decay


class Average:
    """Exponential moving average of a network's parameters, on their device; buffers are those of the last update.

    average <- d * average + (1 - d) * parameter, with d = min(decay, (1 + n) / (10 + n)) at update n (from 1), so that the
    initial weights are soon forgotten (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in _named_tensors(network)}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's weights after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        names, parameters = zip(*network.named_parameters(), strict=True)
        get_ema_multi_avg_fn(decay)([self.weights[name] for name in names], list(parameters), self.updates)
        for name, buffer in network.named_buffers():
            self.weights[name].copy_(buffer)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network has the averaged weights inside the block, and its own again after it, bit for bit."""
        self._exchange(network)
        try:
            yield
        finally:
            self._exchange(network)

    @torch.no_grad()
    def _exchange(self, network: nn.Module) -> None:
        for name, tensor in _named_tensors(network):
            own = tensor.clone()
            tensor.copy_(self.weights[name])
            self.weights[name].copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """{"updates": int, "weights": name -> tensor}: plain data for a checkpoint."""
        return {"updates": self.updates, "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit. The tensors stay on the device where they are."""
        self.updates = state["updates"]
        for name, tensor in self.weights.items():
            tensor.copy_(state["weights"][name])


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())
