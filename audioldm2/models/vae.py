"""The autoencoder between log-mel spectrograms and latents, four times smaller in time and in mel.

`decode` turns what the denoiser made into a log-mel spectrogram; `encode` is for training and editing.

Source: Rombach et al. 2022 (arXiv 2112.10752), with AudioLDM's one-channel spectrograms; the reference is
`AutoencoderKL` of diffusers.

Traps
- The latents that the denoiser sees are scaled to unit variance by `scaling_factor`: both methods here speak
  scaled latents.
- The encoder's strided convolutions pad after the last frame and band only.
- All norms have eps 1e-6; the attention in the middle has one head as wide as the channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.models.config_rules import (
    MOST_BLOCKS,
    require_multiple,
    require_positive,
    require_same_length,
    require_size_tuples,
    require_sizes,
)
from audioldm2.models.layers import Conv2d, Linear, ModuleList, UpsamplingConv

# Runs a function of a map and `Statistics` on windows of the map, and joins the results.
Tile = Callable[[Callable[..., Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class VAEConfig:
    """Defaults: all published 16 kHz models. The 48 kHz model has a fourth level."""

    mel_channels: int = 1  # a spectrogram is an image with one channel
    latent_channels: int = 8  # channels of the latent that the denoiser works on
    channels: tuple[int, ...] = (128, 256, 512)  # per level, from fine to coarse; each further level halves
    layers: int = 2  # residual blocks in a level of the encoder; the decoder has one more
    norm_groups: int = 32  # groups of every group norm
    scaling_factor: float = 0.4110932946205139  # 1 / standard deviation of the training latents

    def __post_init__(self) -> None:
        require_sizes(self, "mel_channels", most=1)
        require_sizes(self, "latent_channels", "norm_groups")
        require_sizes(self, "layers", most=MOST_BLOCKS)
        require_size_tuples(self, "channels")
        require_same_length(self, "channels", each="level")
        require_multiple("channels", self.channels, "norm_groups", self.norm_groups)
        require_positive(self, "scaling_factor")

    @property
    def downsampling(self) -> int:
        """Mel frames (and bands) to one latent frame (and band)."""
        return 2 ** (len(self.channels) - 1)


class Statistics:
    """Mean and variance of each norm's groups over a whole clip, for decoding a window of it.

    A norm in `known` uses what is there; any other uses its own input's, which `seen` keeps.
    """

    def __init__(self, known: dict[nn.Module, tuple[Tensor, Tensor]] | None = None):
        self.known = known or {}
        self.seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def of(self, norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (batch, groups, 1), at least in float32, of a norm whose input is x."""
        if norm in self.known:
            return self.known[norm]
        groups = x.flatten(2).unflatten(1, (norm.num_groups, -1)).flatten(2)  # (batch, groups, values)
        groups = groups.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        self.seen[norm] = mean, variance
        return mean, variance


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, whose statistics may be those of more than its input."""

    def forward(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        return super().forward(x) if statistics is None else self.by(x, *statistics.of(self, x))

    def by(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise by a given mean and variance (batch, groups, 1)."""
        weight, bias = (each.unflatten(0, (self.num_groups, -1)) for each in (self.weight, self.bias))
        scale = weight * torch.rsqrt(variance + self.eps)  # (batch, groups, channels of a group)
        shift = bias - scale * mean
        scale, shift = (each.flatten(1)[:, :, None, None] for each in (scale, shift))
        return torch.addcmul(shift, x, scale).to(x.dtype)


def _norm(config: VAEConfig, channels: int) -> GroupNorm:
    return GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, as a residual."""

    def __init__(self, config: VAEConfig, channels_in: int, channels_out: int):
        super().__init__()
        self.norm_in = _norm(config, channels_in)
        self.conv_in = Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = _norm(config, channels_out)
        self.conv_out = Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        hidden = F.silu(self.norm_in(x, statistics), inplace=True)
        hidden = self.conv_in(hidden)  # (batch, channels_out, time, mel)
        hidden = F.silu(self.norm_out(hidden, statistics), inplace=True)
        return self.conv_out(hidden).add_(self.shortcut(x))


class SelfAttention(nn.Module):
    """Every position attends to every position, with one head."""

    def __init__(self, config: VAEConfig, channels: int):
        super().__init__()
        self.norm = _norm(config, channels)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.out = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        seq = self.norm(x).flatten(2).transpose(1, 2)  # (batch, time * mel, channels)
        seq = self.out(ops.attention(self.query(seq), self.key(seq), self.value(seq), heads=1))
        return x + seq.transpose(1, 2).unflatten(2, x.shape[2:])  # (batch, channels, time, mel)


class Middle(nn.Sequential):
    """Residual block, attention, residual block, at the coarsest resolution."""

    def __init__(self, config: VAEConfig):
        channels = config.channels[-1]
        super().__init__()
        self.resnet_in = ResidualBlock(config, channels, channels)
        self.attn = SelfAttention(config, channels)
        self.resnet_out = ResidualBlock(config, channels, channels)


class Level(nn.Module):
    """Residual blocks at one resolution; `resample` may follow (encoder: strided, decoder: doubled)."""

    def __init__(
        self, config: VAEConfig, channels_in: int, channels: int, layers: int, resample: nn.Module | None
    ):
        super().__init__()
        inputs = [channels_in] + [channels] * (layers - 1)
        self.resnets = ModuleList(ResidualBlock(config, channels_in, channels) for channels_in in inputs)
        self.resample = resample


class Encoder(nn.Module):
    """Log-mel spectrogram to mean and log-variance."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, last = config.channels, len(config.channels) - 1
        self.conv_in = Conv2d(config.mel_channels, channels[0], 3, padding=1)
        self.levels = ModuleList(
            Level(
                config,
                channels[max(level - 1, 0)],
                channels[level],
                config.layers,
                Conv2d(channels[level], channels[level], 3, stride=2) if level < last else None,
            )
            for level in range(len(channels))
        )
        self.middle = Middle(config)
        self.norm_out = _norm(config, channels[-1])
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)
        self.moments = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_in(mel)
        for level in self.levels:
            for resnet in level.resnets:
                x = resnet(x)
            if level.resample is not None:
                x = level.resample(F.pad(x, (0, 1, 0, 1)))  # (batch, channels, time / 2, mel / 2)
        x = self.middle(x)
        return self.moments(
            self.conv_out(F.silu(self.norm_out(x), inplace=True))
        )  # (batch, 2 * latent_channels, time, mel)


class Decoder(nn.Module):
    """Latent to log-mel spectrogram; its levels run from coarse to fine."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.channels[::-1]
        last = len(channels) - 1
        self.latent_in = Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.middle = Middle(config)
        self.levels = ModuleList(
            Level(
                config,
                channels[max(level - 1, 0)],
                channels[level],
                config.layers + 1,
                UpsamplingConv(channels[level]) if level < last else None,
            )
            for level in range(len(channels))
        )
        self.norm_out = _norm(config, channels[-1])
        self.conv_out = Conv2d(channels[-1], config.mel_channels, 3, padding=1)

    def forward(self, z: Tensor, tile: Tile | None = None) -> Tensor:
        """tile: runs `upsample` on windows of its input in place of the whole (see `runtime.tiling`)."""
        x = self.middle(self.conv_in(self.latent_in(z)))  # (batch, channels, time, mel)
        return self.upsample(x) if tile is None else tile(self.upsample, x)

    def upsample(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """The map of the middle to the spectrogram; each level but the last doubles time and mel."""
        for level in self.levels:
            for resnet in level.resnets:
                x = resnet(x, statistics)
            if level.resample is not None:
                x = level.resample(x)  # (batch, channels, 2 * time, 2 * mel)
        return self.conv_out(F.silu(self.norm_out(x, statistics), inplace=True))


class VAE(nn.Module):
    """Log-mel spectrograms (batch, 1, time, mel) to and from scaled latents (batch, channels, time, mel)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latent of a log-mel spectrogram.

        mel:    (batch, 1, time, mel), both sizes multiples of `config.downsampling`.
        Returns two tensors (batch, latent_channels, time / downsampling, mel / downsampling).
        The log-variance is clamped to [-30, 20] as in the reference's `DiagonalGaussianDistribution`.
        """
        mean, log_variance = self.encoder(mel).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return mean * self.config.scaling_factor, std * self.config.scaling_factor

    def decode(self, z: Tensor, tile: Tile | None = None) -> Tensor:
        """Log-mel spectrogram (batch, 1, time, mel) of a scaled latent (batch, channels, time, mel).

        tile: see `Decoder.forward`.
        """
        return self.decoder(z / self.config.scaling_factor, tile)
