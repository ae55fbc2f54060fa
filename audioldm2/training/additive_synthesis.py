"""A vocoder without a network: additive synthesis from a log-mel spectrogram.

A spectrogram holds no phases, so a neural vocoder has to invent them, and a small one that is trained on
magnitudes alone starts slowly: for a tone it outputs silence, which is closer to the target than the same
tone at a slightly wrong frequency. This synthesizer sums sinusoids ("partials") at fixed frequencies with
fixed phases and takes only their amplitudes from the spectrogram. The phases depend only on the position
within the frame, as those of a convolutional vocoder do, so a network can learn the waveform sample by
sample.

Fixed phases alone would make noise buzz: every partial restarts with each frame in the same phase, so each
multiple of the frame rate is a line only 16 to 20 dB below the total power, where white noise has 47 dB. The
randomness of noise shows in its spectrogram as flicker, so a partial's sign is flipped wherever its band is
slightly fainter than its neighbourhood in time and frequency, with a gain that makes the mean over white
noise zero. A tone stands out from its neighbourhood and is never flipped.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from audioldm2.audio import MelSettings, mel_filters, vae_log_mel

NMF_ITERATIONS = 20  # more change the amplitudes little
NOISE_SECONDS = 60  # white noise from which the depth of the sign flips is calibrated

# Contrast: how much louder a band is than its neighbourhood, in nepers. Its standard deviation over white
# noise is 0.2.
NEIGHBOUR_FRAMES = 3  # distance to the neighbours in time
NEIGHBOUR_BANDS = 3 / 64  # distance to the neighbours in frequency, as a fraction of all bands
FREQUENCY_WEIGHT = 0.5  # of the contrast in frequency relative to that in time
FLIP = (0.04, 0.12)  # fainter by less: not flipped; fainter by more: flipped
STANDS_OUT = (0.6, 0.9)  # contrast below: noise that flickers; above: not noise
FLICKER_GAIN = 0.65  # of unflipped partials in noise, to make up for the power that flipped ones add


def partial_count(settings: MelSettings) -> int:
    """Returns the number of partials that the front end can resolve."""
    return len(_partials(settings)[0])


def synthesize(log_mel: Tensor, settings: MelSettings) -> Tensor:
    """Sums sinusoids at all multiples of the frame rate so that their spectrogram matches a log-mel.

    Args:
        log_mel: (batch, frames, mels), as `vae_log_mel` returns it.
        settings: the mel front end; its sample rate is that of the result.

    Returns:
        Waveforms (batch, frames * hop).
    """
    return oscillator_bank(partial_amplitudes(log_mel, settings), settings)


def partial_amplitudes(log_mel: Tensor, settings: MelSettings) -> Tensor:
    """Estimates the amplitude of every partial in every frame; a negative one is a flipped sign.

    Args:
        log_mel: (batch, frames, mels).
        settings: the mel front end.

    Returns:
        Amplitudes (batch, frames, partials).
    """
    response, _ = (each.to(log_mel) for each in _partials(settings))
    depth = _flip_depth(settings).to(log_mel)
    contrast = _contrast(log_mel, response)
    return _fit_amplitudes(log_mel.exp(), response) * (_kept(contrast) - depth * _flipped(contrast))


def oscillator_bank(amplitudes: Tensor, settings: MelSettings) -> Tensor:
    """Synthesizes partials whose amplitudes are interpolated linearly between the centres of frames.

    Args:
        amplitudes: (batch, frames, partials).
        settings: the mel front end.

    Returns:
        Waveforms (batch, frames * hop).
    """
    _, carriers = (each.to(amplitudes) for each in _partials(settings))  # (partials, hop)
    time = (
        torch.arange(settings.hop).to(amplitudes) + 0.5
    ) / settings.hop - 0.5  # in frames, from the centre
    before, after = (-time).clamp(min=0), time.clamp(min=0)
    weights = torch.stack([before, 1 - before - after, after])  # of the previous, this and the next frame
    x = torch.cat([amplitudes[:, :1], amplitudes, amplitudes[:, -1:]], dim=1)
    x = torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=2)  # (batch, frames, 3 * partials)
    return (x @ (weights[:, None] * carriers).flatten(0, 1)).flatten(1)


def _fit_amplitudes(mel: Tensor, response: Tensor) -> Tensor:
    """Fits non-negative amplitudes (..., partials) whose responses sum to magnitudes (..., mels).

    Source: Lee & Seung 2000, "Algorithms for non-negative matrix factorization", the update for the
    divergence.
    """
    amplitudes = mel.mean(dim=-1, keepdim=True).expand(*mel.shape[:-1], len(response))
    for _ in range(NMF_ITERATIONS):
        ratio = mel / (amplitudes @ response).clamp(min=1e-12)
        amplitudes = amplitudes * (ratio @ response.T) / response.sum(dim=1)
    return amplitudes


@lru_cache
def _partials(settings: MelSettings) -> tuple[Tensor, Tensor]:
    """Returns the mel response to each partial, (partials, mels), and one frame of its wave, (partials, hop).

    A partial stands for every tone that is closer to it than to its neighbours, so its response is spread
    over a triangle that reaches from neighbour to neighbour.
    """
    spacing = settings.sample_rate / settings.hop  # Hz, the frame rate
    partials = torch.arange(1, math.ceil(settings.sample_rate / 2 / spacing), dtype=torch.float64)
    bins = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1, dtype=torch.float64)
    spread = (1 - (bins / spacing - partials[:, None]).abs()).clamp(min=0)  # (partials, bins)
    spread = spread / spread.sum(dim=1, keepdim=True)
    response = (
        settings.n_fft / 2 * spread @ mel_filters(settings)
    )  # the bins of a Hann window sum to n_fft / 2
    covered = response.sum(dim=1) > 1e-3 * response.sum(dim=1).max()  # a front end may omit the highest ones
    partials, response = partials[covered], response[covered]
    # Schroeder phases keep the crest factor low (Schroeder 1970).
    phases = -math.pi * partials * (partials - 1) / len(partials)
    time = torch.arange(settings.hop, dtype=torch.float64) / settings.hop  # in frames
    return response, (2 * math.pi * partials[:, None] * time + phases[:, None]).cos()


def _contrast(log_mel: Tensor, response: Tensor) -> Tensor:
    """Measures how much louder each partial's band is than its neighbours in time and in frequency.

    Returns:
        Contrast in nepers, (batch, frames, partials).
    """
    frames, mels = log_mel.shape[1:]
    time = torch.arange(frames)
    before = (time - NEIGHBOUR_FRAMES).clamp(min=0)
    after = (time + NEIGHBOUR_FRAMES).clamp(max=frames - 1)
    in_time = (log_mel - (log_mel[:, before] + log_mel[:, after]) / 2) @ (response / response.sum(1, True)).T

    bands = torch.arange(mels).to(response)
    centre = response @ bands / response.sum(dim=1)  # of each partial, in bands
    distance = max(1.0, NEIGHBOUR_BANDS * mels)  # further than a tone itself spreads
    below, above = centre - distance, centre + distance
    below, above = torch.where(below < 0, above, below), torch.where(above > mels - 1, below, above)
    at, lower, upper = ((1 - (bands[:, None] - each).abs()).clamp(min=0) for each in (centre, below, above))
    in_frequency = log_mel @ (at - (lower + upper) / 2)
    return in_time + FREQUENCY_WEIGHT * in_frequency


@lru_cache
def _flip_depth(settings: MelSettings) -> Tensor:
    """Returns the gain of each flipped partial, (partials,), that makes its mean over white noise zero."""
    response, _ = _partials(settings)
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, NOISE_SECONDS * settings.sample_rate, generator=generator)
    log_mel = vae_log_mel(noise, settings).double()
    amplitudes, contrast = _fit_amplitudes(log_mel.exp(), response), _contrast(log_mel, response)
    kept, flipped = (
        (amplitudes * gain)[0, 5:-5].mean(dim=0) for gain in (_kept(contrast), _flipped(contrast))
    )
    return kept / flipped


def _kept(contrast: Tensor) -> Tensor:
    """The gain of an unflipped partial: 1 where it stands out, less where it flickers."""
    return FLICKER_GAIN + (1 - FLICKER_GAIN) * _ramp(contrast.abs(), *STANDS_OUT)


def _flipped(contrast: Tensor) -> Tensor:
    """How far a partial is flipped, from 0 to 1."""
    return _ramp(-contrast, *FLIP) - _ramp(-contrast, *STANDS_OUT)


def _ramp(x: Tensor, start: float, end: float) -> Tensor:
    return ((x - start) / (end - start)).clamp(0, 1)
