"""Measures of a join between two sounds: would it be heard, beside what true sounds do by themselves?"""

from functools import cache

import numpy as np
import torch

from audioldm2.audio import SAMPLE_RATE as RATE
from audioldm2.audio import VAE_MEL, vae_log_mel
from scripts.demo_world.families import FAMILIES

REACH = RATE // 50  # 20 ms on either side of a place
AROUND = RATE // 10  # 100 ms, to which a jump is compared
FLOOR = -9.0  # of log-mels, natural: quieter is not heard beside sounds at a peak of 0.5


def wave_jump(wave: np.ndarray, place: int) -> float:
    """The largest second difference around a place, over its RMS in the 100 ms on either side."""
    bends = np.abs(np.diff(wave.astype(np.float64), 2))
    near = bends[max(place - REACH, 0) : place + REACH]
    around = bends[max(place - AROUND, 0) : place + AROUND]
    return float(near.max() / np.sqrt(np.square(around).mean() + 1e-16))


def spectral_flux(wave: np.ndarray, place: int) -> float:
    """The largest mean change of the mel bands within 20 ms around a place, in nepers."""
    around = torch.from_numpy(wave[max(place - AROUND, 0) : place + AROUND]).float()
    mel = vae_log_mel(around[None])[0].clamp(min=FLOOR)  # (frames, mels)
    change = (mel[2:] - mel[:-2]).abs().mean(dim=1)  # entry i is around frame i + 1
    middle = min(place, AROUND) // VAE_MEL.hop - 1
    return change[max(middle - 2, 0) : middle + 3].max().item()


@cache
def in_true_sounds(sounds: int = 4) -> tuple[float, float]:
    """95th percentiles of both measures over the demo world, at places every 100 ms that are not silent."""
    jumps, fluxes = [], []
    for draw in FAMILIES.values():
        for seed in range(100, 100 + sounds):
            wave = draw(np.random.default_rng(seed), 2.56, {})
            for place in range(2 * AROUND, len(wave) - 2 * AROUND, AROUND):
                around = wave[place - AROUND : place + AROUND]
                if np.sqrt(np.square(around).mean()) > 0.05 * np.abs(wave).max():
                    jumps.append(wave_jump(wave, place))
                    fluxes.append(spectral_flux(wave, place))
    return float(np.percentile(jumps, 95)), float(np.percentile(fluxes, 95))
