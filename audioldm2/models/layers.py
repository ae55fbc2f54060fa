"""Layers that more than one network uses: linear and convolution layers, upsampling, embedding of time.

`Linear`, `Conv1d` and `Conv2d` are PyTorch's layers, with the same weights and keys, whose arithmetic is
asked of `audioldm2.ops`, where a faster kernel may be chosen.
"""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops

if TYPE_CHECKING:  # PyTorch's list does not say what it holds
    Layer = TypeVar("Layer", bound=nn.Module)

    class ModuleList(nn.ModuleList, Generic[Layer]):
        def __init__(self, modules: Iterable[Layer] | None = None) -> None: ...
        def __iter__(self) -> Iterator[Layer]: ...
else:
    ModuleList = nn.ModuleList


class Linear(nn.Linear):
    """`torch.nn.Linear` through `ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d`, padded with zeros, through `ops.conv1d`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(x, weight, bias)
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        return ops.conv1d(
            x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=self.groups
        )


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, where it is plain (no stride, dilation, groups), through `ops.conv2d`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = self.stride == self.dilation == (1, 1) and self.groups == 1 and self.padding_mode == "zeros"
        if not plain or isinstance(self.padding, str):
            return super()._conv_forward(x, weight, bias)
        rows, columns = self.padding
        return ops.conv2d(x, weight, bias, padding=(rows, columns))


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of diffusion times (Ho et al. 2020), cosines first, as in the published models.

    t: (batch,) times, whole or fractional. Returns float32 (batch, dim).
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000) / half)
    )
    angles = t.float()[:, None] * frequencies  # (batch, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (batch, dim)


class UpsamplingConv(Conv2d):
    """A feature map resized to its nearest neighbours, doubled unless a size is given, then convolved."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x: (batch, channels, time, mel). Returns (batch, channels, *size)."""
        return super().forward(self.resized(x, size))

    @staticmethod
    def resized(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x at the size at which it is convolved."""
        return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")


def repeat_to_batch(x: Tensor, rows: int) -> Tensor:
    """x (batch, ...) repeated until it has `rows` rows; `cat` keeps its memory layout."""
    return x if len(x) == rows else torch.cat([x] * (rows // len(x)))
