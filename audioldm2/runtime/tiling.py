"""Long sounds in little memory: the vocoder and the decoder in windows. Both run as they are written.

vocode  A sample depends on a few dozen frames: windows are independent, memory is flat, and the result is
        that of the whole.
decode  Up to 30 s at once. From there on the last part of the decoder, which takes the memory, runs in
windows:
        its convolutions see a few latent frames to either side, so a window with as many around it gives what
        the whole gives, if its norms scale by the statistics of the whole clip. Those are estimated from
        digests.

"That of the whole" is up to the rounding of sums that are added in another order. Rows of a batch run one
after the other: memory does not grow with the batch, and a row is the same in any.

Digests. The map is dealt like cards, in excerpts of 3 s, to as few clips of at most 30 s as hold it; each is
decoded by its own statistics, and those of all are pooled. All windows scale alike, so nothing is faded. The
clip is decoded once more for that. Windows that are decoded each by its own statistics and cross-faded, the
usual way, differ from the whole by up to its own loudness where the sound changes: one with a silence in it
scales otherwise than the next.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from audioldm2.errors import require_whole
from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.vae import VAE, Statistics, VAEConfig

VOCODER_FRAMES = 1024  # mel frames to a window: 10.24 s; what is seen around it adds up to 5 % of work
VOCODER_FRAMES_BFLOAT16 = 512  # on the CPU, longer ones take a third more time
DECODER_WHOLE = 3000  # mel frames that are decoded at once, and of a digest: 30 s
DECODER_FRAMES = 1024  # mel frames to a window of a longer clip
DIGEST_EXCERPT = 75  # latent frames, 3 s: several times what convolutions see across its ends


@torch.no_grad()
def vocode(vocoder: HiFiGAN, mel: Tensor, *, frames: int | None = None) -> Tensor:
    """Waveforms of log-mel spectrograms: `vocoder(mel)`, in memory that does not grow with the sound.

    Args:
        vocoder: the network.
        mel: (batch, time, mels).
        frames: mel frames to a window, 1 or more; computed with `vocoder_context` more on either side. By
            default 1024, or 512 in bfloat16.

    Returns:
        (batch, samples), without gradients.
    """
    if frames is None:
        frames = VOCODER_FRAMES_BFLOAT16 if mel.dtype == torch.bfloat16 else VOCODER_FRAMES
    require_whole("frames", frames, 1)
    (batch, time, _), hop = mel.shape, vocoder.config.hop
    require_whole("the number of frames of mel", time, 1)
    before, after = vocoder_context(vocoder.config)
    wave = mel.new_empty(batch, vocoder_samples(vocoder.config, time))
    for row in range(batch):
        for start in range(0, time, frames):
            end = min(start + frames, time)
            low, high = max(start - before, 0), min(end + after, time)
            window = vocoder(mel[row : row + 1, low:high])[0]  # (samples of the window,)
            # The last window keeps what the kernels add behind the last frame.
            first, last = start * hop, end * hop if end < time else wave.shape[1]
            wave[row, first:last] = window[first - low * hop : last - low * hop]
    return wave


def vocoder_context(config: HiFiGANConfig) -> tuple[int, int]:
    """Mel frames before and after a window on which its samples depend: (23, 23) for the published vocoder.

    Walks from the waveform back to the spectrogram with the first and the last position that is needed:

        convolution of kernel k, dilation d        first - d (k - 1) / 2               last + d (k - 1) / 2
        transposed: kernel k, rate r, padding p    ceil((first + p - (k - 1)) / r)     floor((last + p) / r)

    the second because y[j] = sum over i of x[i] w[j + p - i r], where w has k taps. Residual branches run
    side by side, so the widest counts; their kernels are odd, or a residual would not fit its sum. A window
    begins with sample 0 of a frame, and sample -1 of a frame ends the window before it: the walk starts
    there, so it arrives at whole frames and nothing is rounded up. One frame less on either side changes the
    sound.
    """
    first, last = -3, -1 + 3  # conv_out
    branches = zip(config.branch_kernels, config.branch_dilations, strict=True)
    reach = max(sum((d + 1) * (kernel - 1) // 2 for d in dilations) for kernel, dilations in branches)
    for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernels, strict=True))):
        first, last, padding = first - reach, last + reach, (kernel - rate) // 2
        first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
    return 3 - first, last + 1 + 3  # conv_in


def vocoder_samples(config: HiFiGANConfig, time: int) -> int:
    """Samples that the vocoder computes from `time` mel frames: `hop` per frame and a few more."""
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
        time = (time - 1) * rate + kernel - 2 * ((kernel - rate) // 2)
    return time


@torch.no_grad()
def decode(vae: VAE, z: Tensor, *, whole_up_to: int = DECODER_WHOLE, frames: int = DECODER_FRAMES) -> Tensor:
    """Log-mel spectrograms of scaled latents: `vae.decode(z)`, in memory that grows little with the sound.

    Args:
        vae: the network.
        z: (batch, latent_channels, time, mel).
        whole_up_to: mel frames up to which `vae.decode` sees the clip at once; also the length of a digest.
        frames: mel frames to a window of a longer clip.

    Returns:
        (batch, 1, time, mel), both `config.downsampling` times larger, without gradients.
    """
    config, (batch, _, time, bands) = vae.config, z.shape
    larger = config.downsampling
    require_whole("frames", frames, larger)
    require_whole("whole_up_to", whole_up_to, larger)
    tile = partial(_in_windows, config=config, frames=frames // larger, digest=whole_up_to // larger)
    mel = z.new_empty(batch, config.mel_channels, time * larger, bands * larger)
    for row in range(batch):
        mel[row] = vae.decode(z[row : row + 1], None if time * larger <= whole_up_to else tile)[0]
    return mel


def decoder_context(config: VAEConfig) -> int:
    """Latent frames before and after a window that the convolutions of `Decoder.upsample` see.

    Walks from the spectrogram back to the map, as `vocoder_context` does: a convolution, always of kernel 3,
    sees 1 frame on either side; a doubling, half as far in frames twice as long.
    """
    first, last = -1, config.downsampling - 1 + 1  # conv_out, around the mel frames of one latent frame
    for level in range(len(config.channels)):
        if level:  # the doubling into the level before, and its convolution
            first, last = (first - 1) // 2, (last + 1) // 2
        first, last = first - 2 * (config.layers + 1), last + 2 * (config.layers + 1)
    return max(-first, last)


def _in_windows(
    upsample: Callable[..., Tensor], x: Tensor, *, config: VAEConfig, frames: int, digest: int
) -> Tensor:
    """`Decoder.upsample` of one clip's map (1, channels, time, mel), in even windows of `frames` at most."""
    statistics = Statistics(_pooled_statistics(upsample, x, digest))
    larger, context, time = config.downsampling, decoder_context(config), x.shape[2]
    count = ceil(time / frames)
    windows = []
    for i in range(count):
        start, end = i * time // count, (i + 1) * time // count
        low = max(start - context, 0)
        window = upsample(x[:, :, low : end + context], statistics)
        windows.append(window[:, :, (start - low) * larger : (end - low) * larger])
    return torch.cat(windows, dim=2)


def _pooled_statistics(
    upsample: Callable[..., Tensor], x: Tensor, digest: int
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Mean and variance of each norm over all digests of a map, each decoded by its own statistics."""
    seen, sizes = [], []
    for clip in _digests(x, digest):
        own = Statistics()
        upsample(clip, own)
        seen.append(own.seen)
        sizes.append(clip.shape[2])
    return {norm: _pooled(sizes, *zip(*(each[norm] for each in seen), strict=True)) for norm in seen[0]}


def _digests(x: Tensor, frames: int) -> Iterator[Tensor]:
    """x dealt, an excerpt at a time, to as few clips of `frames` at most: each is a digest of the whole."""
    length = min(DIGEST_EXCERPT, frames)
    excerpts = x.split(length, dim=2)
    count = ceil(len(excerpts) / (frames // length))
    for i in range(count):
        yield torch.cat(excerpts[i::count], dim=2)


def _pooled(
    sizes: list[int], means: tuple[Tensor, ...], variances: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of groups over parts of such sizes.

    The variance is the mean of the parts' variances plus the variance of their means, weighted by size (the
    law of total variance): sums of squares over a clip would lose in float32 what a large mean hides.
    """
    share = torch.tensor(sizes).to(means[0]).reshape(-1, 1, 1, 1) / sum(sizes)  # (parts, 1, 1, 1)
    of_parts = torch.stack(means)  # (parts, 1, groups, 1)
    mean = (share * of_parts).sum(0)
    variance = (share * (torch.stack(variances) + (of_parts - mean) ** 2)).sum(0)
    return mean, variance
