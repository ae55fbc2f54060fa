"""Samplers that integrate the predicted noise eps: DDIM and PNDM in alpha_bar, Euler, Heun and LMS in sigma.

`samplers.Sampler.__call__` documents the arguments. The letters are the papers':

    x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps

The sigma samplers work on x / sqrt(alpha_bar) = x0 + sigma eps, where the probability-flow equation reads
dx/dsigma = eps (Karras et al. 2022), and give the network x / sqrt(1 + sigma^2), which has unit variance.
"""

import math

from torch import Tensor

from audioldm2.errors import require_number, require_whole
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sampling.walk import Denoiser, Noise, OnStep, first_step, fresh_noise, stops

# In alpha_bar.


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, the published default; eta > 0 adds noise at each step, eta = 1 as much as DDPM.

    Song et al. 2021 (DDIM), eq. 12 and 16. The walk ends at alpha_bar[0], so noise with a standard deviation
    of 0.039 stays in the result. `noise` gets the mean of the step in the unit-variance convention, and is
    scaled by eta sqrt((1 - a_next) / (1 - a) (1 - a / a_next)).
    """
    eta = require_number("eta", eta, 0, 1)
    noise = fresh_noise() if noise is None else noise
    times = schedule.leading_times(steps)
    alpha_bars = [schedule.alpha_bar_at(t) for t in (*times, 0)]
    for i in range(first_step(times, t_start), steps):
        t, a, a_next = float(times[i]), alpha_bars[i], alpha_bars[i + 1]
        eps = denoiser(x, t)
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        std = eta * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - std**2) * eps
        if eta > 0:
            x = x + std * noise(x, i + 1)
        if stops(on_step, i + 1, t, x0):
            return x0
    return x


def pndm(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Fourth order, multistep; each of the first three steps makes four network calls.

    Liu et al. 2022 (PNDM), section 3: the transfer, pseudo Runge-Kutta and linear multistep. The walk ends at
    alpha_bar[0], as in ddim. A walk that starts midway begins with its own three Runge-Kutta steps.
    """

    def transfer(x: Tensor, eps: Tensor, t: int, t_next: int) -> Tensor:
        a, a_next = schedule.alpha_bar_at(t), schedule.alpha_bar_at(t_next)
        return math.sqrt(a_next / a) * x + (math.sqrt(1 - a_next) - math.sqrt(a_next / a * (1 - a))) * eps

    steps = require_whole("num_inference_steps", steps, 4, schedule.steps, "for pndm")
    times, stride = schedule.leading_times(steps), schedule.steps // steps
    history: list[Tensor] = []  # eps at the start of the last four steps, newest first
    for i in range(first_step(times, t_start), steps):
        t, t_mid, t_next = times[i], times[i] - stride + stride // 2, times[i] - stride
        eps = denoiser(x, float(t))
        x0 = (x - math.sqrt(1 - schedule.alpha_bar_at(t)) * eps) / math.sqrt(schedule.alpha_bar_at(t))
        history = [eps, *history[:3]]
        if len(history) < 4:
            # Trap, kept for parity: for an odd stride x is at t_mid + 1, but the network gets t_mid.
            # Times below 0 come up only in the last step of a walk that starts within its last three steps;
            # there alpha_bar is that of time 0, and so is the time the network gets.
            eps_2 = denoiser(transfer(x, eps, t, t - stride // 2), float(max(t_mid, 0)))
            eps_3 = denoiser(transfer(x, eps_2, t, t_mid), float(max(t_mid, 0)))
            eps_4 = denoiser(transfer(x, eps_3, t, t_next), float(max(t_next, 0)))
            eps = (eps + 2 * eps_2 + 2 * eps_3 + eps_4) / 6
        else:
            eps = (55 * history[0] - 59 * history[1] + 37 * history[2] - 9 * history[3]) / 24
        x = transfer(x, eps, t, t_next)
        if stops(on_step, i + 1, float(t), x0):
            return x0
    return x


# In sigma: x is x0 + sigma eps.


def euler(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, the simplest: like ddim, but in sigma and down to sigma 0.

    Karras et al. 2022, algorithm 1 without its second-order correction.
    """
    times, sigmas = schedule.euler_grid(steps, karras)
    first = first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    for i in range(first, steps):
        t, sigma, sigma_next = times[i], sigmas[i], sigmas[i + 1]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        x = x + (sigma_next - sigma) * eps
        if stops(on_step, i + 1, t, x0):
            return x0
    return x


def euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    noise: Noise | None = None,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, stochastic: each step overshoots to a lower sigma and adds fresh noise back.

    This is DDIM with eta 1, in sigma (Song et al. 2021, eq. 16). The form and the name are k-diffusion's, and
    so are the Karras sigmas, which the scheduler of diffusers lacks. `noise` gets the mean of the step as
    x0 + sigma eps, and is scaled by sigma_up.
    """
    noise = fresh_noise() if noise is None else noise
    times, sigmas = schedule.euler_grid(steps, karras)
    first = first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    for i in range(first, steps):
        t, sigma, sigma_next = times[i], sigmas[i], sigmas[i + 1]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        sigma_up = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        sigma_down = sigma_next**2 / sigma  # sigma_up^2 + sigma_down^2 = sigma_next^2
        x = x + (sigma_down - sigma) * eps
        x = x + sigma_up * noise(x, i + 1)
        if stops(on_step, i + 1, t, x0):
            return x0
    return x


def heun(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order: an Euler step, redone with the mean of the slopes at its two ends; two calls per step.

    Karras et al. 2022, algorithm 1. The last step, to sigma 0, is a plain Euler step.
    """
    times, sigmas = schedule.euler_grid(steps, karras)
    first = first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    for i in range(first, steps):
        t, sigma, sigma_next = times[i], sigmas[i], sigmas[i + 1]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * eps
            eps = (eps + denoiser(x_next / math.hypot(1, sigma_next), times[i + 1])) / 2
        x = x + (sigma_next - sigma) * eps
        if stops(on_step, i + 1, t, x0):
            return x0
    return x


def lms(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Fourth order, linear multistep in sigma (Adams-Bashforth on uneven steps).

    Integrates the polynomial through the last four slopes, as k-diffusion's sample_lms does. Trap: with
    hundreds of steps on Karras sigmas, the last step, to sigma 0, extrapolates far beyond its nodes and
    amplifies rounding errors.
    """
    times, sigmas = schedule.euler_grid(steps, karras)
    first = first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    history: list[tuple[float, Tensor]] = []  # sigma and eps of the last four steps, newest first
    for i in range(first, steps):
        t, sigma, sigma_next = times[i], sigmas[i], sigmas[i + 1]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        # The first two of 1000 sigmas are equal: keep one of them. The reference divides by their gap, 0.
        history = [(sigma, eps), *[old for old in history if old[0] != sigma][:3]]
        nodes = [node for node, _ in history]
        for k, (_, eps) in enumerate(history):
            x = x + _lagrange_integral(nodes, k, sigma, sigma_next) * eps
        if stops(on_step, i + 1, t, x0):
            return x0
    return x


def _lagrange_integral(nodes: list[float], k: int, start: float, end: float) -> float:
    """Integrates the polynomial that is 1 at node k and 0 at the others; two Gauss points make it exact."""
    middle, half = (start + end) / 2, (end - start) / 2
    others = [node for node in nodes if node != nodes[k]]
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return half * sum(math.prod((p - node) / (nodes[k] - node) for node in others) for p in points)
