"""AudioMAE's encoder: a sound to the vectors that GPT-2 writes for a prompt, the language of audio (LOA).

A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), trained as a masked autoencoder of Kaldi
spectrograms (Huang et al. 2022, "Masked Autoencoders that Listen", arXiv 2207.06405). AudioLDM 2 (arXiv
2308.05734, section III-B) takes the mean of its last blocks and pools that over time and frequency.

Reference: `Vanilla_AudioMAE` and `AudioMAEConditionCTPoolRandTFSeparated.pool` of haoheliu/AudioLDM2. The
network alone equals transformers' `ViTModel`, the mean of `layernorm(hidden_states[10:13])`.

Traps
- Patches are numbered in time first: patch = columns * row + column, rows over time, columns over frequency.
- The source computed its fixed position embedding for a grid of 8 x 64, though patches lie 64 x 8, and the
  weights were trained with it. So it is a weight here, read from the file and never computed.
- The class vector takes part in attention, and is dropped before pooling.
- The norm follows each of the averaged blocks, not their mean; no further norm follows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.errors import ArgumentError
from audioldm2.models.config_rules import (
    MOST_BLOCKS,
    require_entries,
    require_eps,
    require_multiple,
    require_sizes,
)
from audioldm2.models.layers import Linear


@dataclass(frozen=True)
class AudioMAEConfig:
    """Defaults: ViT-B on 10.24 s of sound, pooled as in all published models of sounds and music."""

    dim: int = 768  # width of the residual stream, and of LOA
    depth: int = 12  # blocks
    heads: int = 12  # attention heads a block
    patch: int = 16  # frames and mel bands a patch covers; patches do not overlap
    frames: int = 1024  # of the spectrogram, 100 a second
    mels: int = 128  # bands of the spectrogram
    averaged: int = 3  # last blocks whose outputs are averaged
    pool: tuple[int, int] = (8, 8)  # patches to one vector, over time and over frequency; (1, 1) for speech
    eps: float = 1e-6  # of all norms

    def __post_init__(self) -> None:
        require_sizes(self, "dim", "heads", "patch", "frames", "mels")
        require_sizes(self, "depth", most=MOST_BLOCKS)
        require_sizes(self, "averaged", most=self.depth)
        require_multiple("dim", self.dim, "heads", self.heads)
        require_multiple("frames", self.frames, "patch", self.patch)
        require_multiple("mels", self.mels, "patch", self.patch)
        require_entries("pool", self.pool)
        if len(self.pool) != 2:
            raise ArgumentError("pool", self.pool, "have two entries, for time and for frequency")
        for patches, share in zip(self.grid, self.pool, strict=True):
            if patches % share:
                rows, columns = self.grid
                allowed = f"divide the {rows} x {columns} patches of the spectrogram"
                raise ArgumentError("pool", self.pool, allowed)
        require_eps(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches over time and over frequency."""
        return self.frames // self.patch, self.mels // self.patch

    @property
    def tokens(self) -> int:
        """Vectors of LOA that a sound becomes."""
        (rows, columns), (rows_each, columns_each) = self.grid, self.pool
        return (rows // rows_each) * (columns // columns_each)


class Attention(nn.Module):
    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)  # (batch, seq, dim) each
        return self.out(ops.attention(query, key, value, self.heads))


class Block(nn.Module):
    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config)
        self.ff_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.ff_in = Linear(config.dim, 4 * config.dim)
        self.ff_out = Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))


class AudioMAE(nn.Module):
    """Spectrograms (of `audioldm2.audio.audiomae_fbank`) to LOA."""

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.patch_embed = nn.Conv2d(1, config.dim, kernel_size=config.patch, stride=config.patch)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + rows * columns, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, fbank: Tensor) -> Tensor:
        """LOA of sounds, comparable with what `GPT2.generate` returns.

        fbank: (batch, frames, mels). Returns (batch, tokens, dim), in order of time.
        """
        return pooled(self.encode(fbank), self.config)

    def encode(self, fbank: Tensor) -> Tensor:
        """Vectors (batch, patches, dim) of the patches of spectrograms (batch, frames, mels)."""
        return torch.stack(self.last_blocks(fbank)).mean(dim=0)

    def last_blocks(self, fbank: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """The normed outputs of the last blocks, as many as are averaged: each (batch, patches, dim).

        fbank:   (batch, frames, mels).
        visible: (batch, some) int, the patches that it reads; None for all. The others do not take part, as
                 in training.
        """
        x = self.patch_embed(fbank.unsqueeze(1))  # (batch, dim, rows, columns)
        x = x.flatten(2).transpose(1, 2) + self.position_embedding[:, 1:]  # (batch, patches, dim)
        if visible is not None:
            x = x.gather(1, visible.unsqueeze(2).expand(-1, -1, x.shape[2]))  # (batch, some, dim)
        first = self.class_embedding + self.position_embedding[:, :1]  # (1, 1, dim)
        x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)  # (batch, 1 + patches, dim)
        after = []
        for block in self.blocks:
            x = block(x)
            after.append(x[:, 1:])  # (batch, patches, dim)
        return [self.norm_out(x) for x in after[-self.config.averaged :]]


def pooled(x: Tensor, config: AudioMAEConfig) -> Tensor:
    """The mean of average and maximum over groups of neighbouring patches.

    x: (batch, patches, dim). Returns (batch, tokens, dim).
    """
    x = x.transpose(1, 2).unflatten(2, config.grid)  # (batch, dim, rows, columns)
    x = (F.avg_pool2d(x, config.pool) + F.max_pool2d(x, config.pool)) / 2
    return x.flatten(2).transpose(1, 2)  # (batch, tokens, dim)
