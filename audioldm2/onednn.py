"""Linear layers on CPUs through oneDNN: what a network file says, in half of the time.

In float32 PyTorch gives linear layers to MKL, which uses the vector units of other makers' processors only in
part: 100 GFLOP/s on two cores of an AMD EPYC, where oneDNN, which PyTorch has too and uses for convolutions,
comes to 230. Results differ by rounding. The operator is internal to PyTorch, so it is tried once against the
public one, and left alone where it is absent or differs.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def through_onednn(network: nn.Module) -> nn.Module:
    """The same network, whose linear layers ask oneDNN where this PyTorch can."""
    if is_here():
        for module in network.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear  # same weights, same keys: only `forward` is another
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


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
