"""Long sounds in little memory: the decoder and the vocoder in pieces.

    vocode_in_pieces   A sample depends on a few dozen frames: pieces are independent, memory is flat, and the
                       result is that of the whole.
    decode_in_pieces   Group norms and the attention see the whole clip. Up to 30 s the result is that of the
                       whole: one feature map of the clip is kept, and all else is a piece at a time. From
                       there on memory is flat too, and the norms' statistics are an approximation.

"That of the whole" is up to the rounding of sums that are added in another order. Rows of a batch run one
after the other: memory does not grow with the batch, and a row is the same in any.

How a longer clip is decoded. Convolutions see 17 latent frames to either side, so a window with as many
around it gives what the whole gives, if only its norms scale by the statistics of the whole clip, and its
attention hears the whole clip. The attention does: its keys are computed anew for each window, a block at a
time. The statistics come from digests: the clip is dealt like cards, in excerpts of 3 s, to as few clips of
at most 30 s as hold it; each is decoded by its own statistics, and those of all are pooled. All windows scale
alike, so there is nothing to fade, and where one ends cannot be heard. What it costs: the clip is decoded
once more, for the digests, and the front of the decoder again for each window.

The error at 60 and 100 s, with random weights, is 60 dB below the spectrogram where the sound stays the same
and 51 to 63 dB where it changes (`scripts/memory_curve.py --error`). Windows of 30 s, each decoded alone and
cross-faded, the usual way, came to 38 dB and to 8: one with a silence in it scales by other statistics than
the next. In excerpts of 1 s the cuts weigh more (38 dB against 47), and one digest alone misses much (34).

The file is long because the exact and the approximate decoding are one walk, with other statistics.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil, inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.vae import VAE, Decoder, ResidualBlock, SelfAttention, VAEConfig
from audioldm2.ops.onednn import linear

VOCODER_FRAMES = 1024  # mel frames to a piece: 10.24 s; the context adds up to 5 % of work
VOCODER_FRAMES_BFLOAT16 = 512  # on the CPU, longer ones take a third more time
# In mel frames too, so that they are the same seconds for a decoder of any depth.
DECODER_FRAMES = 256  # to a piece: 2.56 s; on the CPU, longer ones took more memory and no less time
DECODER_WHOLE = 1024  # that are decoded whole: 10.24 s, as in training
DECODER_EXACT = 3000  # up to which the result is exact, and in a digest of a longer sound: 30 s
DIGEST_EXCERPT = 75  # latent frames, 3 s: several times what convolutions see across its ends

Layer = Callable[[Tensor], Tensor]
Affine = tuple[Tensor, Tensor]  # scale and shift of each channel
Norms = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # variance and mean of each group


@torch.no_grad()
def vocode_in_pieces(vocoder: HiFiGAN, mel: Tensor, *, frames: int | None = None) -> Tensor:
    """Waveforms of log-mel spectrograms: `vocoder(mel)`, in memory that does not grow with the sound.

    mel:     (batch, time, mels).
    frames:  mel frames to a piece, 1 or more; a piece is computed with `vocoder_context` more on either side.
             Default: 1024, or 512 in bfloat16.
    Returns  (batch, samples), without gradients.
    """
    if frames is None:
        frames = VOCODER_FRAMES_BFLOAT16 if mel.dtype == torch.bfloat16 else VOCODER_FRAMES
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
    vae: VAE,
    z: Tensor,
    *,
    frames: int = DECODER_FRAMES,
    whole_up_to: int = DECODER_WHOLE,
    exact_up_to: float = DECODER_EXACT,
) -> Tensor:
    """Log-mel spectrograms of scaled latents: `vae.decode(z)`, in memory that stops growing with the sound.

    z:            (batch, latent_channels, time, mel).
    frames:       mel frames to a piece at most, 3 latent frames or more.
    whole_up_to:  mel frames up to which `vae.decode` sees the clip at once, which takes less time.
    exact_up_to:  mel frames up to which the result is exact and one feature map of the clip is in memory;
                  `math.inf` for any clip. A longer one has its statistics from digests as long (above).
    Returns       (batch, 1, time, mel), both `config.downsampling` times larger, without gradients.

    The largest map is that of the finest level as it begins, still `channels[1]` wide: 6.6 MB a second in
    float32. The attention of the middle costs the square of the length, here as in the whole.
    """
    config, (batch, _, time, bands) = vae.config, z.shape
    larger, context = config.downsampling, decoder_context(config)
    if frames < 3 * larger:  # then the smallest of equal pieces has 2 latent frames: a residual block sees 2
        raise ValueError(f"frames is {frames}; this decoder needs pieces of {3 * larger} mel frames or more.")
    least = frames + 2 * context * larger
    if exact_up_to < least:
        raise ValueError(f"exact_up_to is {exact_up_to}; this decoder needs {least} mel frames or more.")
    mel = z.new_empty(batch, config.mel_channels, time * larger, bands * larger)
    for row in range(batch):
        x = z[row : row + 1] / config.scaling_factor
        if time * larger <= whole_up_to:
            mel[row] = vae.decoder(x)[0]
        elif time * larger <= exact_up_to:
            mel[row] = _decode(vae.decoder, x, frames // larger, {})[0]
        else:
            end = 0
            for window in _windows(vae.decoder, x, frames // larger, int(exact_up_to) // larger, context):
                start, end = end, end + window.shape[2]
                mel[row, :, start:end] = window[0]
    return mel


def decoder_context(config: VAEConfig) -> int:
    """Latent frames before and after a piece that its convolutions see: 17 for the published decoder.

    Walks from the spectrogram back to the latent, as `vocoder_context` does: a convolution, always of kernel
    3, sees 1 frame on either side; a doubling, half as far in frames twice as long.
    """
    first, last = -1, config.downsampling - 1 + 1  # conv_out, around the mel frames of one latent frame
    for level in range(len(config.channels)):
        if level:  # the doubling into the level before, and its convolution
            first, last = (first - 1) // 2, (last + 1) // 2
        first, last = first - 2 * (config.layers + 1), last + 2 * (config.layers + 1)
    return max(-first, last) + 4 + 1  # the two residual blocks of the middle, conv_in


def _windows(decoder: Decoder, z: Tensor, frames: int, longest: int, context: int) -> Iterator[Tensor]:
    """The result for one row that is longer than `longest` latent frames, in even windows."""
    norms = _shared_norms(decoder, _digests(z, longest), frames)

    def heard() -> Iterator[Tensor]:
        for start, end, around in _evenly(z, frames, context=3):  # conv_in and a residual block see 3
            yield _before_attention(decoder, around, around.shape[2], norms)[0][:, :, start:end]

    larger = 2 ** (len(decoder.levels) - 1)
    for start, end, around in _evenly(z, longest - 2 * context, context):
        window = _decode(decoder, around, frames, norms, heard())
        yield window[:, :, start * larger : end * larger]


def _evenly(z: Tensor, frames: int, context: int) -> Iterator[tuple[int, int, Tensor]]:
    """z in windows of `frames` at most: where each starts and ends in a cut with `context` more around it."""
    time, count = z.shape[2], ceil(z.shape[2] / frames)
    for i in range(count):
        start, end = i * time // count, (i + 1) * time // count
        low = max(start - context, 0)
        yield start - low, end - low, z[:, :, low : end + context]


def _digests(z: Tensor, frames: int) -> list[Tensor]:
    """z dealt, an excerpt at a time, to as few clips of `frames` at most: each is a digest of the whole."""
    length = min(DIGEST_EXCERPT, frames)
    excerpts = z.split(length, dim=2)
    count = ceil(len(excerpts) / (frames // length))
    return [torch.cat(excerpts[i::count], dim=2) for i in range(count)]


def _shared_norms(decoder: Decoder, digests: list[Tensor], frames: int) -> Norms:
    """The statistics of all digests together, each decoded by its own."""
    found: list[Norms] = [{} for _ in digests]
    for digest, norms in zip(digests, found, strict=True):
        _decode(decoder, digest, frames, norms)
    sizes = [digest.shape[2] for digest in digests]
    return {norm: _pooled(sizes, *zip(*(norms[norm] for norms in found), strict=True)) for norm in found[0]}


def _decode(
    decoder: Decoder, z: Tensor, frames: int, norms: Norms, heard: Iterable[Tensor] | None = None
) -> Tensor:
    """`Decoder.forward` of one row (1, latent_channels, time, mel) in pieces of `frames` at most.

    norms:  the statistics of each norm; those that are missing are taken from this row and added.
    heard:  what the attention attends to, a block of the map before it at a time; without it, this row.
    """
    pieces = _before_attention(decoder, z, frames, norms)
    _attend(decoder.middle.attn, pieces, norms, pieces if heard is None else heard)
    _residual(decoder.middle.resnet_out, pieces, norms)
    for level in decoder.levels:
        for block in level.resnets:
            _residual(block, pieces, norms)
        if level.resample is not None:
            _replace(pieces, level.resample, context=1)
    norm = _affine(decoder.norm_out, pieces, norms)
    return torch.cat(list(_run(pieces, lambda x: decoder.conv_out(_norm_silu(x, norm)), context=1)), dim=2)


def _before_attention(decoder: Decoder, z: Tensor, frames: int, norms: Norms) -> list[Tensor]:
    """The map that the attention is given, in even pieces of `frames` at most."""
    x = decoder.conv_in(decoder.latent_in(z))  # (1, channels, time, mel)
    pieces = list(x.tensor_split(ceil(z.shape[2] / frames), dim=2))
    _residual(decoder.middle.resnet_in, pieces, norms)
    return pieces


def _attend(attn: SelfAttention, pieces: list[Tensor], norms: Norms, heard: Iterable[Tensor]) -> None:
    """`SelfAttention.forward` of all pieces to all blocks of `heard`, in place.

    A softmax over blocks needs the largest score so far, and scales what it summed before when that grows
    (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
    """
    norm = _affine(attn.norm, pieces, norms)

    def seq(x: Tensor) -> Tensor:
        return _normed(x, norm)[0].flatten(1).T  # (time * mel, channels)

    queries = [_wide(attn.query(seq(x))) / x.shape[1] ** 0.5 for x in pieces]
    mixed = [torch.zeros_like(query) for query in queries]  # (queries, channels): sums of weights * values
    total = [query.new_zeros(len(query), 1) for query in queries]  # of weights
    largest = [query.new_full((len(query), 1), -inf) for query in queries]  # score
    for block in heard:
        keys, values = _wide(attn.key(seq(block))), _wide(attn.value(seq(block)))  # (keys, channels) both
        for i, query in enumerate(queries):
            scores = linear(query, keys)  # (queries, keys)
            top = torch.maximum(largest[i], scores.amax(dim=1, keepdim=True))
            weights, fewer = scores.sub_(top).exp_(), (largest[i] - top).exp()
            mixed[i].mul_(fewer).add_(linear(weights, values.T))
            total[i].mul_(fewer).add_(weights.sum(dim=1, keepdim=True))
            largest[i] = top
    for i, piece in enumerate(pieces):
        y = attn.out(mixed[i].div_(total[i]).to(piece.dtype))
        pieces[i] = piece + y.T.unflatten(1, piece.shape[2:])


def _residual(block: ResidualBlock, pieces: list[Tensor], norms: Norms) -> None:
    """`ResidualBlock.forward` of the whole map, in place.

    Where the statistics of the second norm are not known, the first convolution runs twice: once for them.
    """
    norm_in = _affine(block.norm_in, pieces, norms)

    def hidden(x: Tensor) -> Tensor:
        return block.conv_in(_norm_silu(x, norm_in))

    norm_out = _affine(block.norm_out, _run(pieces, hidden, context=1), norms)

    def out(x: Tensor) -> Tensor:
        return block.conv_out(_norm_silu(hidden(x), norm_out)).add_(block.shortcut(x))

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


def _affine(norm: nn.GroupNorm, pieces: Iterable[Tensor], norms: Norms) -> Affine:
    """A group norm as scale and shift of each channel, both (channels, 1, 1).

    Its statistics are those in `norms`; if they are missing, those of the whole map, and they are added.
    """
    if norm not in norms:
        sizes, variances, means = [], [], []
        for piece in pieces:
            groups = _wide(piece[0]).unflatten(0, (norm.num_groups, -1))  # (groups, channels, time, mel)
            variance, mean = torch.var_mean(groups, dim=(1, 2, 3), correction=0)  # (groups,) both
            sizes.append(piece.shape[2])
            variances.append(variance)
            means.append(mean)
        norms[norm] = _pooled(sizes, variances, means)
    variance, mean = norms[norm]
    each = norm.num_channels // norm.num_groups
    scale = norm.weight * torch.rsqrt(variance + norm.eps).repeat_interleave(each)
    shift = norm.bias - scale * mean.repeat_interleave(each)
    return scale[:, None, None], shift[:, None, None]


def _pooled(
    sizes: Sequence[int], variances: Sequence[Tensor], means: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Variance and mean of each group, all (groups,), over parts of such sizes.

    The variance is the mean of the parts' variances plus the variance of their means, weighted by size (the
    law of total variance): sums of squares over a clip would lose in float32 what a large mean hides.
    """
    share = torch.tensor(sizes).to(means[0]).unsqueeze(1) / sum(sizes)  # (parts, 1)
    of_parts = torch.stack(tuple(means))  # (parts, groups)
    mean = (share * of_parts).sum(0)
    variance = (share * (torch.stack(tuple(variances)) + (of_parts - mean) ** 2)).sum(0)
    return variance, mean


def _wide(x: Tensor) -> Tensor:
    """At least in float32, where PyTorch's own norms and softmax sum too, whatever the dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normed(x: Tensor, affine: Affine) -> Tensor:
    scale, shift = affine
    return torch.addcmul(shift, x, scale).to(x.dtype)


def _norm_silu(x: Tensor, affine: Affine) -> Tensor:
    return F.silu(_normed(x, affine), inplace=True)
