"""The phoneme encoder of the speech models, in T5's place: phonemes to one vector each.

A transformer whose attention knows how far apart two phonemes are, up to `window`, by learned vectors added
to keys and to values (Shaw et al. 2018, arXiv 1803.02155), and whose feed-forward is convolutional.

Source: Kim et al. 2021, "VITS" (arXiv 2106.06103), the text encoder; the reference is `VitsTextEncoder` of
transformers.

Traps
- Norms stand after the residual sums.
- The convolutions would smear padding into real phonemes: it is zeroed before each, and at the end.
- The embedding is multiplied by sqrt(dim).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models.config_rules import MOST_BLOCKS, require_eps, require_multiple, require_sizes
from audioldm2.models.layers import Conv1d, Linear


@dataclass(frozen=True)
class PhonemesConfig:
    """Defaults: the text encoder of VITS, as in the published speech models."""

    vocabulary: int = 183  # symbols; the first pads
    dim: int = 192  # width of the residual stream
    depth: int = 6  # blocks
    heads: int = 2  # attention heads a block
    ff_dim: int = 768  # hidden channels of the convolutional feed-forward
    ff_kernel: int = 3  # its kernel, in phonemes
    window: int = 4  # largest distance with a vector of its own; larger ones add nothing
    eps: float = 1e-5  # of all norms

    def __post_init__(self) -> None:
        require_sizes(self, "vocabulary", "dim", "heads", "ff_dim", "window")
        require_sizes(self, "depth", "ff_kernel", most=MOST_BLOCKS)
        require_multiple("dim", self.dim, "heads", self.heads)
        require_eps(self)


class Attention(nn.Module):
    """Self-attention with vectors for the distances from -window to window, shared by the heads."""

    def __init__(self, config: PhonemesConfig):
        super().__init__()
        self.heads, self.window = config.heads, config.window
        self.query = Linear(config.dim, config.dim)
        self.key = Linear(config.dim, config.dim)
        self.value = Linear(config.dim, config.dim)
        self.out = Linear(config.dim, config.dim)
        distances, head_dim = 2 * config.window + 1, config.dim // config.heads
        self.distance_key = nn.Parameter(torch.zeros(distances, head_dim))
        self.distance_value = nn.Parameter(torch.zeros(distances, head_dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, seq, head_dim)
            for y in (self.query(x), self.key(x), self.value(x))
        )
        place = torch.arange(x.shape[1], device=x.device)
        distance = place - place[:, None] + self.window  # (seq, seq): of key from query
        near = ((distance >= 0) & (distance <= 2 * self.window))[..., None]  # (seq, seq, 1)
        distance = distance.clamp(0, 2 * self.window)
        distance_key = self.distance_key[distance] * near  # (seq, seq, head_dim)
        distance_value = self.distance_value[distance] * near

        scores = query @ key.transpose(2, 3) + torch.einsum("bhqd,qkd->bhqk", query, distance_key)
        scores = scores / math.sqrt(query.shape[-1])
        shares = scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1)  # (batch, heads, seq, seq)
        mixed = shares @ value + torch.einsum("bhqk,qkd->bhqd", shares, distance_value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (batch, seq, dim)


class FeedForward(nn.Module):
    def __init__(self, config: PhonemesConfig):
        super().__init__()
        self.conv_in = Conv1d(config.dim, config.ff_dim, config.ff_kernel)
        self.conv_out = Conv1d(config.ff_dim, config.dim, config.ff_kernel)
        self.padding = ((config.ff_kernel - 1) // 2, config.ff_kernel // 2)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = F.pad((x * real).transpose(1, 2), self.padding)  # (batch, dim, padding + seq + padding)
        x = F.relu(self.conv_in(x)) * real.transpose(1, 2)  # (batch, ff_dim, seq)
        return self.conv_out(F.pad(x, self.padding)).transpose(1, 2) * real  # (batch, seq, dim)


class Block(nn.Module):
    def __init__(self, config: PhonemesConfig):
        super().__init__()
        self.attn = Attention(config)
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.ff = FeedForward(config)
        self.ff_norm = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x: Tensor, mask: Tensor, real: Tensor) -> Tensor:
        x = self.attn_norm(x + self.attn(x, mask))
        return self.ff_norm(x + self.ff(x, real))


class PhonemeEncoder(nn.Module):
    """Phonemes to vectors."""

    def __init__(self, config: PhonemesConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors (batch, seq, dim) of phonemes (batch, seq), zero where the mask is False.

        mask: (batch, seq) bool, True = real phoneme; at least one in a row.
        """
        x = self.embedding(ids) * math.sqrt(self.config.dim)  # (batch, seq, dim)
        real = mask[..., None].to(x.dtype)  # (batch, seq, 1)
        x = x * real
        for block in self.blocks:
            x = block(x, mask, real)
        return x * real
