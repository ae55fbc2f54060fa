"""GPT-2 on vectors: continues a sequence of projected prompt vectors by new vectors, without any token.

Source: Radford et al. 2019; AudioLDM 2 (arXiv 2308.05734), section III-C, where GPT-2 predicts the AudioMAE
features that would describe the sound. The reference is `GPT2Model` of transformers driven by
`AudioLDM2Pipeline.generate_language_model`.

Traps
- A new vector is the last hidden state after the final norm; it is appended and read back as an input.
- Positions count padding too, so what is generated depends on the padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.models.config_rules import MOST_BLOCKS, require_eps, require_multiple, require_sizes
from audioldm2.models.layers import Linear

KeyValue = tuple[Tensor, Tensor]  # keys and values so far, (batch, seq, dim) each


@dataclass(frozen=True)
class GPT2Config:
    """Defaults: GPT-2 small, as in all published AudioLDM 2 models of sounds and music."""

    dim: int = 768  # width of the residual stream
    depth: int = 12  # blocks
    heads: int = 12  # attention heads a block
    max_positions: int = 1024  # vectors in a sequence, generated ones included
    new_vectors: int = 8  # how many it generates; 512 in the speech models
    eps: float = 1e-5  # of all norms

    def __post_init__(self) -> None:
        require_sizes(self, "dim", "heads", "max_positions", "new_vectors")
        require_sizes(self, "depth", most=MOST_BLOCKS)
        require_multiple("dim", self.dim, "heads", self.heads)
        require_eps(self)


class Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)  # (batch, seq, dim) each
        if past is not None:
            key = torch.cat([past[0], key], dim=1)  # (batch, past + seq, dim)
            value = torch.cat([past[1], value], dim=1)
        return self.out(ops.attention(query, key, value, self.heads, mask=mask)), (key, value)


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config)
        self.ff_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.ff_in = Linear(config.dim, 4 * config.dim)
        self.ff_out = Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        mixed, present = self.attn(self.attn_norm(x), mask, past)
        x = x + mixed
        x = x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x)), approximate="tanh"))
        return x, present


class GPT2(nn.Module):
    """Vectors to the vectors that follow."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.position_embedding = nn.Embedding(config.max_positions, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(
        self, x: Tensor, mask: Tensor, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states of x after the final norm, and every block's keys and values.

        x:      (batch, seq, dim) input vectors.
        mask:   (batch, past + seq) bool over past and present vectors, True = may be attended to.
        past:   what an earlier call returned as its second value.
        Returns (batch, seq, dim) and one (keys, values) a block.
        """
        seq, total = x.shape[1], mask.shape[1]
        position = torch.arange(total - seq, total, device=x.device)  # padding is counted
        x = x + self.position_embedding(position)
        causal = torch.ones(seq, total, dtype=torch.bool, device=x.device).tril(total - seq)
        allowed = causal & mask[:, None, None, :]  # (batch, 1, seq, past + seq)
        pasts: Sequence[KeyValue | None] = past or [None] * len(self.blocks)
        presents = []
        for block, block_past in zip(self.blocks, pasts, strict=True):
            x, present = block(x, allowed, block_past)
            presents.append(present)
        return self.norm_out(x), presents

    def generate(self, x: Tensor, mask: Tensor, new_vectors: int | None = None) -> Tensor:
        """Continue x by `new_vectors` vectors (default: the config's), reading each block's past from a
        cache.

        x: (batch, seq, dim); mask: (batch, seq) bool, True = real. Returns (batch, new_vectors, dim).
        """
        new_vectors = self.config.new_vectors if new_vectors is None else new_vectors
        generated, past = [], None
        for _ in range(new_vectors):
            hidden, past = self(x, mask, past)
            x = hidden[:, -1:]  # (batch, 1, dim)
            generated.append(x)
            mask = F.pad(mask, (0, 1), value=True)
        return torch.cat(generated, dim=1)
