"""Layers on CPUs as oneDNN likes them: what a network file says, in less time.

In float32 PyTorch gives linear layers to MKL, which uses the vector units of other makers' processors only in
part: 100 GFLOP/s on two cores of an AMD EPYC, where oneDNN, which PyTorch has too and uses for convolutions,
comes to 230. In bfloat16 PyTorch asks oneDNN itself, but writes the bias beforehand: 10 to 20 % of the time.
oneDNN also gates the denoiser's feed-forward layers while it multiplies: GELU and product are done before a
result leaves the cache. Results differ by rounding. These operators are internal to PyTorch, so each is tried
once against the public ones, and left alone where it is absent or differs.

Convolutions in bfloat16 are up to five times as fast with channels innermost in memory, which PyTorch has for
images only: one over time then runs as one over an image one row high.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models import hifigan, unet

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # of one product, where an operator is tried
TOLERANCE_GATED = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # of the product of two, one through GELU


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, asked of oneDNN where it may: on a CPU, without gradients."""
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype  # else autocast is on, and knows public operators only
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # the compiler chooses for itself
        and is_here(x.dtype)
    ):
        return _linear(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """An `nn.Linear` that asks oneDNN where it may."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FeedForward(unet.FeedForward):
    """The denoiser's feed-forward layer, gated by oneDNN where it may."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.device.type != "cpu"
            or x.dtype != self.out.weight.dtype
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or not gates(x.dtype)
        ):
            return super().forward(x)
        value, gate = self.value_and_gate.weight.chunk(2)
        value_bias, gate_bias = self.value_and_gate.bias.chunk(2)
        return self.out(_gated(x, value, value_bias, gate, gate_bias))


class Conv1d(nn.Conv1d):
    """A convolution over time, as one over an image where that is the faster one."""

    def forward(self, x: Tensor) -> Tensor:
        if not _as_image(x):
            return super().forward(x)
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        y = F.conv2d(
            x.unsqueeze(2), self.weight.unsqueeze(2), self.bias,
            (1, stride), (0, padding), (1, dilation), self.groups,
        )  # fmt: skip
        return y.squeeze(2)


class Upsampling(hifigan.Upsampling):
    """The vocoder's upsampling, so too: what is innermost then is phases and channels, in their order."""

    def forward(self, x: Tensor) -> Tensor:
        if not _as_image(x):
            return super().forward(x)
        (rate,), (padding,), weight = self.stride, self.padding, self.phases()
        bias = self.bias.repeat(rate)
        y = F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, weight.shape[2] - 1))
        y = y.squeeze(2).transpose(1, 2)  # (batch, time + taps - 1, rate * channels)
        y = y.reshape(len(x), y.shape[1] * rate, -1)  # (batch, samples and some, channels)
        return y[:, padding : padding + self.samples(x)].transpose(1, 2)


def _as_image(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


def channels_innermost(weight: Tensor) -> Tensor:
    """The same weight of a convolution over images or time (out, in, ...), with `in` innermost in memory."""
    if weight.ndim == 4:
        return weight.to(memory_format=torch.channels_last)
    return weight.transpose(1, 2).contiguous().transpose(1, 2) if weight.ndim == 3 else weight


def through_onednn(network: nn.Module) -> nn.Module:
    """The same network, whose layers ask oneDNN where this PyTorch can."""
    classes = {unet.FeedForward: FeedForward, nn.Conv1d: Conv1d, hifigan.Upsampling: Upsampling}
    if any(map(is_here, TOLERANCE)):
        classes[nn.Linear] = Linear
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]  # same weights, same keys: only `forward` is another
    return network


@lru_cache
def is_here(dtype: torch.dtype) -> bool:
    """Whether the operator exists here for a dtype and agrees with `torch.nn.functional.linear`."""
    return _agree(_linear, F.linear, TOLERANCE.get(dtype), dtype, (3, 5, 16), (8, 16), (8,))


@lru_cache
def gates(dtype: torch.dtype) -> bool:
    """Whether the operators of a gated layer exist here for a dtype and agree with the public ones."""

    def public(x: Tensor, value: Tensor, value_bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        return F.linear(x, value, value_bias) * F.gelu(F.linear(x, gate, gate_bias))

    shapes = (3, 5, 16), (8, 16), (8,), (8, 16), (8,)
    return _agree(_gated, public, TOLERANCE_GATED.get(dtype), dtype, *shapes)


def _agree(
    ours: Callable, public: Callable, near: float | None, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> bool:
    """Whether two functions of tensors of these shapes give nearly the same; not where `near` is unknown."""
    if near is None:
        return False
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found, expected = ours(*given), public(*given)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # by the version and the platform
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, atol=near, rtol=near)


def _gated(x: Tensor, value: Tensor, value_bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
    """(x value + its bias) * GELU(x gate + its bias)."""
    gate = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")  # none: the exact one
    return torch.ops.mkldnn._linear_pointwise.binary(x, gate, value, value_bias, "mul")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
