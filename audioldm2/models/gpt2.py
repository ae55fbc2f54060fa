"""GPT-2 on vectors: continues a sequence of projected prompt vectors by new vectors, without any token.

Source: Radford et al. 2019; AudioLDM 2 (arXiv 2308.05734), section III-C, where GPT-2 predicts the AudioMAE
features that would describe the sound. The reference is `GPT2Model` of transformers driven by
`AudioLDM2Pipeline.generate_language_model`.

Traps
- A new vector is the last hidden state after the final norm; it is appended and read back as an input.
- Positions count padding too, so what is generated depends on the padded length. What is padding in every row
  is left out all the same: the others keep their positions, and nothing attends to padding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.models.config_rules import MOST_BLOCKS, require_eps, require_multiple, require_sizes
from audioldm2.models.layers import Linear, ModuleList


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


class Past:
    """Keys and values of one block so far, side by side: (batch, seq, 2 * dim).

    They are written into memory that is laid out once, for `room` of them. With gradients each call copies
    them instead, because autograd needs what attention has read as it was.
    """

    def __init__(self, room: int):
        self.room = room
        self.kept: Tensor | None = None

    def extend(self, new: Tensor, total: int) -> Tensor:
        """Keep `new`, the last of `total` by now; returns all."""
        if torch.is_grad_enabled():
            self.kept = new if self.kept is None else torch.cat([self.kept, new], dim=1)
            return self.kept
        if self.kept is None:
            self.kept = new.new_empty(len(new), self.room, new.shape[2])
        self.kept[:, total - new.shape[1] : total] = new
        return self.kept[:, :total]


class Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor, past: Past) -> Tensor:
        dim = x.shape[-1]
        query, new = self.qkv(x).split([dim, 2 * dim], dim=-1)
        key, value = past.extend(new, mask.shape[-1]).chunk(2, dim=-1)  # (batch, past + seq, dim) each
        return self.out(ops.attention(query, key, value, self.heads, mask=mask))


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config)
        self.ff_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.ff_in = Linear(config.dim, 4 * config.dim)
        self.ff_out = Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor, past: Past) -> Tensor:
        x = x + self.attn(self.attn_norm(x), mask, past)
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Vectors to the vectors that follow."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.position_embedding = nn.Embedding(config.max_positions, config.dim)
        self.blocks = ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor, past: list[Past]) -> Tensor:
        """Hidden states (batch, seq, dim) of x after the final norm.

        x:        (batch, seq, dim) input vectors.
        position: (seq,) int, where each stands.
        mask:     (batch, past + seq) bool over past and present vectors, True = may be attended to.
        past:     one a block; it is extended by x.
        """
        seq, total = x.shape[1], mask.shape[1]
        x = x + self.position_embedding(position)
        causal = torch.ones(seq, total, dtype=torch.bool, device=x.device).tril(total - seq)
        allowed = causal & mask[:, None, None, :]  # (batch, 1, seq, past + seq)
        for block, block_past in zip(self.blocks, past, strict=True):
            x = block(x, allowed, block_past)
        return self.norm_out(x)

    def generate(self, x: Tensor, mask: Tensor, new_vectors: int | None = None) -> Tensor:
        """Continue x by `new_vectors` vectors (default: the config's).

        x:    (batch, seq, dim).
        mask: (batch, seq) bool, True = real. The first vector and the last of each row are real.
        Returns (batch, new_vectors, dim).
        """
        new_vectors = self.config.new_vectors if new_vectors is None else new_vectors
        place = torch.arange(x.shape[1], x.shape[1] + new_vectors - 1, device=x.device)
        x, position, mask = _without_padding(x, mask)
        past = [Past(x.shape[1] + new_vectors - 1) for _ in self.blocks]
        generated = []
        for step in range(new_vectors):
            x = self(x, position, mask, past)[:, -1:]  # (batch, 1, dim)
            generated.append(x)
            position, mask = place[step : step + 1], F.pad(mask, (0, 1), value=True)
        return torch.cat(generated, dim=1)

    def predict(self, x: Tensor, mask: Tensor, following: Tensor) -> Tensor:
        """What `generate` would write at each place, had it written `following` before (teacher forcing).

        x, mask:   as in `generate`.
        following: (batch, new, dim), the vectors that are to be predicted.
        Returns (batch, new, dim): the first after x alone, the last after all of `following` but its last.
        """
        new = following.shape[1]
        place = torch.arange(x.shape[1], x.shape[1] + new - 1, device=x.device)
        x, position, mask = _without_padding(x, mask)
        x = torch.cat([x, following[:, :-1]], dim=1)  # (batch, kept + new - 1, dim)
        past = [Past(x.shape[1]) for _ in self.blocks]
        position, mask = torch.cat([position, place]), F.pad(mask, (0, new - 1), value=True)
        return self(x, position, mask, past)[:, -new:]


def _without_padding(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Drop what is padding in every row: vectors (batch, kept, dim), positions (kept,), mask (batch, kept).

    Positions count padding.
    """
    kept = mask.any(dim=0).nonzero().squeeze(1)
    return x[:, kept], kept, mask[:, kept]
