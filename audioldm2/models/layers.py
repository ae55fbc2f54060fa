"""What more than one network uses unchanged: attention over explicit heads, embedding of time, upsampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention, softmax(q kᵀ scale + mask) v, of projected inputs.

    query:         (batch, queries, dim); key and value: (batch, keys, dim), dim = heads * head_dim.
    mask:          broadcastable to (batch, heads, queries, keys): bool, True = attend; or float, added.
    scale:         1/sqrt(head_dim) unless given (T5 uses 1).
    Returns        (batch, queries, dim).
    """
    query, key, value = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, seq, head_dim)
        for x in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).flatten(2)  # (batch, queries, dim)


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


class UpsamplingConv(nn.Conv2d):
    """A feature map resized to its nearest neighbours, doubled unless a size is given, then convolved.

    On a CPU `onednn.UpsamplingConv` stands in for it: edit both.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x: (batch, channels, time, mel). Returns (batch, channels, *size)."""
        return super().forward(F.interpolate(x, size=size or doubled(x), mode="nearest"))


def doubled(x: Tensor) -> tuple[int, int]:
    """The size of a feature map (batch, channels, time, mel) twice as long and as high."""
    return 2 * x.shape[2], 2 * x.shape[3]
