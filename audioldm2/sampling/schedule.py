"""The noise schedule the denoiser was trained on, and the times and noise levels that samplers visit."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError, require_choice, require_whole

Grid = tuple[list[float], list[float]]  # the time of each step; its sigma, and one more: the final sigma


@dataclass(frozen=True)
class NoiseSchedule:
    """The variance-preserving schedule of a network that predicts the noise eps.

    A noisy latent is x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps; sigma is its ratio of noise to signal,
    sqrt((1 - alpha_bar) / alpha_bar). The defaults are the published model's.

    Raises:
        ArgumentError: a field is out of range.
    """

    kind: str = "scaled_linear"  # which quantity is linear in t: "linear": beta; "scaled_linear": sqrt(beta)
    beta_start: float = 0.0015  # variance of the noise added at the first training time, 0
    beta_end: float = 0.0195  # and at the last
    steps: int = 1000  # number of training times: 0..999
    steps_offset: int = 1  # 0 or 1, added to every sampling time

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, ("linear", "scaled_linear"))
        if not 0 < self.beta_start <= self.beta_end < 1:
            given = f"is {self.beta_start} and beta_end is {self.beta_end}"
            allowed = "satisfy 0 < beta_start <= beta_end < 1"
            raise ArgumentError("beta_start", self.beta_start, allowed, given=given)
        require_whole("steps", self.steps, 2)
        require_whole("steps_offset", self.steps_offset, 0, 1)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """The product of 1 - beta up to each training time (Ho et al. 2020, eq. 4): (steps,), float64."""
        power = 0.5 if self.kind == "scaled_linear" else 1.0
        start, end = self.beta_start**power, self.beta_end**power
        beta = torch.linspace(start, end, self.steps, dtype=torch.float64, device="cpu") ** (1 / power)
        return (1 - beta).cumprod(0)

    @cached_property
    def sigmas(self) -> list[float]:
        """Noise over signal at each training time, sqrt((1 - alpha_bar) / alpha_bar)."""
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt().tolist()

    def alpha_bar_at(self, t: int) -> float:
        """Returns alpha_bar at a time, clamped to the training times.

        Before time 0 it is that of time 0 (`set_alpha_to_one: false`), after 999 that of 999.
        """
        return self._alpha_bars[min(max(t, 0), self.steps - 1)]

    @cached_property
    def _alpha_bars(self) -> list[float]:
        return self.alpha_bar.tolist()

    def time_of(self, sigma: float) -> float:
        """Returns the fractional time with this sigma, linear in log(sigma) between training times."""
        i = min(max(bisect_right(self.sigmas, sigma) - 1, 0), self.steps - 2)
        low, high = self.sigmas[i : i + 2]
        return i + min(max(math.log(sigma / low) / math.log(high / low), 0.0), 1.0)

    def sigma_of(self, t: float) -> float:
        """Returns sigma at a fractional time: the inverse of `time_of`."""
        i = min(max(int(t), 0), self.steps - 2)
        low, high = self.sigmas[i : i + 2]
        return low * (high / low) ** min(max(t - i, 0.0), 1.0)

    def leading_times(self, steps: int, skip_zero: bool = False) -> list[int]:
        """Returns falling times in "leading" spacing: multiples of an integer stride, plus the offset.

        Traps, kept for parity with diffusers. The stride is rounded down, so the walk starts too low for
        counts far from a divisor of 1000 (600 steps start at t = 600) and for very few steps (1 step starts
        at t = 1, or at 501 with `skip_zero`); x is then taken to be less noisy than it is. A walk of 1000
        steps starts at t = 1000, a time the network never saw in training, with the sigma of 999.

        Args:
            steps: number of times to return, at most the number of training times.
            skip_zero: lay out one time more and leave out the last, time 0, as DPM-Solver does: its last step
                goes from the time before straight to sigma 0.

        Raises:
            ArgumentError: `num_inference_steps` is out of range.
        """
        steps = require_whole("num_inference_steps", steps, 1, self.steps)
        most = self.steps - 1 - self.steps_offset
        if skip_zero and steps > most:  # two sigmas would be equal, and the reference divides by their gap
            raise ArgumentError(
                "num_inference_steps", steps, f"be a whole number from 1 to {most} without karras"
            )
        stride = self.steps // (steps + skip_zero)
        return [i * stride + self.steps_offset for i in range(skip_zero, steps + skip_zero)][::-1]

    def ddim_grid(self, steps: int) -> Grid:
        """Returns the times and sigmas of DDIM and PNDM, which end with the noise of time 0 (0.039)."""
        times = self.leading_times(steps)
        return [float(t) for t in times], [self.sigmas[min(t, self.steps - 1)] for t in (*times, 0)]

    def euler_grid(self, steps: int, karras: bool = False) -> Grid:
        """Returns the times and sigmas of the Euler, Heun and LMS samplers, which end at sigma 0.

        With `karras` the same range of sigmas is spaced by `karras_sigmas`, and the times are fractional.
        """
        times = self.leading_times(steps)
        sigmas = [self.sigmas[min(t, self.steps - 1)] for t in times]
        if karras:
            sigmas = karras_sigmas(sigmas[0], sigmas[-1], steps)
            return [self.time_of(sigma) for sigma in sigmas], [*sigmas, 0.0]
        return [float(t) for t in times], [*sigmas, 0.0]

    def dpm_solver_grid(self, steps: int, karras: bool = False) -> Grid:
        """Returns the times and sigmas of the DPM-Solver++ and UniPC samplers, which end at sigma 0.

        Trap, kept for parity with diffusers: with `karras` the sigmas span the whole schedule and stay exact,
        but the times are rounded, so the network gets a time that is off by up to 0.5.
        """
        if karras:
            steps = require_whole("num_inference_steps", steps, 1, self.steps)
            sigmas = karras_sigmas(self.sigmas[-1], self.sigmas[0], steps)
            return [float(round(self.time_of(sigma))) for sigma in sigmas], [*sigmas, 0.0]
        times = self.leading_times(steps, skip_zero=True)
        return [float(t) for t in times], [*(self.sigmas[t] for t in times), 0.0]


def karras_sigmas(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> list[float]:
    """Returns falling sigmas, evenly spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(top + i / max(steps - 1, 1) * (bottom - top)) ** rho for i in range(steps)]
