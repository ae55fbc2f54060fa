"""GPT-2's generation: padding that is skipped, the cache, gradients."""

import pytest
import torch
from torch import Tensor

from audioldm2.models.gpt2 import GPT2, GPT2Config, Past

CONFIG = GPT2Config(dim=12, depth=2, heads=3, max_positions=80, new_vectors=6)


@pytest.fixture(scope="module")
def network() -> GPT2:
    torch.manual_seed(0)
    network = GPT2(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network.requires_grad_(False)


def padded(lengths: list[int], seq: int = 30) -> tuple[Tensor, Tensor]:
    """Vectors whose first 4 and last are real, and so many of those between."""
    mask = torch.arange(seq)[None] < torch.tensor(lengths)[:, None] + 4
    mask[:, -1] = True
    return torch.randn(*mask.shape, CONFIG.dim), mask


def from_scratch(network: GPT2, x: Tensor, mask: Tensor) -> Tensor:
    """The whole sequence again for each vector, padding included."""
    for _ in range(CONFIG.new_vectors):
        past = [Past(0) for _ in network.blocks]
        with torch.enable_grad():  # nothing is laid out
            hidden = network(x, torch.arange(x.shape[1]), mask, past)
        x = torch.cat([x, hidden[:, -1:]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return x[:, -CONFIG.new_vectors :]


@pytest.mark.parametrize("lengths", [[25], [1], [0], [9, 3, 0], [25, 2]])
def test_skipped_padding_changes_nothing(network, lengths):
    x, mask = padded(lengths)
    with torch.no_grad():
        torch.testing.assert_close(network.generate(x, mask), from_scratch(network, x, mask))


def test_padding_counts_as_positions(network):
    x, mask = padded([5])
    with torch.no_grad():
        found = network.generate(x, mask)
        moved = network.generate(x[:, mask[0]], mask[:, mask[0]])
    assert (found - moved).abs().max() > 0.1


def test_gradients_are_those_of_the_whole_sequence(network):
    x, mask = padded([9, 3])
    results = []
    for run in (network.generate, lambda x, mask: from_scratch(network, x, mask)):
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(run(leaf, mask).square().sum(), leaf)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert not results[0][~mask].any() and results[0][mask].abs().min() > 0


def test_memory_of_the_cache_is_laid_out_once():
    past, new = Past(5), torch.randn(2, 3, 8)
    with torch.no_grad():
        first = past.extend(new, 3)
        second = past.extend(new[:, :1], 4)
    assert torch.equal(first, new) and torch.equal(second, torch.cat([new, new[:, :1]], dim=1))
    assert first.data_ptr() == second.data_ptr()
