"""Long sounds in little memory: the decoder and the vocoder in pieces, with the result of the whole clip.

Both functions give what the network gives when it sees everything at once, up to the rounding of sums that
are added in another order. They differ in what has to stay in memory:

    vocode_in_pieces   A sample depends on a few dozen frames: pieces are independent, and memory is flat.
    decode_in_pieces   Group norms and the attention see the whole clip: one feature map of it is kept, and
                       all else is a piece at a time. Memory grows three times slower than the whole's.

Rows of a batch run one after the other: memory does not grow with the batch, and a row is the same in any.

Why the decoder is not cut into tiles that overlap and are cross-faded: a tile's norms see other statistics
than the clip's, and its attention sees less. With random weights and sounds that change, the error was only
16 to 18 dB below the spectrogram, the worst where a silence ends; 22 to 28 dB with statistics of all tiles.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.vae import VAE, Decoder, ResidualBlock

VOCODER_FRAMES = 512  # mel frames to a piece: 5.12 s; the context adds 9 % of work
DECODER_FRAMES = (
    64  # latent frames to a piece: 2.56 s; on the CPU, longer ones took more memory and no less time
)
DECODER_WHOLE = 256  # latent frames that are decoded whole: 10.24 s, as in training

Layer = Callable[[Tensor], Tensor]


@torch.no_grad()
def vocode_in_pieces(vocoder: HiFiGAN, mel: Tensor, *, frames: int = VOCODER_FRAMES) -> Tensor:
    """Waveforms of log-mel spectrograms: `vocoder(mel)`, in memory that does not grow with the sound.

    mel:     (batch, time, mels).
    frames:  mel frames to a piece, 1 or more; a piece is computed with `vocoder_context` more on either side.
    Returns  (batch, samples), without gradients.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}; the vocoder needs pieces of 1 mel frame or more.")
    (batch, time, _), hop = mel.shape, vocoder.config.hop
    if time < 1:
        raise ValueError("mel has no frames; the vocoder needs 1 or more.")
    before, after = vocoder_context(vocoder.config)
    wave = mel.new_empty(batch, vocoder_samples(vocoder.config, time))
    for row in range(batch):
        for start in range(0, time, frames):
            end = min(start + frames, time)
            low, high = max(start - before, 0), min(end + after, time)
            piece = vocoder(mel[row : row + 1, low:high])[0]  # (samples of the piece,)
            # The last piece keeps what the kernels add behind the last frame.
            first, last = start * hop, end * hop if end < time else wave.shape[1]
            wave[row, first:last] = piece[first - low * hop : last - low * hop]
    return wave


def vocoder_context(config: HiFiGANConfig) -> tuple[int, int]:
    """Mel frames before and after a piece on which its samples depend: (23, 23) for the published vocoder.

    Walks from the waveform back to the spectrogram with the first and the last position that is needed:

        convolution of kernel k, dilation d        first - d (k - 1) / 2               last + d (k - 1) / 2
        transposed: kernel k, rate r, padding p    ceil((first + p - (k - 1)) / r)     floor((last + p) / r)

    the second because y[j] = sum over i of x[i] w[j + p - i r], where w has k taps. Residual branches run
    side by side, so the widest counts; their kernels are odd, or a residual would not fit its sum. A piece
    begins with sample 0 of a frame, and sample -1 of a frame ends the piece before it: the walk starts there,
    so it arrives at whole frames and nothing is rounded up. One frame less on either side changes the sound.
    """
    first, last = -3, -1 + 3  # conv_out
    branches = zip(config.branch_kernels, config.branch_dilations, strict=True)
    reach = max(sum((d + 1) * (kernel - 1) // 2 for d in dilations) for kernel, dilations in branches)
    for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernels, strict=True))):
        first, last, padding = first - reach, last + reach, (kernel - rate) // 2
        first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
    return 3 - first, last + 1 + 3  # conv_in


def vocoder_samples(config: HiFiGANConfig, time: int) -> int:
    """Samples that the vocoder makes of so many mel frames: `hop` a frame and a few more."""
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
        time = (time - 1) * rate + kernel - 2 * ((kernel - rate) // 2)
    return time


@torch.no_grad()
def decode_in_pieces(
    vae: VAE, z: Tensor, *, frames: int = DECODER_FRAMES, whole_up_to: int = DECODER_WHOLE
) -> Tensor:
    """Log-mel spectrograms of scaled latents: `vae.decode(z)`, with one feature map of the clip in memory.

    z:            (batch, latent_channels, time, mel).
    frames:       latent frames to a piece at most, 3 or more.
    whole_up_to:  latent frames up to which `vae.decode` sees the clip at once, which takes less time.
    Returns       (batch, 1, time, mel), both `config.downsampling` times larger, without gradients.

    The largest map is that of the finest level as it begins, still `channels[1]` wide: 6.6 MB a second of
    sound in float32. A convolution between two norms runs twice, first for the statistics of the second: a
    third more work. The attention of the middle costs the square of the length, here as in the whole.
    """
    if frames < 3:  # then the smallest of equal pieces has 2: a residual block sees that far into the next
        raise ValueError(f"frames is {frames}; the decoder needs pieces of 3 latent frames or more.")
    config, (batch, _, time, bands) = vae.config, z.shape
    larger = config.downsampling
    mel = z.new_empty(batch, config.mel_channels, time * larger, bands * larger)
    for row in range(batch):
        if time <= whole_up_to:
            mel[row] = vae.decode(z[row : row + 1])[0]
            continue
        end = 0
        for piece in _decode(vae.decoder, z[row : row + 1] / config.scaling_factor, ceil(time / frames)):
            start, end = end, end + piece.shape[2]
            mel[row, :, start:end] = piece[0]
    return mel


def _decode(decoder: Decoder, z: Tensor, count: int) -> Iterator[Tensor]:
    """`Decoder.forward` of one row (1, latent_channels, time, mel) in `count` pieces."""
    x = decoder.middle(decoder.conv_in(decoder.latent_in(z)))  # (1, channels, time, mel): coarse, so whole
    pieces = list(x.tensor_split(count, dim=2))
    del x  # from here on the list owns the map, and each step replaces it piece by piece
    for level in decoder.levels:
        for block in level.resnets:
            _residual(block, pieces)
        if level.resample is not None:
            _replace(pieces, partial(_double, level.resample), context=1)
    norm = _affine(decoder.norm_out, pieces)
    yield from _run(pieces, lambda x: decoder.conv_out(_norm_silu(x, norm)), context=1)


def _double(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _residual(block: ResidualBlock, pieces: list[Tensor]) -> None:
    """`ResidualBlock.forward` of the whole map, in place."""
    norm_in = _affine(block.norm_in, pieces)

    def hidden(x: Tensor) -> Tensor:
        return block.conv_in(_norm_silu(x, norm_in))

    norm_out = _affine(block.norm_out, _run(pieces, hidden, context=1))

    def out(x: Tensor) -> Tensor:
        return block.shortcut(x) + block.conv_out(_norm_silu(hidden(x), norm_out))

    _replace(pieces, out, context=2)


def _replace(pieces: list[Tensor], layer: Layer, *, context: int) -> None:
    for i, piece in enumerate(_run(pieces, layer, context=context)):
        pieces[i] = piece


def _run(pieces: list[Tensor], layer: Layer, *, context: int) -> Iterator[Tensor]:
    """What `layer` makes of each piece when it sees `context` frames more on either side.

    At the ends of the clip nothing is added: the layer's own zero padding stands there, as in the whole.
    A piece may be replaced once its result is out: what the next one needs of it is kept here.
    """
    before = pieces[0][:, :, :0]
    for i, piece in enumerate(pieces):
        after = pieces[i + 1][:, :, :context] if i + 1 < len(pieces) else piece[:, :, :0]
        x = torch.cat([before, piece, after], dim=2)  # (1, channels, context + time + context, mel)
        y = layer(x)
        larger = y.shape[2] // x.shape[2]  # 2 where the layer doubles
        skip = before.shape[2] * larger
        before = piece[:, :, -context:]
        yield y[:, :, skip : skip + piece.shape[2] * larger]


def _affine(norm: nn.GroupNorm, pieces: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The group norm of a whole map as scale and shift of each channel, both (channels, 1, 1).

    The variance is the mean of the pieces' variances plus the variance of their means, weighted by size (the
    law of total variance): sums of squares over a clip would lose in float32 what a large mean hides.
    """
    sizes, variances, means = [], [], []
    for piece in pieces:
        groups = piece[0].unflatten(0, (norm.num_groups, -1))  # (groups, channels of a group, time, mel)
        # As PyTorch's own group norm, which sums in float32 whatever the dtype.
        wide = torch.promote_types(piece.dtype, torch.float32)
        variance, mean = torch.var_mean(groups.to(wide), dim=(1, 2, 3), correction=0)  # (groups,) both
        sizes.append(groups[0].numel())
        variances.append(variance)
        means.append(mean)
    share = torch.tensor(sizes).to(means[0]).unsqueeze(1) / sum(sizes)  # (pieces, 1)
    means = torch.stack(means)  # (pieces, groups)
    mean = (share * means).sum(0)  # (groups,)
    variance = (share * (torch.stack(variances) + (means - mean) ** 2)).sum(0)
    each = norm.num_channels // norm.num_groups
    scale = norm.weight * torch.rsqrt(variance + norm.eps).repeat_interleave(each)
    shift = norm.bias - scale * mean.repeat_interleave(each)
    return scale[:, None, None], shift[:, None, None]


def _norm_silu(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    scale, shift = affine
    return F.silu(torch.addcmul(shift, x, scale).to(x.dtype), inplace=True)
