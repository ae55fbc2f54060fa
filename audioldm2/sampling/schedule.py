"""The variance-preserving noise schedule that the denoiser was trained on, and the times samplers visit."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """The variance-preserving schedule that the network, a predictor of the noise eps, was trained on."""

    kind: str = "scaled_linear"  # what is linear in t: "linear", beta; "scaled_linear", sqrt(beta)
    beta_start: float = 0.0015  # variance of the noise added at time 0
    beta_end: float = 0.0195  # and at the last time
    steps: int = 1000  # training times 0..999
    steps_offset: int = 1  # 0 or 1, added to every sampling time

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "scaled_linear"):
            raise ValueError(f"kind={self.kind!r}: 'linear' and 'scaled_linear' are allowed.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            betas = f"beta_start={self.beta_start}, beta_end={self.beta_end}"
            raise ValueError(f"{betas}: 0 < beta_start <= beta_end < 1 is allowed.")
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: 2 or more are allowed.")
        if self.steps_offset not in (0, 1):
            raise ValueError(f"steps_offset={self.steps_offset}: 0 and 1 are allowed.")

    @cached_property
    def alpha_bar(self) -> Tensor:
        """The product of 1 - beta up to each training time (Ho et al. 2020, eq. 4), float64 (steps,)."""
        power = 0.5 if self.kind == "scaled_linear" else 1.0
        start, end = self.beta_start**power, self.beta_end**power
        beta = torch.linspace(start, end, self.steps, dtype=torch.float64) ** (1 / power)
        return (1 - beta).cumprod(0)

    @cached_property
    def sigmas(self) -> list[float]:
        """Noise over signal at each training time, sqrt((1 - alpha_bar) / alpha_bar)."""
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt().tolist()

    def signal(self, t: int) -> float:
        """Return alpha_bar at t; before 0 that of 0 (`set_alpha_to_one: false`), after 999 that of 999."""
        return self.alpha_bar[min(max(t, 0), self.steps - 1)].item()

    def times(self, steps: int, open_end: bool = False) -> list[int]:
        """Return falling times in "leading" spacing: multiples of a whole stride, from 0, plus the offset.

        With open_end there is one time more, of which the last, 0, is left out: the last step ends there.
        Traps, kept for parity: the stride is rounded down, so that the walk starts low for counts far from
        a divisor of 1000 (600 steps: at t = 600) and for few steps (1 step: at t = 1, or 501 with open_end),
        and x is taken for less noisy than it is; 1000 steps start at t = 1000, never trained, where sigma is
        that of 999.
        """
        most = self.steps - 1 - self.steps_offset
        if open_end and steps > most:  # two sigmas would be the same, and the reference divides by their gap
            raise ValueError(f"steps={steps}: at most {most} are allowed here without karras.")
        stride = self.steps // (steps + open_end)
        return [i * stride + self.steps_offset for i in range(open_end, steps + open_end)][::-1]

    def time_of(self, sigma: float) -> float:
        """Return the fractional time that has this sigma, linear in log(sigma) between training times."""
        i = min(max(bisect_right(self.sigmas, sigma) - 1, 0), self.steps - 2)
        low, high = self.sigmas[i : i + 2]
        return i + min(max(math.log(sigma / low) / math.log(high / low), 0.0), 1.0)

    def sigma_of(self, t: float) -> float:
        """Return the noise over signal at a time, log-linear between training times: undoes `time_of`."""
        i = min(max(int(t), 0), self.steps - 2)
        low, high = self.sigmas[i : i + 2]
        return low * (high / low) ** min(max(t - i, 0.0), 1.0)

    def path(self, steps: int, karras: bool = False) -> tuple[list[float], list[float]]:
        """Return the times and sigmas of the Euler, Heun and LMS samplers; sigmas has one more, the final 0.

        With karras the same range of sigmas is spaced anew, and the times are fractional.
        """
        times = self.times(steps)
        sigmas = [self.sigmas[min(t, self.steps - 1)] for t in times]
        if karras:
            sigmas = karras_sigmas(sigmas[0], sigmas[-1], steps)
            return [self.time_of(sigma) for sigma in sigmas], [*sigmas, 0.0]
        return [float(t) for t in times], [*sigmas, 0.0]

    def open_path(self, steps: int, karras: bool = False) -> tuple[list[float], list[float]]:
        """Return the times and sigmas of the DPM-Solver samplers and UniPC; sigmas has one more, the final 0.

        With karras the range is the whole schedule, and the times are rounded, but not the sigmas: the
        network is told a time that is wrong by up to 0.5. Kept for parity.
        """
        if karras:
            sigmas = karras_sigmas(self.sigmas[-1], self.sigmas[0], steps)
            return [float(round(self.time_of(sigma))) for sigma in sigmas], [*sigmas, 0.0]
        times = self.times(steps, open_end=True)
        return [float(t) for t in times], [*(self.sigmas[t] for t in times), 0.0]


def karras_sigmas(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> list[float]:
    """Return falling sigmas, evenly spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(top + i / max(steps - 1, 1) * (bottom - top)) ** rho for i in range(steps)]
