"""Putting back frequencies that a mask keeps: they come from the sound's own samples, not from the vocoder.

Where only some bands are remade, the vocoder's wave holds the kept bands too, but decoded: with another phase
and the VAE's errors. As AudioSR (Liu et al. 2023) does for the low band, the short-time spectrum of the sound
replaces that of the wave in the kept bands. The two meet in a crossover inside the remade bands:

    band edge       + 62.5 Hz             + 200 Hz
    ... sound only ... | ... sine-squared fade ... | ... model only ...

The first 62.5 Hz, 4 bins, are as wide as the window smears a tone: below the band edge, the result equals the
sound to better than -60 dB. Where less than 800 Hz are remade, each crossover takes a quarter of them, and
the 60 Hz below the edge may hold a little of the model.

A mask that changes with time switches the spectrum from frame to frame: over one window of 64 ms, centred on
the edge of the latent frame.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.editing.latent_cells import runs

WINDOW_SECONDS = 0.064  # of a frame; 1024 samples at 16 kHz
OVERLAP = 8  # frames that see each sample: squared Hann windows then add up to a constant, 3/8 of it
CROSSOVER_HZ = 200.0  # from a band edge to where the model alone sounds
GUARD_BINS = 4  # of the crossover, next to the kept band: half the main lobe of a squared Hann window
PREDICTED_FROM, PREDICTION_ORDER = 2048, 64  # samples at the ends of a clip, from which it is continued
BLOCK = 2048  # frames at once, 16 s at any rate, so that long sounds take little memory


def splice(
    made: Tensor, own: Tensor, remake: Tensor, bounds: Sequence[float], sample_rate: int, start: int = 0
) -> Tensor:
    """Put a sound's frequencies into waves where they are kept.

    Args:
        made: waves of the model (batch, samples), at the level of the sound.
        own: the sound (its samples,); it covers all frames in which something is kept.
        remake: bool (1 or batch, time, bands), in frames of samples / time; False where `own` is put back.
            Frames in which nothing is remade count as the nearest others: a caller replaces them whole, and
            the bands around them are not disturbed.
        bounds: frequencies between bands, Hz: one more than there are bands.
        sample_rate: of both, Hz.
        start: the place of the sound in the waves, samples.

    Returns:
        (batch, samples). Waves come back bit for bit where all bands are remade, one window around included.
    """
    length = OVERLAP * max(1, round(WINDOW_SECONDS * sample_rate / OVERLAP))  # of a window
    hop, samples = length // OVERLAP, made.shape[1]
    frames = OVERLAP + math.ceil(samples / hop)  # frame i is centred on sample (i - OVERLAP / 2) * hop
    centres = (torch.arange(frames, device=remake.device) - OVERLAP // 2) * hop
    place = (centres * remake.shape[1] // samples).clamp(0, remake.shape[1] - 1)  # latent frame of each
    waves = []
    for row, wave in enumerate(made):
        marked = remake[row if len(remake) > 1 else 0]  # (time, bands)
        if not marked.any():
            waves.append(wave)
            continue
        marked = marked[_nearest(marked.any(dim=1))]
        patterns, which = marked.unique(dim=0, return_inverse=True)
        gains = torch.stack([_share_of_own(each, bounds, length, sample_rate) for each in patterns])
        difference = F.pad(wave.new_zeros(samples), (length, (frames - 1) * hop - samples))
        begin, end = length + start, length + start + len(own)
        difference[begin:end] = own - wave[start : start + len(own)]
        before, after = min(length, begin), min(length, len(difference) - end)
        difference[begin - before : begin] = _predicted(difference[begin:end].flip(0), before).flip(0)
        difference[end : end + after] = _predicted(difference[begin:end], after)
        waves.append(wave + _filtered(difference, gains, which[place], length)[length : length + samples])
    return torch.stack(waves)


def _nearest(marked: Tensor) -> Tensor:
    """For each place, the nearest that is marked: (places,) of indices."""
    places = torch.arange(len(marked), device=marked.device)
    before = torch.where(marked, places, -len(marked)).cummax(0).values
    after = torch.where(marked, places, 2 * len(marked)).flip(0).cummin(0).values.flip(0)
    return torch.where(places - before <= after - places, before, after)


def _share_of_own(remade: Tensor, bounds: Sequence[float], length: int, sample_rate: int) -> Tensor:
    """How much of the sound each frequency bin keeps, 0 to 1, where these bands are remade: (bins,)."""
    hz = torch.arange(length // 2 + 1, dtype=torch.float64, device="cpu") * (sample_rate / length)
    share = torch.zeros_like(hz)  # of the model
    for first, last in runs(remade.cpu()):
        low = bounds[first] if first > 0 else -math.inf  # the outermost bands have no outer crossover
        high = bounds[last] if last < len(remade) else math.inf
        width = min(CROSSOVER_HZ, (high - low) / 4)
        guard = min(GUARD_BINS * sample_rate / length, width / 2)
        inside = torch.minimum(hz - low, high - hz)  # Hz from the nearest kept band
        fade = ((inside - guard) / (width - guard)).clamp(0, 1)
        share += (fade * (math.pi / 2)).sin().square()
    return (1 - share).float()


def _predicted(wave: Tensor, samples: int) -> Tensor:
    """Continue a wave (samples,) by linear prediction, so that no filter sees an edge at the end of a clip.

    Source: Burg's method, as in Kay, "Modern spectral estimation" (1988), 7.3. Its predictor is stable.
    """
    recent = wave[-PREDICTED_FROM:].double()
    order = min(PREDICTION_ORDER, len(recent) // 3)
    predictor = recent.new_ones(1)
    forward, backward = recent[1:], recent[:-1]
    for _ in range(order):
        energy = forward.square().sum() + backward.square().sum()
        reflection = -2 * forward.dot(backward) / energy.clamp(min=1e-30)
        predictor = F.pad(predictor, (0, 1))
        predictor = predictor + reflection * predictor.flip(0)
        forward, backward = (forward + reflection * backward)[1:], (backward + reflection * forward)[:-1]
    weights = -predictor[1:].flip(0)
    result = F.pad(recent[len(recent) - order :], (0, samples))
    for place in range(samples if order else 0):
        result[order + place] = weights.dot(result[place : order + place])
    return result[order:].to(wave.dtype)


def _filtered(wave: Tensor, gains: Tensor, which: Tensor, length: int) -> Tensor:
    """Scale the spectrum of each frame of a wave (samples,), and add the frames up again.

    gains: (patterns, bins).
    which: the pattern of each frame.
    """
    hop = length // OVERLAP
    window = torch.hann_window(length, device=wave.device) / math.sqrt(0.375 * OVERLAP)
    result = torch.zeros_like(wave)
    for first in range(0, len(which), BLOCK):
        chosen = which[first : first + BLOCK]
        span = slice(first * hop, (first + len(chosen) - 1) * hop + length)
        spectra = torch.fft.rfft(wave[span].unfold(0, length, hop) * window)  # (frames, bins)
        frames = torch.fft.irfft(spectra * gains.to(wave.device)[chosen], length) * window
        size = (1, span.stop - span.start)
        result[span] += F.fold(frames.T[None], size, (1, length), stride=(1, hop)).flatten()
    return result
