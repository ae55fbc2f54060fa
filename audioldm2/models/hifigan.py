"""The vocoder: a log-mel spectrogram to a waveform.

Source: Kong et al. 2020, "HiFi-GAN" (arXiv 2010.05646), section 2.2; the reference is `SpeechT5HifiGan` of
transformers.

Traps
- The last leaky ReLU has PyTorch's default slope, 0.01; all others have the config's.
- Kernel 16 at rate 5 leaves an odd remainder, so a sound is a little longer than frames times hop: 160 * time
  + 32 samples for the published rates.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.errors import ArgumentError, require_bool, require_number
from audioldm2.models.config_rules import (
    require_entries,
    require_same_length,
    require_size_tuples,
    require_sizes,
)
from audioldm2.models.layers import Conv1d


@dataclass(frozen=True)
class HiFiGANConfig:
    """Defaults: all published 16 kHz models."""

    mels: int = 64  # bands of the spectrogram
    sample_rate: int = 16000  # Hz, of the waveform
    channels: int = 1024  # before the first upsampling; halved by each
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)  # per stage; their product is the hop
    upsample_kernels: tuple[int, ...] = (16, 16, 8, 4, 4)  # per stage
    branch_kernels: tuple[int, ...] = (3, 7, 11)  # of the parallel residual branches after each upsampling
    branch_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))  # per branch
    slope: float = 0.1  # of the leaky ReLUs
    normalize_before: bool = False  # whiten the spectrogram by the stored mean and scale first

    def __post_init__(self) -> None:
        require_sizes(self, "mels", "sample_rate")
        require_size_tuples(self, "upsample_rates", "upsample_kernels", "branch_kernels")
        require_same_length(self, "upsample_rates", "upsample_kernels", each="stage")
        pairs = zip(self.upsample_rates, self.upsample_kernels, strict=True)
        if any(kernel < rate for rate, kernel in pairs):  # some samples would get no value
            allowed = f"be at least the upsample_rates {self.upsample_rates}, stage by stage"
            raise ArgumentError("upsample_kernels", self.upsample_kernels, allowed)
        stages = len(self.upsample_rates)
        require_sizes(self, "channels", least=2 ** min(stages, 20))  # each stage halves them
        if not isinstance(self.branch_dilations, tuple):
            raise ArgumentError("branch_dilations", self.branch_dilations, "be a tuple, one entry a branch")
        require_same_length(self, "branch_kernels", "branch_dilations", each="branch")
        for index, dilations in enumerate(self.branch_dilations):
            require_entries(f"branch_dilations[{index}]", dilations)
        if any(kernel % 2 == 0 for kernel in self.branch_kernels):  # no padding centres an even one
            raise ArgumentError("branch_kernels", self.branch_kernels, "hold odd numbers")
        require_number("slope", self.slope, 0, 1)
        require_bool("normalize_before", self.normalize_before)

    @property
    def hop(self) -> int:
        """Samples to one mel frame."""
        return prod(self.upsample_rates)


class Branch(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair a residual."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float):
        super().__init__()
        self.slope = slope
        self.dilated = nn.ModuleList(
            Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
            for dilation in dilations
        )
        self.plain = nn.ModuleList(
            Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            hidden = dilated(F.leaky_relu(x, self.slope))
            x = plain(F.leaky_relu(hidden, self.slope, inplace=True)).add_(x)
        return x


class Upsampling(nn.ConvTranspose1d):
    """A transposed convolution, through `ops.conv_transpose1d`, which says why not PyTorch's own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # always of the one size it gives
        (stride,), padding = self.stride, int(self.padding[0])
        return ops.conv_transpose1d(x, self.weight, self.bias, stride=stride, padding=padding)


class Stage(nn.Module):
    """Upsampling by `rate`, then the mean of the branches."""

    def __init__(self, config: HiFiGANConfig, channels: int, rate: int, kernel: int):
        super().__init__()
        self.slope = config.slope
        self.upsample = Upsampling(channels, channels // 2, kernel, stride=rate, padding=(kernel - rate) // 2)
        self.branches = nn.ModuleList(
            Branch(channels // 2, branch_kernel, dilations, config.slope)
            for branch_kernel, dilations in zip(config.branch_kernels, config.branch_dilations, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.upsample(F.leaky_relu(x, self.slope))  # (batch, channels / 2, samples so far)
        return sum(branch(x) for branch in self.branches) / len(self.branches)


class HiFiGAN(nn.Module):
    """Log-mel spectrogram to waveform."""

    mean: Tensor  # (mels,)
    scale: Tensor  # (mels,)

    def __init__(self, config: HiFiGANConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.mels))
        self.register_buffer("scale", torch.ones(config.mels))
        self.conv_in = Conv1d(config.mels, config.channels, 7, padding=3)
        self.stages = nn.ModuleList(
            Stage(config, config.channels // 2**i, rate, kernel)
            for i, (rate, kernel) in enumerate(
                zip(config.upsample_rates, config.upsample_kernels, strict=True)
            )
        )
        self.conv_out = Conv1d(config.channels // 2 ** len(config.upsample_rates), 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        """Waveform (batch, samples) in [-1, 1], at `config.sample_rate`, of log-mel (batch, time, mels)."""
        if self.config.normalize_before:
            mel = (mel - self.mean) / self.scale
        x = self.conv_in(mel.transpose(1, 2))  # (batch, channels, time)
        for stage in self.stages:
            x = stage(x)
        return torch.tanh(self.conv_out(F.leaky_relu(x))).squeeze(1)  # (batch, samples)
