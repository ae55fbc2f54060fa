"""The vocoder's transposed convolution by phases, against PyTorch's own where that one is right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audioldm2.models.hifigan import Upsampling
from audioldm2.onednn import channels_innermost, through_onednn

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


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7), (4, 3, 5, 5), (6,)])
def test_only_the_layout_of_a_weight_changes(shape: tuple[int, ...]):
    weight = torch.randn(shape)
    found = channels_innermost(weight)
    assert torch.equal(found, weight)
    assert len(shape) < 3 or found.stride(1) == 1
