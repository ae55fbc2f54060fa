"""Convolutions over time, over narrow maps, and transposed over time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.ops.dispatch import Kernel, Operation
from audioldm2.ops.heap import trim_heap
from audioldm2.ops.linear_kernels import linear

NARROW = 2  # mel bands of a map, up to which a convolution may be one product of patches
# Bytes of a longer map, from which holes that shorter ones left in the heap are worth handing back: they are
# too small for it. In bfloat16 they are half as large, and getting the memory anew costs a tenth of the
# vocoder's time.
LARGE = 8_000_000
TRIAL_PRODUCTS = 2e8  # multiplications in a trial, about 1 ms


# Over time
# ----------------------------------------------------------------------------------------------------


def conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    return F.conv1d(x, weight, bias, stride, padding, dilation, groups)


def conv1d_as_image(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    """The same over an image one row high, which PyTorch can lay out with channels innermost in memory."""
    x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    y = F.conv2d(x, weight, bias, (1, stride), (0, padding), (1, dilation), groups)
    return y.squeeze(2)


def _conv1d_class(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> tuple:
    return (*weight.shape, stride, groups, "long" if x.shape[2] >= 256 else x.shape[2].bit_length())


def _conv1d_excerpt(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> tuple:
    least = dilation * (weight.shape[2] - 1) + 1 + 256
    x = x[:1, :, : max(least, int(TRIAL_PRODUCTS / weight.numel()))]
    return _channels_innermost(x), weight, bias, stride, padding, dilation, groups


def _channels_innermost(x: Tensor) -> Tensor:
    """As the convolution before it returns it, if that ran over an image too."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


# Ties go to the image: its layout serves the whole network, and every change of it is a copy.
_conv1d = Operation(
    "conv1d",
    conv1d_reference,
    [Kernel("as image", conv1d_as_image, lambda *_: True)],
    _conv1d_class,
    _conv1d_excerpt,
    margin=1.25,
)


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv1d`: x (batch, channels_in, time), weight (channels_out, channels_in, k)."""
    return _conv1d(x, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int) -> Tensor:
    """A transposed convolution, on CPUs as `stride` plain ones.

    The kernel falls into `stride` phases: sample stride * i + r is the sum over n of x[i - n] w[stride * n +
    r]. PyTorch's own CPU code (2.13, oneDNN) is wrong for kernel 10 at stride 5, as in the 48 kHz model, with
    two or more threads, otherwise each time, by as much as the sound is loud.

    Args:
        x: (batch, channels_in, time).
        weight: (channels_in, channels_out, kernel).
        bias: (channels_out,), or None.

    Returns:
        (batch, channels_out, (time - 1) * stride + kernel - 2 * padding).
    """
    if x.device.type != "cpu":
        return F.conv_transpose1d(x, weight, bias, stride, padding)
    kernel = weight.shape[2]
    taps = -(-kernel // stride)
    phases = F.pad(weight, (0, taps * stride - kernel)).unflatten(2, (taps, stride)).flip(2)
    phases = phases.permute(3, 1, 0, 2).flatten(0, 1)  # (stride * channels_out, channels_in, taps)
    y = conv1d(
        x, phases, None if bias is None else bias.repeat(stride), padding=taps - 1
    )  # (batch, stride * channels_out, time + taps - 1)
    y = y.transpose(1, 2).reshape(len(x), y.shape[2] * stride, -1)  # (batch, samples and some, channels_out)
    if not torch.compiler.is_compiling() and y.nbytes > LARGE and y.dtype == torch.float32:
        trim_heap()
    samples = (x.shape[2] - 1) * stride + kernel - 2 * padding
    return y[:, padding : padding + samples].transpose(1, 2)


# Over narrow maps
# ---------------------------------------------------------------------------------------------


def conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding)


def conv2d_as_product(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """One product of all patches: oneDNN's blocks are mostly empty where a map is 2 wide."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (batch, time + 2, mel + 2, channels_in)
    patches = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # (batch, time, mel, channels_in, 3, 3)
    if weight.is_contiguous(memory_format=torch.channels_last):
        patches, weight = patches.movedim(3, 5), weight.permute(0, 2, 3, 1)
    y = linear(patches.flatten(3), weight.flatten(1), bias)  # (batch, time, mel, channels_out)
    return y.permute(0, 3, 1, 2)


def _is_narrow(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> bool:
    """A 3x3 convolution of a narrow map that keeps its size."""
    return x.ndim == 4 and x.shape[3] <= NARROW and weight.shape[2:] == (3, 3) and tuple(padding) == (1, 1)


_conv2d = Operation(
    "conv2d",
    conv2d_reference,
    [Kernel("as product", conv2d_as_product, _is_narrow)],
    lambda x, weight, bias, padding: (*weight.shape, x.shape[3], "long" if x.shape[2] >= 64 else x.shape[2]),
    lambda x, weight, bias, padding: (x[:1, :, :256], weight, bias, padding),
)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """`torch.nn.functional.conv2d` of stride 1: x (batch, channels_in, time, mel)."""
    return _conv2d(x, weight, bias, padding)
