"""A vocoder without a network: waves of fixed frequencies and phases, each as loud as the spectrogram says.

A spectrogram has no phases, so a network that is to make waves has to invent them, and a small one that is
told only which magnitudes are right takes long to begin: of a tone it makes silence, which is nearer to the
tone than the same tone a little off. This wave has all of its phases from the place in the frame, as that of
a convolutional vocoder has, so it can be learnt directly, sample by sample.

It buzzes: of noise too, every line begins anew with each frame in the same phase, and is 16 to 20 dB below
the whole at each multiple of the frame rate, where white noise has 47.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import MelSettings, mel_filters

ROUNDS = 20  # of finding the amplitudes; more change little


def additive_wave(log_mel: Tensor, settings: MelSettings) -> Tensor:
    """Cosines at all multiples of the frame rate, with the amplitudes that come nearest to a spectrogram.

    log_mel: (batch, frames, mels), of `vae_log_mel`. Returns (batch, frames * hop), at settings.sample_rate.
    """
    response, carriers = (each.to(log_mel) for each in _lines(settings))  # (lines, mels), (lines, hop)
    amplitudes = _amplitudes(log_mel.exp(), response)  # (batch, frames, lines)
    amplitudes = F.interpolate(amplitudes.transpose(1, 2), scale_factor=float(settings.hop), mode="linear")
    return (amplitudes * carriers.repeat(1, log_mel.shape[1])).sum(dim=1)


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
