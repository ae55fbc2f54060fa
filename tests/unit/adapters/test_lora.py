"""Layers with low-rank adapters: what they compute, which layers each set names, training."""

import copy

import pytest
import torch
from torch import Tensor, nn

from audioldm2 import AudioLDM2, ops
from audioldm2.adapters import lora
from audioldm2.adapters.adapter import additions
from audioldm2.adapters.lora import LowRank
from audioldm2.models import build_on_meta
from audioldm2.models.layers import Conv2d, Linear, UpsamplingConv
from audioldm2.models.unet import UNet, UNetConfig
from tests.support.adapters import random_adapter

SETS = pytest.mark.parametrize("which", lora.LAYER_SETS)


@pytest.fixture
def unet(tiny_model: AudioLDM2) -> UNet:
    """A copy, which a test may change."""
    with tiny_model.networks.running("unet") as network:
        return copy.deepcopy(network).float()


def predict(unet: UNet, dtype: torch.dtype = torch.float32, *, cached: bool = False) -> Tensor:
    config, generator = unet.config, torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, t = randn(2, config.latent_channels, 6, 16), torch.tensor(321.0)
    contexts = {"gpt2_context": randn(2, 4, config.gpt2_dim), "text_context": randn(2, 5, config.t5_dim)}
    if cached:
        return unet(x, t, keys_values=unet.context_keys_values(**contexts))
    return unet(x, t, **contexts)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def with_adapters(unet: UNet, *adapters) -> UNet:
    return additions(adapters)["unet"](copy.deepcopy(unet))


def folded(unet: UNet, *adapters) -> UNet:
    """The same change, in the weights."""
    found = copy.deepcopy(unet)
    for adapter in adapters:
        for path, low in adapter.layers["unet"].items():
            found.get_parameter(f"{path}.weight").data += adapter.weight * low.product
    return found


# ---- which layers


@pytest.mark.parametrize("which, layers, parameters", [
    ("attention", 384, 2_936_832),
    ("attention+ff", 480, 5_302_272),
    ("all", 667, 8_039_040),
])  # fmt: skip
def test_layer_sets_of_the_published_base(which: str, layers: int, parameters: int):
    unet = build_on_meta("unet", UNetConfig())
    paths = lora.layers_of(unet, "unet", which)
    shapes = [unet.get_parameter(f"{path}.weight").shape for path in paths]
    found = sum(8 * (outputs + inputs * torch.Size(kernel).numel()) for outputs, inputs, *kernel in shapes)
    assert (len(paths), found) == (layers, parameters)
    assert which != "attention" or round(2 * found / 1e6, 1) == 5.9  # MB in float16


def test_layer_sets_contain_each_other(tiny_model: AudioLDM2):
    for name in lora.NETWORKS:
        network = build_on_meta(name, tiny_model.networks.configs[name])
        few, more, most = (set(lora.layers_of(network, name, which)) for which in lora.LAYER_SETS)
        assert few and few <= more <= most
        assert most == {
            path for path, layer in network.named_modules() if isinstance(layer, (Linear, Conv2d))
        }
    assert few == most == {"clap_linear", "t5_linear"}  # of the projection


# ---- what is computed


@pytest.mark.parametrize("which, mode", zip(lora.LAYER_SETS, ("auto", "reference", "auto"), strict=True))
def test_fresh_adapter_changes_no_bit(which: str, mode: str, unet: UNet):
    with ops.using(mode), torch.no_grad():
        expected = predict(unet)
        lora.add_trainable(unet, "unet", 4, which=which)
        assert torch.equal(predict(unet), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "which, rank, mode",
    [  # every pair of values
        *(("attention", 1, "reference"), ("attention", 8, "auto"), ("attention+ff", 8, "reference")),
        *(("attention+ff", 1, "auto"), ("all", 1, "reference"), ("all", 8, "auto")),
    ],
)
def test_adapted_equals_merged(which: str, rank: int, mode: str, unet: UNet):
    adapter = random_adapter({"unet": unet.config}, which, rank=rank)
    with ops.using(mode), torch.no_grad():
        found, expected = predict(with_adapters(unet, adapter)), predict(folded(unet, adapter))
        assert distance(found, expected) < 1e-5
        assert distance(expected, predict(unet)) > 0.02


@pytest.mark.slow
def test_several_adapters_add_up(unet: UNet):
    adapters = [
        random_adapter({"unet": unet.config}, which, seed=i) for i, which in enumerate(lora.LAYER_SETS)
    ]
    with torch.no_grad():
        found, expected = predict(with_adapters(unet, *adapters)), predict(folded(unet, *adapters))
        assert distance(found, expected) < 1e-5
        assert distance(predict(with_adapters(unet, *adapters[:2])), expected) > 0.02


@pytest.mark.slow
def test_bfloat16_adapter_has_the_dtype_of_its_layer(unet: UNet):
    adapter = random_adapter({"unet": unet.config}, "all")
    half = with_adapters(copy.deepcopy(unet).bfloat16(), adapter)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert distance(predict(half, torch.bfloat16), predict(with_adapters(unet, adapter))) < 0.05


def test_cached_keys_and_values_are_adapted(unet: UNet):
    unet = with_adapters(unet, random_adapter({"unet": unet.config}))
    with torch.no_grad():
        assert torch.equal(predict(unet, cached=True), predict(unet))


@pytest.mark.slow
def test_adapted_layers_compile_whole(unet: UNet):
    unet = with_adapters(unet, random_adapter({"unet": unet.config}, "all"))
    block, size = unet.middle.layer, unet.config.channels[-1]
    x, time = torch.randn(1, size, 2, 2), torch.randn(1, unet.config.time_dim)
    with torch.no_grad():
        for layer, *given in (
            (block.resnet, x, time),
            (block.self_attn.blocks[0].self_attn, x.flatten(2).mT),
        ):
            compiled = torch.compile(layer, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(*given), layer(*given))


@pytest.mark.parametrize("size", [(), ((7, 5),)])
def test_upsampling_convolution_is_adapted_after_it_has_resized(size: tuple):
    network = nn.Sequential(UpsamplingConv(4)).requires_grad_(False)
    x, low = torch.randn(2, 4, 3, 3), LowRank(torch.randn(2, 4, 3, 3), torch.randn(4, 2, 1, 1), 0.5)
    merged = copy.deepcopy(network)
    merged[0].weight.data += 2 * low.product
    lora.add(network, "0", low)
    lora.add(network, "0", low)
    torch.testing.assert_close(network[0](x, *size), merged[0](x, *size))


def test_strided_convolution_is_adapted():
    network = nn.Sequential(Conv2d(4, 6, 3, stride=2, padding=1)).requires_grad_(False)
    x, low = torch.randn(2, 4, 7, 6), LowRank(torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1), 0.5)
    merged = copy.deepcopy(network)
    merged[0].weight.data += low.product
    lora.add(network, "0", low)
    torch.testing.assert_close(network(x), merged(x))


# ---- training


@SETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapters_get_gradients(which: str, dtype: torch.dtype, unet: UNet):
    unet = unet.to(dtype)
    trained = lora.add_trainable(
        unet, "unet", 2, which=which, alpha=6, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for parameter in trained.parameters():  # B = 0 leaves A without a gradient
            parameter += 0.01
    predict(unet, dtype).float().square().mean().backward()
    learning = {id(parameter) for parameter in unet.parameters() if parameter.requires_grad}
    assert learning == {id(parameter) for parameter in trained.parameters()} and learning
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in trained.parameters())
    assert {each.dtype for each in trained.parameters()} == {torch.float32}
    assert set(trained.scales.values()) == {3.0}


def test_new_adapters_leave_the_global_generator_alone(unet: UNet):
    before = torch.get_rng_state()
    matrices = [
        lora.add_trainable(
            copy.deepcopy(unet), "unet", 2, generator=torch.Generator().manual_seed(seed)
        ).low_ranks()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = ([low.A for low in each.values()] for each in matrices)
    assert all(map(torch.equal, first, same)) and not any(map(torch.equal, first, other))
    inputs = torch.tensor([each.shape[1] for each in first])
    largest = torch.stack([each.abs().max() for each in first])
    assert (largest <= inputs**-0.5).all() and (largest > 0.6 * inputs**-0.5).all()


def test_trained_matrices_are_those_of_the_network(unet: UNet):
    trained = lora.add_trainable(unet, "unet", 2)
    state = {key: torch.randn_like(tensor) for key, tensor in trained.state_dict().items()}
    trained.load_state_dict(state)
    path, low = next(iter(trained.low_ranks().items()))
    layer = unet.get_submodule(path)
    assert torch.equal(layer.A, low.A) and torch.equal(layer.B, low.B)
    assert torch.equal(layer.A, state[f"{path}.A".replace(".", "/")])
