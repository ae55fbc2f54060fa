"""Convolutions that upsample, and those that run over images, against PyTorch's own where that is right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audioldm2.models import layers
from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig, Upsampling
from audioldm2.ops import onednn
from audioldm2.ops.onednn import channels_innermost, through_onednn
from audioldm2.runtime import memory

OF_48_KHZ = (768, 384, 10, 5)  # where PyTorch's own is wrong on a CPU with several threads
SHAPES = [OF_48_KHZ, (64, 32, 16, 5), (16, 8, 4, 2), (8, 4, 7, 3), (4, 2, 3, 3), (2, 1, 5, 1), (2, 2, 12, 6)]


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 2, 7, 120])
@pytest.mark.parametrize("shape", SHAPES)
def test_phases_are_the_transposed_convolution(shape: tuple[int, int, int, int], time: int):
    channels_in, channels, kernel, rate = shape
    padding = (kernel - rate) // 2
    layer = Upsampling(channels_in, channels, kernel, stride=rate, padding=padding)
    x = torch.randn(2, channels_in, time)
    expected = F.conv_transpose1d(  # in float64, which oneDNN leaves to PyTorch
        x.double(), layer.weight.double(), layer.bias.double(), stride=rate, padding=padding
    )
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_same_input_gives_the_same_samples_each_time():
    channels_in, channels, kernel, rate = OF_48_KHZ
    layer = Upsampling(channels_in, channels, kernel, stride=rate, padding=(kernel - rate) // 2)
    x = torch.randn(2, channels_in, 120)
    first = layer(x)
    assert all(torch.equal(layer(x), first) for _ in range(10))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_phases_in_bfloat16_are_the_same(shape: tuple[int, int, int, int], batch: int):
    channels_in, channels, kernel, rate = shape
    layer = Upsampling(channels_in, channels, kernel, stride=rate, padding=(kernel - rate) // 2)
    x = torch.randn(batch, channels_in, 40)
    expected = layer(x)
    found = through_onednn(nn.Sequential(layer.bfloat16()))(x.bfloat16())
    assert found.shape == expected.shape
    assert found.stride(1) == 1 or channels == 1  # channels are innermost
    assert (found - expected).norm() < 0.01 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("dilation, kernel", [(1, 3), (5, 11), (1, 1)])
def test_a_convolution_in_bfloat16_is_that_over_an_image(dilation: int, kernel: int):
    padding = dilation * (kernel - 1) // 2
    layer, x = nn.Conv1d(24, 40, kernel, dilation=dilation, padding=padding), torch.randn(2, 24, 50)
    expected = layer(x)
    layer = through_onednn(nn.Sequential(layer.bfloat16()))[0]
    layer.weight.data = channels_innermost(layer.weight.data)
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):  # channels outermost, and innermost
        assert (layer(given.bfloat16()) - expected).norm() < 0.01 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("dilation, kernel, stride", [(1, 3, 1), (5, 11, 1), (1, 1, 1), (2, 5, 3)])
def test_a_convolution_in_float32_is_that_over_an_image(dilation: int, kernel: int, stride: int):
    layer = nn.Conv1d(24, 40, kernel, stride, dilation * (kernel - 1) // 2, dilation)
    x = torch.randn(2, 24, 50)
    expected = layer(x)
    ours = through_onednn(nn.Sequential(layer))[0]
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):  # channels outermost, and innermost
        found = ours(given)
        assert found.stride(1) == 1 or given is x  # what was innermost is again: it went over an image
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_convolutions_over_time_learn_in_pytorchs_own_layout():
    for layer in (nn.Conv1d(8, 8, 3, padding=1), Upsampling(8, 8, 4, stride=2, padding=1)):
        y = through_onednn(nn.Sequential(layer))(torch.randn(1, 8, 9))
        y.sum().backward()
        assert y.is_contiguous() and layer.weight.grad is not None


def test_stages_of_the_vocoder_give_back_what_they_freed_unless_they_learn(monkeypatch):
    given_back = []
    monkeypatch.setattr(memory, "give_back", lambda: given_back.append(None))
    config = HiFiGANConfig(mels=4, channels=16, upsample_rates=(2, 2), upsample_kernels=(4, 4))
    vocoder, mel = through_onednn(HiFiGAN(config)), torch.randn(1, 6, 4)
    vocoder(mel).sum().backward()
    assert len(given_back) == 0
    with torch.no_grad():
        vocoder(mel)
        assert len(given_back) == 2
        vocoder.bfloat16()(mel.bfloat16())  # smaller holes, not worth the time
    assert len(given_back) == 2


# Doubled maps -----------------------------------------------------------------------------------------------


@pytest.fixture
def sums(monkeypatch) -> list[torch.Tensor]:
    """The weights whose sums were asked for."""
    weights, sums_of_taps = [], onednn.sums_of_taps
    monkeypatch.setattr(onednn, "sums_of_taps", lambda weight: weights.append(weight) or sums_of_taps(weight))
    return weights


@torch.no_grad()
@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 512, 61, 16), (2, 256, 128, 8), (1, 256, 75, 32), (3, 6, 5, 3), (1, 1, 1, 1), (2, 3, 1, 7)]
)
def test_a_doubled_map_is_convolved_by_sums_of_taps(shape, innermost: bool, sums):
    plain = layers.UpsamplingConv(shape[1])
    x = torch.randn(shape)
    expected = plain.double()(x.double())
    layer = through_onednn(nn.Sequential(plain.float()))[0]
    x = x.contiguous(memory_format=torch.channels_last) if innermost else x
    first = layer(x)
    assert len(sums) == 1 and first.shape == expected.shape == (*shape[:2], 2 * shape[2], 2 * shape[3])
    torch.testing.assert_close(first.double(), expected, rtol=0, atol=1e-5)
    assert all(torch.equal(layer(x), first) for _ in range(5))  # unlike PyTorch's for kernel 10 at rate 5


@torch.no_grad()
@pytest.mark.skipif(not onednn.is_here(torch.bfloat16), reason="no oneDNN for bfloat16 here")
@pytest.mark.parametrize("shape", [(1, 512, 61, 16), (2, 256, 128, 8), (3, 6, 5, 3)])
def test_a_doubled_map_is_so_in_bfloat16_too_but_by_amx(shape, sums, monkeypatch):
    monkeypatch.setattr(onednn, "has_amx", lambda: False)
    layer, x = layers.UpsamplingConv(shape[1]).bfloat16(), torch.randn(shape).bfloat16()
    expected = layer.double()(x.double())
    layer = through_onednn(nn.Sequential(layer.bfloat16()))[0]
    first = layer(x)
    assert len(sums) == 1 and first.dtype == torch.bfloat16
    assert (first - expected).norm() < 0.006 * expected.norm()
    assert all(torch.equal(layer(x), first) for _ in range(5))
    monkeypatch.setattr(onednn, "has_amx", lambda: True)
    assert (layer(x) - expected).norm() < 0.006 * expected.norm() and len(sums) == 6


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 6), (10, 5), (9, 5)])
def test_odd_sizes_are_resized_to(size: tuple[int, int], sums):
    """A doubled map that lost its last row has its padding there: the sums would see the row."""
    plain, x = layers.UpsamplingConv(4), torch.randn(2, 4, 5, 3)
    expected = F.conv2d(F.interpolate(x, size), plain.weight, plain.bias, padding=1)
    torch.testing.assert_close(through_onednn(nn.Sequential(plain))[0](x, size), expected)
    assert sums == []


def test_where_sums_do_not_pay_maps_are_doubled(sums):
    layer = through_onednn(nn.Sequential(layers.UpsamplingConv(32)))[0]
    with torch.no_grad():
        layer(torch.randn(1, 32, 3, 2))  # fewer positions than channels
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.randn(1, 32, 30, 20).bfloat16())
    layer(torch.randn(1, 32, 30, 20)).sum().backward()
    assert sums == [] and layer.weight.grad is not None
    with torch.no_grad():
        layer.double()(torch.randn(1, 32, 30, 20).double())
    assert sums == []


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (4, 3, 5, 5), (6,)])
def test_only_the_layout_of_a_weight_changes(shape: tuple[int, ...]):
    weight = torch.randn(shape)
    found = channels_innermost(weight)
    assert torch.equal(found, weight)
    assert len(shape) < 3 or found.stride(1) == 1
