"""Data whose exact denoiser is known: every element of a latent is N(MEAN, std^2)."""

import math

import torch
from torch import Tensor

from audioldm2.sampling.samplers import SAMPLERS, Denoiser
from audioldm2.sampling.schedule import NoiseSchedule

MEAN, STD = 0.7, 0.5
SCHEDULE = NoiseSchedule()
NAMES = list(SAMPLERS)
ON_ALPHA_BAR = ("ddim", "pndm")  # they end at alpha_bar[0], the others at sigma 0
KARRAS = [name for name in NAMES if name not in ON_ALPHA_BAR]
STOCHASTIC = {"ddim": 1.0, "euler_ancestral": 0.0, "dpmpp_2m_sde": 0.0}  # name -> eta
VARIANTS = [*((name, False) for name in NAMES), *((name, True) for name in KARRAS)]  # (name, karras)


def gaussian(schedule: NoiseSchedule = SCHEDULE, std: float = STD) -> Denoiser:
    """Returns the exact denoiser of that data, also at fractional times."""

    def denoiser(x: Tensor, t: float) -> Tensor:
        assert isinstance(t, float)
        i = min(int(t), schedule.steps - 2)
        low, high = schedule.sigmas[i : i + 2]
        sigma = low * (high / low) ** min(t - i, 1)
        a = 1 / (1 + sigma**2)
        return math.sqrt(1 - a) * (x - math.sqrt(a) * MEAN) / (a * std**2 + 1 - a)

    return denoiser


def grid() -> Tensor:
    """Returns a latent of evenly spaced numbers from -2 to 2: (1, 2, 5, 4), float64."""
    return torch.linspace(-2, 2, 40, dtype=torch.float64).view(1, 2, 5, 4)


def unit_noise(batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the same standard normal noise at each call: (batch, 2, 5, 4)."""
    return torch.randn(batch, 2, 5, 4, generator=seeded(3)).to(dtype)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
