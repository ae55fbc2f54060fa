"""Linear layers on CPUs through oneDNN: what a network file says, in less time.

In float32 PyTorch gives linear layers to MKL, which uses the vector units of other makers' processors only in
part: 100 GFLOP/s on two cores of an AMD EPYC, where oneDNN, which PyTorch has too and uses for convolutions,
comes to 230. In float32 and bfloat16, oneDNN also gates the denoiser's feed-forward layers while it
multiplies: GELU and product are done before a result leaves the cache. Results differ by rounding. The
operators are internal to PyTorch, so each is tried once against the public ones, and left alone where it is
absent or differs.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models import unet


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, asked of oneDNN where it may: in float32, on a CPU, without gradients."""
    if (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # the compiler chooses for itself
        and is_here()
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
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or not gates(x.dtype)
        ):
            return super().forward(x)
        value, gate = self.value_and_gate.weight.chunk(2)
        value_bias, gate_bias = self.value_and_gate.bias.chunk(2)
        return self.out(_gated(x, value, value_bias, gate, gate_bias))


def through_onednn(network: nn.Module) -> nn.Module:
    """The same network, whose linear and feed-forward layers ask oneDNN where this PyTorch can."""
    classes = {nn.Linear: Linear} if is_here() else {}
    classes |= {unet.FeedForward: FeedForward}
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]  # same weights, same keys: only `forward` is another
    return network


@lru_cache
def is_here() -> bool:
    """Whether the operator exists here and agrees with `torch.nn.functional.linear`."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 5, 16), (8, 16), (8,)))
    try:
        with torch.no_grad():
            found = _linear(x, weight, bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # by the version and the platform
        return False
    return found.shape == (3, 5, 8) and torch.allclose(found, F.linear(x, weight, bias), atol=1e-5)


@lru_cache
def gates(dtype: torch.dtype) -> bool:
    """Whether the operators of a gated layer exist here for a dtype and agree with the public ones."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 5, 16), (8, 16), (8,), (8, 16), (8,)
    x, *weights = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    value, value_bias, gate, gate_bias = weights
    try:
        with torch.no_grad():
            found = _gated(x, *weights)
            expected = F.linear(x, value, value_bias) * F.gelu(F.linear(x, gate, gate_bias))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    near = 1e-4 if dtype == torch.float32 else 0.05
    return found.shape == (3, 5, 8) and torch.allclose(found, expected, atol=near, rtol=near)


def _gated(x: Tensor, value: Tensor, value_bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
    """(x value + its bias) * GELU(x gate + its bias)."""
    gate = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")  # none: the exact one
    return torch.ops.mkldnn._linear_pointwise.binary(x, gate, value, value_bias, "mul")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
