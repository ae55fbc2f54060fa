"""Linear layers through oneDNN, against PyTorch's own; and without it, where it is absent or wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audioldm2 import onednn

needs_it = pytest.mark.skipif(not onednn.is_here(), reason="this PyTorch has no oneDNN, or another one")


@pytest.fixture
def asked(monkeypatch) -> list:
    """The inputs that oneDNN was asked with."""
    inputs, linear = [], onednn._linear
    monkeypatch.setattr(onednn, "_linear", lambda x, *rest: inputs.append(x) or linear(x, *rest))
    return inputs


@pytest.fixture
def unknown():
    """What is known of the operator is forgotten, before and after."""
    onednn.is_here.cache_clear()
    yield
    onednn.is_here.cache_clear()


@needs_it
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 7), (7,), (3, 7), (0, 7), (2, 0, 7), (1, 2, 3, 7), (2, 300, 7)])
def test_the_result_is_that_of_a_linear_layer(shape: tuple[int, ...], bias: bool, asked):
    layer = onednn.through_onednn(nn.Sequential(nn.Linear(7, 4, bias=bias)))[0]
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    assert len(asked) == 1


@needs_it
@torch.no_grad()
def test_strides_are_followed(asked):
    """Weights may be transposed views (GPT-2's out of the diffusers layout), and inputs slices."""
    layer = onednn.through_onednn(nn.Linear(7, 4))
    layer.weight = nn.Parameter(torch.randn(7, 4).t())
    for x in (
        torch.randn(2, 7, 5).transpose(1, 2),
        torch.randn(4, 10, 7)[:, ::2],
        torch.randn(1, 7).expand(3, 7),
    ):
        expected = F.linear(x.contiguous(), layer.weight.contiguous(), layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    assert len(asked) == 3


@needs_it
def test_gradients_and_other_dtypes_take_the_public_way(asked):
    layer = onednn.through_onednn(nn.Linear(7, 4))
    layer(torch.randn(2, 7)).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer.bfloat16()(torch.randn(2, 7, dtype=torch.bfloat16))
    assert asked == []


def test_keys_and_weights_stay():
    network = nn.Sequential(nn.Linear(7, 4), nn.Conv1d(4, 4, 1))
    before = {key: tensor.data_ptr() for key, tensor in network.state_dict().items()}
    after = onednn.through_onednn(network).state_dict()
    assert {key: tensor.data_ptr() for key, tensor in after.items()} == before


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: (_ for _ in ()).throw(NotImplementedError("not on this backend")),
        lambda *_: (_ for _ in ()).throw(AttributeError("no such operator")),
        lambda x, weight, bias: F.linear(x, weight) + 0.01,
        lambda x, weight, bias: F.linear(x, weight, bias)[0],
    ],
    ids=["unsupported", "absent", "wrong", "another shape"],
)
def test_without_it_networks_stay_as_they_are(monkeypatch, unknown, answer):
    monkeypatch.setattr(onednn, "_linear", answer)
    network = onednn.through_onednn(nn.Sequential(nn.Linear(7, 4)))
    assert type(network[0]) is nn.Linear
