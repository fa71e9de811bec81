"""Optimizers, schedules and the average, each against its formula."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from pants_dist.optimizers import Average, learning_rate, make_optimizer
from pants_dist.settings import Optim

NNUNET = Optim(name="sgd", lr=1e-2, weight_decay=3e-5, momentum=0.99)


def test_sgd_is_nesterovs() -> None:
    """Three steps of nnU-Net's numbers on f(w) = sum w^4/4, against the formula: v <- m v + g, w <- w - lr (g + m v)."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = make_optimizer(NNUNET, [weight])
    w, v = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    for _ in range(3):
        optimizer.zero_grad()
        (weight**4 / 4).sum().backward()
        optimizer.step()
        g = w**3 + 3e-5 * w
        v = 0.99 * v + g
        w = w - 1e-2 * (g + 0.99 * v)
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12)


def test_adamw_decays_beside_the_gradient() -> None:
    """The first step moves by lr against the sign of the gradient, after the weight shrank by lr * weight_decay."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = make_optimizer(Optim(name="adamw", lr=0.1, weight_decay=0.5), [weight])
    (weight**2).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), [0.95 - 0.1, -1.9 + 0.1], rtol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "expected"),
    [
        ("poly", 0, 0, 2.0),
        ("poly", 0, 50, 2 * 0.5358867312681466),  # 0.5^0.9
        ("poly", 0, 100, 0.0),
        ("poly", 0, 130, 0.0),
        ("cosine", 0, 0, 2.0),
        ("cosine", 0, 25, 1 + math.sqrt(0.5)),
        ("cosine", 0, 50, 1.0),
        ("cosine", 0, 100, 0.0),
        ("cosine", 4, 0, 2 / 5),
        ("poly", 4, 0, 2 / 5),
        ("poly", 4, 3, 2 * 4 / 5 * 0.97**0.9),
        ("poly", 4, 4, 2 * 0.96**0.9),
    ],
)
def test_learning_rate_is_as_worked_by_hand(schedule: str, warmup: int, step: int, expected: float) -> None:
    """Of 100 steps from a rate of 2."""
    optim = Optim(schedule=schedule, lr=2.0, warmup_steps=warmup)  # type: ignore[arg-type]
    assert learning_rate(optim, step, 100) == pytest.approx(expected, abs=1e-15)


def updated(average: Average, network: nn.Module, seeds: range) -> list[np.ndarray]:
    """Updates with weights drawn anew for each seed; returns these."""
    seen = []
    for seed in seeds:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter))
        average.update(network)
        seen.append(network.weight.detach().numpy().copy())
    return seen


def test_average_is_the_closed_formula() -> None:
    """After n updates: sum over i of w_i (1 - d_i) times all later d, the first weights having the product of all d."""
    network = nn.Linear(3, 2).double()
    average = Average(network, 0.5)
    weights = [network.weight.detach().numpy().copy(), *updated(average, network, range(12))]
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 13)]
    assert decays[0] < decays[1] < 0.5 == decays[-1]
    shares = [1.0, *(1 - decay for decay in decays)]
    factors = [share * math.prod(decays[place:]) for place, share in enumerate(shares)]
    assert sum(factors) == pytest.approx(1)
    expected = sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
    np.testing.assert_allclose(average.weights["weight"].numpy(), expected, rtol=1e-12)


def test_average_goes_on_bit_for_bit() -> None:
    """Five updates, and three with two more after a checkpoint read as plain data, end in the same bits."""
    network = nn.Linear(7, 5)
    whole, first = Average(network, 0.9), Average(network, 0.9)
    updated(whole, network, range(5))
    updated(first, network, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Average(nn.Linear(7, 5), 0.9)
    second.load_state_dict(torch.load(file, weights_only=True))
    updated(second, network, range(3, 5))
    assert second.updates == whole.updates == 5
    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in whole.weights.items())


def test_average_is_lent_to_the_network() -> None:
    """Inside the block the network computes with the average, after it, even after an error, with its own weights."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    average = Average(network, 0.9)
    updated(average, network, range(3))
    own, averaged = network.weight.detach().clone(), average.weights["weight"].clone()
    with pytest.raises(ZeroDivisionError), average.applied(network):
        assert torch.equal(network.weight, averaged) and not torch.equal(own, averaged)
        raise ZeroDivisionError
    assert torch.equal(network.weight, own) and torch.equal(average.weights["weight"], averaged)


def test_buffers_are_those_of_the_last_update() -> None:
    """Running statistics are taken as they are, integers too."""
    network = nn.BatchNorm1d(2)
    average = Average(network, 0.9)
    network(torch.arange(8.0).reshape(4, 2))
    average.update(network)
    assert torch.equal(average.weights["running_mean"], network.running_mean)
    assert int(average.weights["num_batches_tracked"]) == 1
