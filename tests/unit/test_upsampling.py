"""The vocoder's transposed convolution by phases, against PyTorch's own where that one is right."""

import pytest
import torch
import torch.nn.functional as F

from audioldm2.models.hifigan import Upsampling

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
