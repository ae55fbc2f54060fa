"""AdamW, Muon and the exponential moving average."""

import pytest
import torch
from torch import nn

from audioldm2.training.muon import Muon
from audioldm2.training.optimizer import EMA, Optimizer
from audioldm2.training.recipe import Recipe


def test_ema_follows_its_formula_and_copies_buffers():
    network = nn.BatchNorm1d(1)
    ema = EMA(network, decay=0.9)
    expected = 1.0
    for n in range(1, 101):
        with torch.no_grad():
            network.weight.fill_(1.0 + n)
            network.running_mean.fill_(n)
            network.num_batches_tracked.fill_(n)
        ema.update(n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (1.0 + n)
    assert float(ema.state["weight"]) == pytest.approx(expected, rel=1e-5)
    assert ema.state["running_mean"] == 100


def test_gradients_are_clipped_and_vectors_do_not_decay():
    network = nn.Linear(2, 1)
    optimizer = Optimizer([network], Recipe(max_grad_norm=1e-3, learning_rate=0.1, weight_decay=0.5))
    norm = optimizer.step(1000 * (network.weight.sum() + network.bias.sum()), 0)
    assert norm > 1000
    assert nn.utils.get_total_norm([p.grad for p in network.parameters()]) == pytest.approx(1e-3, rel=1e-3)
    assert [group["weight_decay"] for group in optimizer.optimizers[0].param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12), (6, 5, 3)])
def test_muon_moves_equally_in_every_direction(shape: tuple[int, ...]):
    matrix = nn.Parameter(torch.zeros(shape))
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    slope = slope * torch.logspace(0, -2, shape[0]).view(-1, *[1] * (len(shape) - 1))  # some hardly matter
    (matrix * slope).sum().backward()
    Muon([matrix], lr=0.1).step()
    moved = -matrix.detach().flatten(1)
    values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * max(moved.shape) ** 0.5)
    assert values.max() < 1.3 and values.min() > 0.3
    assert (moved * slope.flatten(1)).sum() > 0  # downhill


def test_muon_updates_matrices_and_adamw_vectors():
    network = nn.Conv1d(4, 4, 3)
    recipe = Recipe(optimizer="muon", learning_rate=0.01, weight_decay=0.5, max_grad_norm=100.0)
    optimizer, before = Optimizer([network], recipe), network.weight.detach().clone()
    for step in range(3):
        optimizer.step((network.weight.sum() - 1).square() + network.bias.sum(), step)
    assert [type(each).__name__ for each in optimizer.optimizers] == ["Muon", "AdamW"]
    assert not torch.equal(network.weight, before)


def test_state_is_restored_and_that_of_another_optimizer_rejected():
    network = nn.Conv1d(4, 4, 3)
    recipe = Recipe(optimizer="muon")
    optimizer = Optimizer([network], recipe)
    optimizer.step(network.weight.square().sum() + network.bias.sum(), 0)
    restored = Optimizer([nn.Conv1d(4, 4, 3)], recipe)
    restored.load_state_dict(optimizer.state_dict())
    states = [next(iter(each.optimizers[0].state.values())) for each in (optimizer, restored)]
    assert torch.equal(states[0]["mean"], states[1]["mean"])
    with pytest.raises(ValueError):
        Optimizer([nn.Conv1d(4, 4, 3)], Recipe()).load_state_dict(optimizer.state_dict())
