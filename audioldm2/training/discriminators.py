"""The discriminators of the vocoder and the VAE; a saved model does not contain them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from audioldm2 import ops

Judgement = tuple[Tensor, list[Tensor]]  # scores, and the features of every layer, the scores included


class PeriodDiscriminator(nn.Module):
    """Folds a wave into an image with rows of `period` samples and convolves along the columns.

    Source: Kong et al. 2020, "HiFi-GAN" (arXiv 2010.05646), section 2.3, with width 32.
    """

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        channels = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(inputs, outputs, (5, 1), (stride, 1), padding=(2, 0)))
            for inputs, outputs, stride in zip(channels[:-1], channels[1:], (3, 3, 3, 3, 1), strict=True)
        )
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> Judgement:
        x = F.pad(wave, (0, -wave.shape[1] % self.period), mode="reflect")
        x = x.unflatten(1, (1, -1, self.period))  # (batch, 1, rows, period)
        return _judge(self.convs, self.score, x)


class ScaleDiscriminator(nn.Module):
    """Convolves a wave at one resolution with long grouped kernels.

    Source: Kumar et al. 2019, "MelGAN" (arXiv 1910.06711), in the sizes of HiFi-GAN, with width 32.
    """

    def __init__(self, width: int, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        sizes = [  # channels, kernel, stride, groups
            (4 * width, 15, 1, 1), (4 * width, 41, 2, 4), (8 * width, 41, 2, 16), (16 * width, 41, 4, 16),
            (32 * width, 41, 4, 16), (32 * width, 41, 1, 16), (32 * width, 5, 1, 1),
        ]  # fmt: skip
        self.convs = nn.ModuleList()
        inputs = 1
        for outputs, kernel, stride, groups in sizes:
            conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
            self.convs.append(norm(conv))
            inputs = outputs
        self.score = norm(nn.Conv1d(inputs, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> Judgement:
        return _judge(self.convs, self.score, wave.unsqueeze(1))  # (batch, 1, samples)


class WaveDiscriminators(nn.Module):
    """HiFi-GAN's discriminators: one per period, and one per resolution of the wave.

    Args:
        width: channels of the first layers, a multiple of 4; 32 in the paper. The size grows with its square.
        periods: in samples.
        scales: number of resolutions, each half of the one before.
    """

    def __init__(self, width: int = 32, periods: tuple[int, ...] = (2, 3, 5, 7, 11), scales: int = 3) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
        # The first one sees the raw wave; as in HiFi-GAN, spectral norm keeps it in check.
        self.scales = nn.ModuleList(
            ScaleDiscriminator(width, weight_norm if halvings else spectral_norm)
            for halvings in range(scales)
        )

    def forward(self, wave: Tensor) -> list[Judgement]:
        """Returns the scores and features of every discriminator for waves (batch, samples)."""
        judgements = [judge(wave) for judge in self.periods]
        for scale in self.scales:
            judgements.append(scale(wave))
            wave = F.avg_pool1d(wave.unsqueeze(1), 4, 2, padding=2).squeeze(1)  # (batch, samples / 2)
        return judgements


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all processes that share a batch."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var, steps = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and steps is not None
        if self.training:
            steps.add_(1)
        return ops.batch_norm(x, mean, var, self.weight, self.bias, self.training, eps=self.eps)


class PatchDiscriminator(nn.Sequential):
    """Scores every patch of a log-mel spectrogram: (batch, 1, time, mel) to (batch, 1, fewer, fewer).

    Source: Isola et al. 2017, "pix2pix" (arXiv 1611.07004), as in Rombach et al. 2022, with width 64.
    """

    LEAST = 24  # mel frames, and mel bins, of the smallest input

    def __init__(self, width: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for inputs, outputs, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            conv = nn.Conv2d(inputs * width, outputs * width, 4, stride, padding=1, bias=False)
            layers += [conv, BatchNorm(outputs * width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


def _judge(convs: nn.ModuleList, score: nn.Module, x: Tensor) -> Judgement:
    features = []
    for conv in convs:
        x = F.leaky_relu(conv(x), 0.1)
        features.append(x)
    x = score(x)
    return torch.flatten(x, 1), [*features, x]
