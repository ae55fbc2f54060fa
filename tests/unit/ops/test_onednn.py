"""Linear layers through oneDNN, against PyTorch's own; and without it, where it is absent or wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audioldm2.models import hifigan, layers, unet, vae
from audioldm2.models.unet import FeedForward
from audioldm2.ops import onednn

needs_it = pytest.mark.skipif(
    not onednn.is_here(torch.float32), reason="this PyTorch has no oneDNN, or another one"
)
needs_it_in_bfloat16 = pytest.mark.skipif(
    not onednn.is_here(torch.bfloat16), reason="this processor or PyTorch has no oneDNN for bfloat16"
)


@pytest.fixture
def asked(monkeypatch) -> list:
    """The inputs that oneDNN was asked with."""
    inputs, linear = [], onednn._linear
    monkeypatch.setattr(onednn, "_linear", lambda x, *rest: inputs.append(x) or linear(x, *rest))
    return inputs


@pytest.fixture
def unknown():
    """What is known of the operators is forgotten, before and after."""
    for known in (onednn.is_here, onednn.gates, onednn.packs):
        known.cache_clear()
    yield
    for known in (onednn.is_here, onednn.gates, onednn.packs):
        known.cache_clear()


@needs_it
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 7), (7,), (3, 7), (0, 7), (2, 0, 7), (1, 2, 3, 7), (2, 300, 7)])
def test_the_result_is_that_of_a_linear_layer(shape: tuple[int, ...], bias: bool, asked):
    layer = onednn.through_onednn(nn.Sequential(nn.Linear(7, 4, bias=bias)))[0]
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    assert len(asked) == 1


@needs_it_in_bfloat16
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 70), (70,), (0, 70), (1, 2, 3, 70), (2, 300, 70)])
def test_bfloat16_results_are_the_exact_ones_rounded(shape: tuple[int, ...], bias: bool, asked):
    layer = onednn.through_onednn(nn.Sequential(nn.Linear(70, 40, bias=bias).bfloat16()))[0]
    x = torch.randn(shape, dtype=torch.bfloat16)
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(layer(x), expected.bfloat16(), rtol=2**-7, atol=2**-9)  # its last bit, at most
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
        layer.double()(torch.randn(2, 7, dtype=torch.float64))
    assert asked == []


@needs_it
def test_a_trial_under_autocast_is_the_same(unknown):
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn.is_here(torch.float32) and onednn.gates(torch.float32)


@torch.no_grad()
def test_under_autocast_inputs_may_be_narrower_than_weights():
    for layer in (nn.Linear(8, 8), FeedForward(8)):
        x, network = torch.randn(2, 3, 8).bfloat16(), onednn.through_onednn(nn.Sequential(layer))
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), network(x.float()), rtol=0.05, atol=0.05)


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


# Feed-forward layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-6), (torch.bfloat16, 0.006)])
@pytest.mark.parametrize("shape", [(2, 30, 48), (1, 1, 48), (5, 48)])
def test_a_gated_layer_is_that_of_the_network_file(dtype: torch.dtype, near: float, shape, monkeypatch):
    if not onednn.gates(dtype):
        pytest.skip(f"this PyTorch has no oneDNN for {dtype}, or another one")
    asked, gated = [], onednn._gated
    monkeypatch.setattr(onednn, "_gated", lambda *given: asked.append(given) or gated(*given))
    layer, x = FeedForward(48), torch.randn(shape)
    with torch.no_grad():
        for bias in (layer.value_and_gate.bias, layer.out.bias):
            bias.normal_()
        expected = layer.double()(x.double())
        found = onednn.through_onednn(nn.Sequential(layer.to(dtype)))(x.to(dtype)).double()
    assert len(asked) == 1
    assert (found - expected).norm() < near * expected.norm()


def test_a_gated_layer_learns_the_public_way(monkeypatch):
    monkeypatch.setattr(onednn, "_gated", lambda *given: pytest.fail("oneDNN was asked"))
    layer = onednn.through_onednn(nn.Sequential(FeedForward(8)))[0]
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.value_and_gate.weight.grad is not None


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: (_ for _ in ()).throw(RuntimeError("no bfloat16 on this processor")),
        lambda *_: (_ for _ in ()).throw(AttributeError("no such operator")),
        lambda x, value, bias, gate, gate_bias: F.linear(x, value, bias) * F.linear(x, gate, gate_bias),
        lambda x, value, bias, gate, gate_bias: F.linear(x, value, bias)[0],
    ],
    ids=["unsupported", "absent", "no GELU", "another shape"],
)
@torch.no_grad()
def test_without_it_gated_layers_compute_as_the_network_file_says(monkeypatch, unknown, answer):
    monkeypatch.setattr(onednn, "_gated", answer)
    layer, x = FeedForward(8), torch.randn(2, 3, 8)
    expected = layer(x)
    torch.testing.assert_close(onednn.through_onednn(layer)(x), expected)


# Packed weights ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not onednn.packs(torch.bfloat16), reason="this PyTorch cannot pack, or packs otherwise")
@torch.no_grad()
@pytest.mark.parametrize(
    "layer, x",
    [
        (nn.Linear(70, 40), torch.randn(2, 130, 70)),
        (nn.Linear(70, 40, bias=False), torch.randn(300, 70)),
        (FeedForward(48), torch.randn(2, 128, 48)),
    ],
)
def test_a_packed_weight_gives_the_same_to_the_bit(layer: nn.Module, x: torch.Tensor):
    twin = onednn.through_onednn(nn.Sequential(layer.bfloat16()))[0]
    few = x.bfloat16().flatten(0, -2)[:255]
    expected, expected_of_few, packings = twin(x.bfloat16()), twin(few), []
    twin.packed = lambda weight: packings.append(weight) or type(twin).pack(weight)
    assert torch.equal(twin(x.bfloat16()), expected) and len(packings) == 1
    twin.packed = lambda weight: type(twin).pack(2 * weight)  # it is this that is read
    assert not torch.equal(twin(x.bfloat16()), expected)
    twin.packed = lambda weight: pytest.fail("packed for few rows")
    assert torch.equal(twin(few), expected_of_few)


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: (_ for _ in ()).throw(NotImplementedError("not on this backend")),
        lambda weight: weight + 0.1,
        lambda weight: weight[:4],
    ],
    ids=["unsupported", "wrong", "another shape"],
)
def test_where_packing_fails_it_is_left_alone(answer, monkeypatch, unknown):
    monkeypatch.setattr(onednn, "_packed", answer)
    assert not onednn.packs(torch.bfloat16)


# Attention --------------------------------------------------------------------------------------------------


@pytest.fixture
def by_products(monkeypatch) -> list:
    """The inputs of attention by products, which is asked for any number of tokens, on any processor."""
    inputs, attention = [], onednn.attention
    monkeypatch.setattr(
        onednn, "attention", lambda *given, **how: inputs.append(given) or attention(*given, **how)
    )
    monkeypatch.setattr(onednn, "MANY", 1)
    monkeypatch.setattr(onednn, "has_amx", lambda: False)
    return inputs


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@needs_it
@torch.no_grad()
@pytest.mark.parametrize("scores", [2**20, 1], ids=["a head at once", "in blocks"])
@pytest.mark.parametrize(
    "batch, queries, keys, heads, dim",
    [(1, 7, 7, 1, 5), (1, 30, 30, 4, 32), (2, 300, 41, 4, 96), (3, 1, 600, 2, 8)],
)
def test_attention_by_products_is_attention(batch, queries, keys, heads, dim, scores, monkeypatch):
    """And products get their tensors in one piece: slices take oneDNN several hundred times as long."""
    linear, pieces = onednn._linear, []
    monkeypatch.setattr(
        onednn, "_linear", lambda x, weight, _: pieces.extend((x, weight)) or linear(x, weight, None)
    )
    monkeypatch.setattr(onednn, "SCORES", scores)
    given = torch.randn(batch, queries, dim), torch.randn(batch, keys, dim), torch.randn(batch, keys, dim)
    expected = layers.attention(*(each.double() for each in given), heads)
    found = onednn.attention(*given, heads)
    assert found.shape == expected.shape and distance(found, expected) < 2e-6
    assert pieces and all(each.is_contiguous() or each.T.is_contiguous() for each in pieces)


@needs_it
@torch.no_grad()
def test_large_scores_are_not_rounded_in_bfloat16():
    """Where scores are as large as 60, rounding them to bfloat16 would be an error of several percent."""
    given = [(scale * torch.randn(1, 600, 64)).bfloat16() for scale in (4, 4, 1)]
    expected = layers.attention(*(each.double() for each in given), heads=2)
    assert distance(onednn.attention(*given, heads=2), expected.bfloat16()) < 1e-3  # 3e-2 of rounded scores


@needs_it
@torch.no_grad()
@pytest.mark.parametrize("dtype, near", [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
def test_layers_that_attend_by_products_are_those_of_the_network_files(dtype, near, by_products):
    self_attention, x = vae.SelfAttention(vae.VAEConfig(norm_groups=2), 8), torch.randn(2, 8, 5, 3)
    attention, seq = unet.Attention(64, 24, heads=4), (torch.randn(2, 30, 64), torch.randn(2, 9, 24))
    for layer, given in ((self_attention, (x,)), (attention, seq)):
        expected = layer.double()(*(each.double() for each in given))
        found = onednn.through_onednn(layer.to(dtype))(*(each.to(dtype) for each in given))
        assert found.dtype == dtype and distance(found, expected) < near
    assert len(by_products) == 2


@needs_it
def test_attention_takes_the_public_way_where_products_are_not_faster_or_not_allowed(
    by_products, monkeypatch
):
    layer = onednn.through_onednn(unet.Attention(64, 64, heads=4))
    x, mask = torch.randn(2, 30, 64), torch.ones(2, 1, 1, 30, dtype=torch.bool)
    layer(x, x).sum().backward()
    assert layer.query.weight.grad is not None
    with torch.no_grad():
        layer(x, x, mask)
        monkeypatch.setattr(onednn, "MANY", 31)
        layer(x, x)
        monkeypatch.setattr(onednn, "MANY", 30)
        monkeypatch.setattr(onednn, "has_amx", lambda: True)  # whose own way is as fast, but with wide heads
        layer(x, x)
        assert by_products == []
        onednn.through_onednn(unet.Attention(256, 64, heads=2))(torch.randn(2, 30, 256), x)
        assert len(by_products) == 1


# Convolutions of narrow maps --------------------------------------------------------------------------------


@needs_it_in_bfloat16
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 9, 2), (1, 6, 1, 1), (3, 6, 2, 2)])
def test_a_convolution_of_a_narrow_map_is_a_product(shape: tuple[int, ...], bias: bool, asked):
    layer = nn.Conv2d(6, 10, 3, padding=1, bias=bias)
    layer.weight = nn.Parameter(onednn.channels_innermost(layer.weight.bfloat16()))
    x = torch.randn(shape, dtype=torch.bfloat16)
    expected = layer.double()(x.double())
    narrow = onednn.through_onednn(nn.Sequential(layer.bfloat16()))[0]
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert distance(narrow(given), expected) < 0.005
    assert len(asked) == 2
    assert narrow(x).is_contiguous(memory_format=torch.channels_last)


@needs_it_in_bfloat16
@torch.no_grad()
@pytest.mark.parametrize(
    "other",
    [
        dict(stride=2),
        dict(kernel_size=5, padding=2),
        dict(padding=(2, 1)),
        dict(groups=2),
        dict(dilation=2, padding=2),
        dict(padding_mode="circular"),
    ],
    ids=str,
)
def test_other_convolutions_take_the_public_way(other: dict, asked):
    layer = nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, **other}).bfloat16()
    layer.weight = nn.Parameter(onednn.channels_innermost(layer.weight))
    x = torch.randn(1, 4, 8, 2, dtype=torch.bfloat16)
    expected = layer(x)
    assert torch.equal(onednn.through_onednn(nn.Sequential(layer))[0](x), expected) and asked == []


# Whatever stands in -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("stood_for", "made", "given"),
    [
        (layers.UpsamplingConv, lambda: layers.UpsamplingConv(4), [torch.ones(1, 4, 8, 8)]),
        (
            hifigan.Upsampling,
            lambda: hifigan.Upsampling(4, 2, 16, stride=5, padding=5),
            [torch.ones(1, 4, 9)],
        ),
        (FeedForward, lambda: FeedForward(8), [torch.ones(1, 3, 8)]),
        (unet.Attention, lambda: unet.Attention(8, 8, heads=2), [torch.ones(1, 3, 8), torch.ones(1, 3, 8)]),
        (vae.SelfAttention, lambda: vae.SelfAttention(vae.VAEConfig(), 32), [torch.ones(1, 32, 4, 4)]),
    ],
)
def test_a_class_that_was_changed_runs_itself(stood_for, made, given, monkeypatch, by_products):
    twin = onednn.through_onednn(made())
    assert type(twin) is not stood_for and not torch.equal(twin(*given), given[0])
    monkeypatch.setattr(stood_for, "forward", lambda self, x, *_: x)
    assert torch.equal(twin(*given), given[0])


@torch.no_grad()
@pytest.mark.parametrize("file", [unet, vae])
def test_another_attention_function_is_called(file, by_products, monkeypatch):
    monkeypatch.setattr(file, "attention", lambda query, *_, **__: 0 * query)
    attention, self_attention = unet.Attention(8, 8, heads=2), vae.SelfAttention(vae.VAEConfig(), 32)
    onednn.through_onednn(nn.Sequential(attention, self_attention))
    x, image = torch.randn(1, 3, 8), torch.randn(1, 32, 4, 4)
    found, silent = (
        (attention(x, x), attention.out.bias.expand(1, 3, 8))
        if file is unet
        else (self_attention(image), image + self_attention.out.bias[:, None, None])
    )
    torch.testing.assert_close(found, silent)
    assert by_products == []


class Wrapped(nn.Module):
    """As those write it who adapt a layer: around it, without its weight."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


@torch.no_grad()
def test_layers_in_place_of_those_of_an_attention_are_called(by_products):
    attention, self_attention = unet.Attention(8, 8, heads=2), vae.SelfAttention(vae.VAEConfig(), 32)
    onednn.through_onednn(nn.Sequential(attention, self_attention))
    for layer, given in (
        (attention, [torch.randn(1, 3, 8)] * 2),
        (self_attention, [torch.randn(1, 32, 4, 4)]),
    ):
        before = layer(*given)
        layer.query, layer.value = Wrapped(layer.query), Wrapped(layer.value)
        assert not torch.allclose(layer(*given), before)
    assert len(by_products) == 2


@torch.no_grad()
def test_contexts_of_another_batch_take_the_public_way(by_products):
    """Which repeats what is 1."""
    layer = onednn.through_onednn(unet.Attention(8, 8, heads=2))
    assert layer(torch.randn(3, 5, 8), torch.randn(1, 6, 8)).shape == (3, 5, 8)
    assert layer(torch.randn(1, 5, 8), torch.randn(3, 6, 8)).shape == (3, 5, 8)
    assert by_products == []


@torch.no_grad()
def test_another_kernel_is_called(by_products, monkeypatch):
    layer, x, calls = onednn.through_onednn(unet.Attention(8, 8, heads=2)), torch.randn(1, 5, 8), []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: calls.append(1) or query)
    layer(x, x)
    assert calls == [1] and by_products == []


@needs_it_in_bfloat16
@torch.no_grad()
def test_a_changed_convolution_is_heard_where_maps_are_narrow(monkeypatch):
    """As those change it who make tiles that fit: each convolution's `_conv_forward`, or the class."""
    layer = nn.Conv2d(6, 10, 3, padding=1).bfloat16()
    layer.weight = nn.Parameter(onednn.channels_innermost(layer.weight))
    x = torch.randn(1, 6, 9, 2).bfloat16()
    onednn.through_onednn(nn.Sequential(layer))
    torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=0, atol=0.02)  # without a batch, too
    layer._conv_forward = lambda x, *_: 7 * x
    assert torch.equal(layer(x), 7 * x)
    del layer._conv_forward
    with monkeypatch.context() as patched:
        patched.setattr(nn.Conv2d, "_conv_forward", lambda self, x, *_: 7 * x)
        assert torch.equal(layer(x), 7 * x)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 7 * x)
    assert torch.equal(layer(x), 7 * x)


@needs_it_in_bfloat16
@torch.no_grad()
def test_packed_weights_may_go_while_a_layer_computes(monkeypatch):
    """A request in another thread, which packed them, ends."""
    layers, x, alone = (nn.Linear(8, 8), FeedForward(8)), torch.randn(300, 8).bfloat16(), onednn._alone
    for layer in onednn.through_onednn(nn.Sequential(*layers)).bfloat16():
        layer.packed = type(layer).pack

        def ends(x: torch.Tensor, weight: torch.Tensor, layer: nn.Module = layer) -> bool:
            vars(layer).pop("packed", None)
            return alone(x, weight)

        expected = layer(x)
        monkeypatch.setattr(onednn, "_alone", ends)
        assert torch.equal(layer(x), expected)
        monkeypatch.setattr(onednn, "_alone", alone)
