"""The T5 encoder (Flan-T5 large): the tokens of a prompt to one vector a token.

Source: Raffel et al. 2020 (arXiv 1910.10683), version 1.1 with gated GELU (Shazeer 2020); the reference is
`T5EncoderModel` of transformers.

Traps
- Attention scores are not divided by sqrt(head_dim).
- Position enters only as a bias on the scores, learned per head and per distance bucket, shared by all
  layers.
- Norms are RMS norms, computed in float32; the residual stream stays float32 when the weights are half
  precision, and so does the last matrix of the feed-forward in float16, where its sums overflow.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.errors import ArgumentError
from audioldm2.models.config_rules import MOST_BLOCKS, require_eps, require_sizes
from audioldm2.models.layers import Linear


@dataclass(frozen=True)
class T5Config:
    """Defaults: the encoder of google/flan-t5-large."""

    vocabulary: int = 32128  # SentencePiece tokens, padded to a multiple of 128
    dim: int = 1024  # width of the residual stream
    depth: int = 24  # blocks
    heads: int = 16  # attention heads a block
    head_dim: int = 64  # heads * head_dim need not be dim
    ff_dim: int = 2816  # hidden width of the gated feed-forward
    buckets: int = 32  # of signed distances between tokens
    max_distance: int = 128  # further apart is all one bucket
    eps: float = 1e-6  # of all norms

    def __post_init__(self) -> None:
        require_sizes(self, "vocabulary", "dim", "heads", "head_dim", "ff_dim", "max_distance")
        require_sizes(self, "depth", most=MOST_BLOCKS)
        require_sizes(self, "buckets", least=4)  # two a direction, one of them for the far ones
        if self.max_distance <= self.buckets // 4:
            fourth = self.buckets // 4
            raise ArgumentError("max_distance", self.max_distance, f"be above a fourth of buckets ({fourth})")
        require_eps(self)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the statistics in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(self.weight.dtype)


class Attention(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.head_dim
        self.query = Linear(config.dim, inner, bias=False)
        self.key = Linear(config.dim, inner, bias=False)
        self.value = Linear(config.dim, inner, bias=False)
        self.out = Linear(inner, config.dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        bias = bias.to(x.dtype)
        mixed = ops.attention(self.query(x), self.key(x), self.value(x), self.heads, mask=bias, scale=1.0)
        return self.out(mixed)


class FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.gate = Linear(config.dim, config.ff_dim, bias=False)
        self.value = Linear(config.dim, config.ff_dim, bias=False)
        self.out = Linear(config.ff_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.gate(x), approximate="tanh") * self.value(x)  # (batch, seq, ff_dim)
        return self.out(
            hidden.to(self.out.weight.dtype)
        )  # the weights of `out` stay float32 in a float16 model


class Block(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.attn_norm = RMSNorm(config.dim, config.eps)
        self.attn = Attention(config)
        self.ff_norm = RMSNorm(config.dim, config.eps)
        self.ff = FeedForward(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), bias)
        return x + self.ff(self.ff_norm(x))


def distance_buckets(seq: int, buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """The bucket of every (query, key) pair: (seq, seq) int64.

    Half of the buckets are for keys after the query, half for keys before or at it. In each half, the first
    half are exact distances and the rest grow logarithmically up to `max_distance` (Raffel et al. 2020,
    section 2.1).
    """
    position = torch.arange(seq, device=device)
    distance = position[None, :] - position[:, None]  # key minus query
    half = buckets // 2
    exact = half // 2
    after = (distance > 0).long() * half
    distance = distance.abs()
    # The cast to float32 comes before the division, as in the reference: bucket edges depend on it.
    logarithmic = torch.log(distance.float() / exact) / math.log(max_distance / exact) * (half - exact)
    logarithmic = (exact + logarithmic.clamp(min=0).long()).clamp(
        max=half - 1
    )  # log(0) = -inf is not used below
    return after + torch.where(distance < exact, distance, logarithmic)


class T5Encoder(nn.Module):
    """Tokens to vectors."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.distance_bias = nn.Embedding(config.buckets, config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = RMSNorm(config.dim, config.eps)

    def forward(self, ids: Tensor, mask: Tensor, words: Tensor | None = None) -> Tensor:
        """Encodes tokens.

        Args:
            ids: (batch, seq) tokens.
            mask: (batch, seq) bool, True = real.
            words: (vectors, dim), what the ids behind the vocabulary stand for (see `prompt.words`).

        Returns:
            (batch, seq, dim).
        """
        buckets = distance_buckets(ids.shape[1], self.config.buckets, self.config.max_distance, ids.device)
        bias = self.distance_bias(buckets).float().permute(2, 0, 1)[None]  # (1, heads, seq, seq)
        bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)  # (batch, heads, seq, seq)
        x = self.embed(ids, words)  # (batch, seq, dim), float32 from here to the last norm
        for block in self.blocks:
            x = block(x, bias)
        return self.norm_out(x)

    def embed(self, ids: Tensor, words: Tensor | None) -> Tensor:
        """Returns the vectors (batch, seq, dim) of tokens, float32; arguments are those of `forward`."""
        if words is None:
            return self.embedding(ids).float()
        place = ids - self.config.vocabulary  # among the words; below 0 for tokens of the vocabulary
        known = self.embedding(ids.where(place < 0, 0)).float()
        return torch.where(place[..., None] < 0, known, words.float()[place.clamp(min=0)])
