"""CLAP's text branch (a RoBERTa): a whole prompt to one vector in the space that it shares with sounds.

Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining" (arXiv 2211.06687); the reference
is the text half of `ClapModel` of transformers.

Traps
- Norms come after the residual sums (post-norm), with eps 1e-12.
- Positions start at the padding id plus one and count real tokens only.
- The vector is read from the first token, through a dense layer with tanh and then two more with a ReLU
  between.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.errors import require_whole
from audioldm2.models.config_rules import MOST_BLOCKS, require_eps, require_multiple, require_sizes
from audioldm2.models.layers import Linear


@dataclass(frozen=True)
class ClapTextConfig:
    """Defaults: the text branch of laion/clap-htsat-unfused, a RoBERTa-base."""

    vocabulary: int = 50265  # tokens of RoBERTa's byte-level BPE
    dim: int = 768  # width of the residual stream
    depth: int = 12  # blocks
    heads: int = 12  # attention heads a block
    ff_dim: int = 3072  # hidden width of the feed-forward
    max_positions: int = 514  # 512 tokens, after the padding id and those below it
    padding_id: int = 1  # token that pads; positions start behind it
    token_types: int = 1  # only type 0 is ever used
    projection_dim: int = 512  # width of the space shared with the sounds
    eps: float = 1e-12  # of all norms

    def __post_init__(self) -> None:
        require_sizes(self, "vocabulary", "dim", "heads", "ff_dim", "max_positions", "token_types")
        require_sizes(self, "projection_dim")
        require_sizes(self, "depth", most=MOST_BLOCKS)
        require_whole("padding_id", self.padding_id, 0, self.vocabulary - 1)
        require_multiple("dim", self.dim, "heads", self.heads)
        require_eps(self)


class Attention(nn.Module):
    def __init__(self, config: ClapTextConfig):
        super().__init__()
        self.heads = config.heads
        self.query = Linear(config.dim, config.dim)
        self.key = Linear(config.dim, config.dim)
        self.value = Linear(config.dim, config.dim)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(ops.attention(self.query(x), self.key(x), self.value(x), self.heads, mask=mask))


class Block(nn.Module):
    def __init__(self, config: ClapTextConfig):
        super().__init__()
        self.attn = Attention(config)
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.ff_in = Linear(config.dim, config.ff_dim)
        self.ff_out = Linear(config.ff_dim, config.dim)
        self.ff_norm = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attn_norm(x + self.attn(x, mask))
        return self.ff_norm(x + self.ff_out(F.gelu(self.ff_in(x))))


class ClapText(nn.Module):
    """Tokens to a unit vector."""

    def __init__(self, config: ClapTextConfig):
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocabulary, config.dim)
        self.position_embedding = nn.Embedding(config.max_positions, config.dim)
        self.token_type_embedding = nn.Embedding(config.token_types, config.dim)
        self.norm_in = nn.LayerNorm(config.dim, eps=config.eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.pooler = Linear(config.dim, config.dim)
        self.proj_in = Linear(config.dim, config.projection_dim)
        self.proj_out = Linear(config.projection_dim, config.projection_dim)
        self.logit_scale = nn.Parameter(
            torch.zeros(())
        )  # log of the contrastive temperature; for training only

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (batch, projection_dim) of tokens.

        ids: (batch, seq); mask: (batch, seq) bool, True = real.
        """
        real = (ids != self.config.padding_id).long()
        position = real.cumsum(dim=1) * real + self.config.padding_id  # (batch, seq)
        x = self.word_embedding(ids) + self.position_embedding(position) + self.token_type_embedding.weight[0]
        x = self.norm_in(x)  # (batch, seq, dim)
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        pooled = torch.tanh(self.pooler(x[:, 0]))  # (batch, dim)
        return F.normalize(self.proj_out(F.relu(self.proj_in(pooled))), dim=-1)  # (batch, projection_dim)
