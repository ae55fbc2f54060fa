"""A vocoder without a network: waves of fixed frequencies and phases, each as loud as the spectrogram says.

A spectrogram has no phases, so a network that is to make waves has to invent them, and a small one that is
told only which magnitudes are right takes long to begin: of a tone it makes silence, which is nearer to the
tone than the same tone a little off. This wave has all of its phases from the place in the frame, as that of
a convolutional vocoder has, so it can be learnt directly, sample by sample.

Left so, it would buzz: of noise too, every line begins anew with each frame in the same phase, and is 16 to
20 dB below the whole at each multiple of the frame rate, where white noise has 47. What is random in a noise
is in its spectrogram, which flickers; so a line is turned over when its band is a little fainter than what is
around it in time and frequency, so far that nothing of it is left in the mean. A tone stands out, and stays.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from audioldm2.audio import MelSettings, mel_filters, vae_log_mel

ROUNDS = 20  # of finding the amplitudes; more change little
NOISE_SECONDS = 60  # of white noise, from which it is known how far to turn lines over

# Contrast, nepers: how much louder than around. Of white noise it has a standard deviation of 0.2.
FRAMES_APART, BANDS_APART = 3, 3 / 64  # how far away "around" is; bands as a part of all
BANDS_COUNT = 0.5  # as much as time
TURN = (0.04, 0.12)  # fainter by less: as it is; by more: turned over
STANDS_OUT = (0.6, 0.9)  # fainter or louder by less: flickers; by more: no noise
FLICKERING = 0.65  # how loud lines that are not turned over are, since those that are come to be louder


def line_count(settings: MelSettings) -> int:
    return len(_lines(settings)[0])


def additive_wave(log_mel: Tensor, settings: MelSettings) -> Tensor:
    """Cosines at all multiples of the frame rate, with the amplitudes that come nearest to a spectrogram.

    log_mel: (batch, frames, mels), of `vae_log_mel`. Returns (batch, frames * hop), at settings.sample_rate.
    """
    return wave_of(line_amplitudes(log_mel, settings), settings)


def line_amplitudes(log_mel: Tensor, settings: MelSettings) -> Tensor:
    """The amplitude of each line in each frame of log-mels (batch, frames, mels), below 0 where turned over.

    Returns (batch, frames, lines).
    """
    response, _ = (each.to(log_mel) for each in _lines(settings))
    depth = _depth(settings).to(log_mel)
    contrast = _contrast(log_mel, response)
    return _amplitudes(log_mel.exp(), response) * (_upright(contrast) - depth * _turned(contrast))


def wave_of(amplitudes: Tensor, settings: MelSettings) -> Tensor:
    """Lines with amplitudes (batch, frames, lines), linear from middle to middle of frames.

    Returns (batch, frames * hop).
    """
    _, carriers = (each.to(amplitudes) for each in _lines(settings))  # (lines, hop)
    time = (torch.arange(settings.hop).to(amplitudes) + 0.5) / settings.hop - 0.5  # frames from the middle
    before, after = (-time).clamp(min=0), time.clamp(min=0)
    shares = torch.stack([before, 1 - before - after, after])  # of the frame before, this one, the next
    x = torch.cat([amplitudes[:, :1], amplitudes, amplitudes[:, -1:]], dim=1)
    x = torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=2)  # (batch, frames, 3 * lines)
    return (x @ (shares[:, None] * carriers).flatten(0, 1)).flatten(1)


def _amplitudes(mel: Tensor, response: Tensor) -> Tensor:
    """Amplitudes (..., lines), none negative, whose lines add up to magnitudes (..., mels).

    Source: Lee & Seung 2000, "Algorithms for non-negative matrix factorization", the rule for the divergence.
    """
    found = mel.mean(dim=-1, keepdim=True).expand(*mel.shape[:-1], len(response))
    for _ in range(ROUNDS):
        ratio = mel / (found @ response).clamp(min=1e-12)
        found = found * (ratio @ response.T) / response.sum(dim=1)
    return found


@lru_cache
def _lines(settings: MelSettings) -> tuple[Tensor, Tensor]:
    """What bands see of a line of amplitude 1, (lines, mels), and a frame of each line's wave, (lines, hop).

    A line stands for all tones that are nearer to it than to its neighbours, and some beyond: what bands see
    is spread over a triangle from neighbour to neighbour.
    """
    spacing = settings.sample_rate / settings.hop  # Hz, the frame rate
    lines = torch.arange(1, math.ceil(settings.sample_rate / 2 / spacing), dtype=torch.float64)
    bins = torch.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1, dtype=torch.float64)
    spread = (1 - (bins / spacing - lines[:, None]).abs()).clamp(min=0)  # (lines, bins)
    spread = spread / spread.sum(dim=1, keepdim=True)
    response = settings.n_fft / 2 * spread @ mel_filters(settings)  # a Hann window's bins add up to n_fft / 2
    seen = response.sum(dim=1) > 1e-3 * response.sum(dim=1).max()  # a front end may leave out high ones
    lines, response = lines[seen], response[seen]
    phases = -math.pi * lines * (lines - 1) / len(lines)  # Schroeder's: no sharp peaks (Schroeder 1970)
    time = torch.arange(settings.hop, dtype=torch.float64) / settings.hop  # of a frame
    return response, (2 * math.pi * lines[:, None] * time + phases[:, None]).cos()


def _contrast(log_mel: Tensor, response: Tensor) -> Tensor:
    """How much louder each line's band is than some frames before and after, and some bands below and above.

    Returns (batch, frames, lines).
    """
    frames, mels = log_mel.shape[1:]
    time = torch.arange(frames)
    before, after = (time - FRAMES_APART).clamp(min=0), (time + FRAMES_APART).clamp(max=frames - 1)
    in_time = (log_mel - (log_mel[:, before] + log_mel[:, after]) / 2) @ (response / response.sum(1, True)).T

    bands = torch.arange(mels).to(response)
    place = response @ bands / response.sum(dim=1)  # of each line among the bands
    apart = max(1.0, BANDS_APART * mels)  # a tone's own spread reaches less far
    below, above = place - apart, place + apart
    below, above = torch.where(below < 0, above, below), torch.where(above > mels - 1, below, above)
    at, lower, upper = ((1 - (bands[:, None] - each).abs()).clamp(min=0) for each in (place, below, above))
    in_frequency = log_mel @ (at - (lower + upper) / 2)
    return in_time + BANDS_COUNT * in_frequency


@lru_cache
def _depth(settings: MelSettings) -> Tensor:
    """How deep each line is turned over, (lines,), so that of white noise the mean is 0."""
    response, _ = _lines(settings)
    drawn = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, NOISE_SECONDS * settings.sample_rate, generator=drawn)
    log_mel = vae_log_mel(noise, settings).double()
    amplitudes, contrast = _amplitudes(log_mel.exp(), response), _contrast(log_mel, response)
    upright, turned = (
        (amplitudes * part)[0, 5:-5].mean(dim=0) for part in (_upright(contrast), _turned(contrast))
    )
    return upright / turned


def _upright(contrast: Tensor) -> Tensor:
    """What a line keeps: all of it where it stands out, less in what flickers."""
    return FLICKERING + (1 - FLICKERING) * _ramp(contrast.abs(), *STANDS_OUT)


def _turned(contrast: Tensor) -> Tensor:
    """Where a line is turned over, from 0 to 1."""
    return _ramp(-contrast, *TURN) - _ramp(-contrast, *STANDS_OUT)


def _ramp(x: Tensor, start: float, end: float) -> Tensor:
    return ((x - start) / (end - start)).clamp(0, 1)
