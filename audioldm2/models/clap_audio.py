"""CLAP's audio branch (an HTSAT): a log-mel spectrogram to one vector in the space that it shares with texts.

HTSAT (Chen et al. 2022, arXiv 2202.00874) is a Swin transformer (Liu et al. 2021, arXiv 2103.14030) on a
spectrogram folded into a square; CLAP (Wu et al. 2023, arXiv 2211.06687) adds the projection.
Reference: `audio_model` and `audio_projection` of transformers' `ClapModel`, without feature fusion.

Traps:
- the batch norm in front works on mel bands, and comes before the bicubic stretch of the time axis;
- the image has mel bands as rows and time as columns; four quarters of the clip lie on top of each other;
- a stage whose image is not larger than the window has one window and no shift;
- tokens that only pad the image to whole windows are attended to like any other;
- patch merging takes its four neighbours column by column: (0,0), (1,0), (0,1), (1,1).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.errors import ArgumentError, require_number
from audioldm2.models.config_rules import (
    LARGEST_SIZE,
    MOST_BLOCKS,
    require_eps,
    require_multiple,
    require_positive,
    require_same_length,
    require_size_tuples,
    require_sizes,
)
from audioldm2.models.layers import Linear


@dataclass(frozen=True)
class ClapAudioConfig:
    """Defaults: laion/clap-htsat-unfused in the size that AudioLDM 2 publishes."""

    mels: int = 64  # bands of the spectrogram
    spec_size: int = 256  # side of the square image; the clip fills spec_size² / mels frames of it
    in_channels: int = 1  # copies of the spectrogram given to the patch convolution
    patch_size: int = 4  # mel bands and frames a patch sees
    patch_stride: int = 4  # and the step between patches
    dim: int = 128  # width of the first stage; each further one doubles it
    depths: tuple[int, ...] = (2, 2, 12, 2)  # blocks a stage
    heads: tuple[int, ...] = (4, 8, 16, 32)  # attention heads a stage
    window: int = 8  # side of an attention window, in patches
    ff_ratio: float = 4.0  # hidden width of the feed-forward, in widths of the stage
    dropout: float = 0.1  # after the feed-forward, in training only
    eps: float = 1e-5  # of the norms inside the blocks; the other norms have 1e-5 always
    projection_dim: int = 512  # width of the space shared with the texts

    def __post_init__(self) -> None:
        require_sizes(self, "mels", "spec_size", "in_channels", "patch_stride", "dim", "window")
        require_sizes(self, "projection_dim")
        require_sizes(self, "patch_size", least=self.patch_stride, most=self.spec_size)
        require_sizes(self, "spec_size", least=self.mels)  # the mel axis is stretched to it
        require_size_tuples(self, "depths", most=MOST_BLOCKS)
        require_size_tuples(self, "heads")
        require_same_length(self, "depths", "heads", each="stage")
        doublings = len(self.depths) - 1
        require_sizes(self, "dim", most=LARGEST_SIZE >> doublings)  # the last stage is that much wider
        for stage, heads in enumerate(self.heads):
            require_multiple(f"dim * {2**stage}", self.dim * 2**stage, f"heads[{stage}]", heads)
        require_positive(self, "ff_ratio")
        if int(self.ff_ratio * self.dim) < 1:
            raise ArgumentError("ff_ratio", self.ff_ratio, f"leave at least one of dim ({self.dim}) channels")
        if require_number("dropout", self.dropout, 0, 1) == 1:
            raise ArgumentError("dropout", self.dropout, "be below 1")
        require_eps(self)


class BandNorm(nn.Module):
    """Batch norm with one mean and one variance a mel band.

    `nn.BatchNorm2d` with momentum 0.1, less its step counter, which nothing here reads.
    """

    running_mean: Tensor  # (mels,)
    running_var: Tensor  # (mels,)

    def __init__(self, mels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(mels))
        self.bias = nn.Parameter(torch.zeros(mels))
        self.register_buffer("running_mean", torch.zeros(mels))
        self.register_buffer("running_var", torch.ones(mels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # (batch, mels, frames)
        x = ops.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return x.transpose(1, 2)  # (batch, frames, mels)


class WindowAttention(nn.Module):
    """Self-attention inside square windows, with a learnt bias for every offset between two tokens."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.window = window
        self.query = Linear(dim, dim)
        self.key = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.out = Linear(dim, dim)
        self.offset_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor, window: int, shift: int) -> Tensor:
        """x: (batch, height, width, dim), height and width multiples of `window` (at most self.window)."""
        batch, height, width, _ = x.shape
        rows, columns = height // window, width // window

        # Rolling moves the windows; what it carries round the edge must not mix with what it meets there.
        x = x.roll((-shift, -shift), dims=(1, 2))
        x = x.unflatten(1, (rows, window))  # (batch, rows, w, width, dim)
        x = x.unflatten(3, (columns, window)).transpose(2, 3)  # (batch, rows, columns, w, w, dim)
        x = x.flatten(3, 4).flatten(0, 2)  # (batch*rows*columns, w*w, dim)

        index = offset_index(window, self.window, x.device)  # (w*w, w*w)
        bias = self.offset_bias[index].permute(2, 0, 1)  # (heads, w*w, w*w)
        if shift:
            mask = shift_mask(height, width, window, shift, x.device)  # (rows*columns, w*w, w*w)
            # -100 and not -inf, as in the reference: what is masked keeps a weight of about e^-100.
            blocked = torch.where(mask, 0.0, -100.0).to(bias.dtype)
            bias = bias + blocked.unsqueeze(1)  # (rows*columns, heads, w*w, w*w)
            bias = bias.repeat(batch, 1, 1, 1)  # (batch*rows*columns, heads, w*w, w*w)
        x = self.out(ops.attention(self.query(x), self.key(x), self.value(x), self.heads, mask=bias))

        x = x.unflatten(0, (batch, rows, columns))  # (batch, rows, columns, w*w, dim)
        x = x.unflatten(3, (window, window)).transpose(2, 3)  # (batch, rows, w, columns, w, dim)
        x = x.flatten(3, 4).flatten(1, 2)  # (batch, height, width, dim)
        return x.roll((shift, shift), dims=(1, 2))


def offset_index(window: int, table_window: int, device: torch.device) -> Tensor:
    """For every pair of tokens of a window, the row of the bias table that holds their offset.

    The table is laid out for windows of side `table_window`; smaller ones use its middle.
    Returns int64 (window², window²): row a, column b holds the offset of a from b.
    """
    side = torch.arange(window, device=device)
    row, column = side.repeat_interleave(window), side.repeat(window)  # (w*w), (w*w): tokens in reading order
    row_offset = row[:, None] - row[None, :] + table_window - 1  # (w*w, w*w), from 0 on
    column_offset = column[:, None] - column[None, :] + table_window - 1  # (w*w, w*w)
    return row_offset * (2 * table_window - 1) + column_offset


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which pairs of tokens of each window were neighbours before the image was rolled by `shift`.

    Returns bool (windows, window², window²), windows in reading order, True = may attend.
    """

    def pieces(length: int) -> Tensor:
        # Along one axis the last window holds two pieces: its own, and what came round from the front.
        at = torch.arange(length, device=device)
        return (at >= length - window).long() + (at >= length - shift).long()  # 0, 1 or 2

    piece = pieces(height)[:, None] * 3 + pieces(width)  # (height, width)
    piece = piece.unflatten(1, (-1, window)).unflatten(0, (-1, window))  # (rows, w, columns, w)
    piece = piece.transpose(1, 2).flatten(2).flatten(0, 1)  # (windows, w*w)
    return piece[:, :, None] == piece[:, None, :]


class Block(nn.Module):
    """Pre-norm attention and feed-forward; every second block of a stage shifts its windows by half."""

    def __init__(self, config: ClapAudioConfig, dim: int, heads: int, shifted: bool):
        super().__init__()
        self.window = config.window
        self.shifted = shifted
        self.attn_norm = nn.LayerNorm(dim, eps=config.eps)
        self.attn = WindowAttention(dim, heads, config.window)
        self.ff_norm = nn.LayerNorm(dim, eps=config.eps)
        self.ff_in = Linear(dim, int(config.ff_ratio * dim))
        self.ff_out = Linear(int(config.ff_ratio * dim), dim)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, height, width, dim); the same shape returned."""
        height, width = x.shape[1:3]
        window = min(self.window, height, width)
        shift = self.window // 2 if self.shifted and min(height, width) > self.window else 0

        y = self.attn_norm(x)
        y = F.pad(y, (0, 0, 0, -width % window, 0, -height % window))  # sides become multiples of window
        x = x + self.attn(y, window, shift)[:, :height, :width]
        y = self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))
        return x + ops.dropout(y, self.dropout, self.training)


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduce = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))  # an odd side gets a row or column of zeros
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduce(self.norm(x))  # (batch, height/2, width/2, 2*dim)


class Stage(nn.Module):
    def __init__(self, config: ClapAudioConfig, dim: int, depth: int, heads: int, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, dim, heads, shifted=i % 2 == 1) for i in range(depth))
        self.merge = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.merge is None else self.merge(x)


class ClapAudio(nn.Module):
    """Log-mel spectrograms (of `audioldm2.audio.clap_log_mel`) to unit vectors."""

    def __init__(self, config: ClapAudioConfig):
        super().__init__()
        self.config = config
        dims = [config.dim * 2**i for i in range(len(config.depths))]
        self.band_norm = BandNorm(config.mels)
        self.patch_embed = nn.Conv2d(
            config.in_channels,
            config.dim,
            kernel_size=config.patch_size,
            stride=config.patch_stride,
            padding=(config.patch_size - config.patch_stride) // 2,
        )
        self.patch_norm = nn.LayerNorm(config.dim)
        self.stages = nn.ModuleList(
            Stage(config, dim, depth, heads, last=dim == dims[-1])
            for dim, depth, heads in zip(dims, config.depths, config.heads, strict=True)
        )
        self.norm_out = nn.LayerNorm(dims[-1])
        self.proj_in = Linear(dims[-1], config.projection_dim)
        self.proj_out = Linear(config.projection_dim, config.projection_dim)
        # log of the factor on cosines in the contrastive loss, from the paper's start; for training only
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, log_mel: Tensor) -> Tensor:
        """The embedding of a clip, comparable by dot product with CLAP's text embeddings.

        log_mel: (batch, frames, mels) in dB, at most spec_size² / mels frames (1,024; 10 s are 1,001).
        Returns (batch, projection_dim) of length 1. Source: transformers' `ClapModel.get_audio_features`.
        """
        x = self.band_norm(log_mel)  # (batch, frames, mels)
        x = self.to_image(x)  # (batch, in_channels, spec_size, spec_size)
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # (batch, height, width, dim): mel rows, time columns
        x = self.patch_norm(x)
        for stage in self.stages:
            x = stage(x)  # (batch, height/2, width/2, 2*dim), but for the last
        x = self.norm_out(x).mean(dim=(1, 2))  # (batch, dim)
        return F.normalize(self.proj_out(F.relu(self.proj_in(x))), dim=-1)  # (batch, projection_dim)

    def to_image(self, x: Tensor) -> Tensor:
        """Stretch the time axis to fill the image, cut it into equal parts, stack them along the mel axis.

        x: (batch, frames, mels). Returns (batch, in_channels, spec_size, spec_size).
        """
        config = self.config
        parts = config.spec_size // config.mels
        frames, mels = config.spec_size * parts, config.spec_size // parts
        if x.shape[1] > frames or x.shape[2] != config.mels:
            raise ValueError(
                f"log_mel has {x.shape[1]} frames of {x.shape[2]} mel bands; this network takes at most "
                f"{frames} frames of {config.mels} bands. Cut longer clips with audioldm2.audio.clap_crops."
            )
        x = x.unsqueeze(1)  # (batch, 1, frames, mels)
        if x.shape[2:] != (frames, mels):
            x = F.interpolate(x, (frames, mels), mode="bicubic", align_corners=True)
        x = x.unflatten(2, (parts, -1)).transpose(3, 4).flatten(2, 3)  # (batch, 1, spec_size, spec_size)
        return x.expand(-1, config.in_channels, -1, -1)
