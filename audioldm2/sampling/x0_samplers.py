"""Samplers that integrate the estimate x0 of the clean latent: DPM-Solver++ and UniPC.

`samplers.Sampler.__call__` documents the arguments. As in the sigma samplers of `eps_samplers`, x is
x0 + sigma eps and the network gets x / sqrt(1 + sigma^2); there DPM-Solver++ loses its alpha. The integration
variable is lam = -log(sigma), in steps h with e^-h = sigma_next / sigma.
"""

import math

from torch import Tensor

from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sampling.walk import Denoiser, Noise, OnStep, first_step, fresh_noise, stops


def _lam_steps(sigmas: list[float]) -> list[float]:
    """Returns h for each step but the last: to sigma 0, h is infinite, and nothing uses it."""
    return [math.log(sigmas[i] / sigmas[i + 1]) for i in range(len(sigmas) - 2)]


def dpmpp_2m(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order, multistep (DPM-Solver++ 2M); the usual choice at 15 to 25 steps.

    Lu et al. 2022 (DPM-Solver++), algorithm 2. The first and the last step are first order.
    """
    times, sigmas = schedule.dpm_solver_grid(steps, karras)
    h, first = _lam_steps(sigmas), first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    x0_old = None
    for i in range(first, steps):
        decay = sigmas[i + 1] / sigmas[i]
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), times[i])
        d = x0
        if x0_old is not None and i < steps - 1:
            d = x0 + h[i] / h[i - 1] / 2 * (x0 - x0_old)
        x = decay * x + (1 - decay) * d
        x0_old = x0
        if stops(on_step, i + 1, times[i], x0):
            return x0
    return x


def dpmpp_2m_sde(
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
    """Second order, multistep, stochastic: DPM-Solver++ 2M on the reverse SDE, with fresh noise at each step.

    Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M). The first and the last step are first order. `noise`
    gets the mean of the step as x0 + sigma eps, and is scaled by sigma_next sqrt(1 - (sigma_next / sigma)^2).
    """
    noise = fresh_noise() if noise is None else noise
    times, sigmas = schedule.dpm_solver_grid(steps, karras)
    h, first = _lam_steps(sigmas), first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    x0_old = None
    for i in range(first, steps):
        decay = (sigmas[i + 1] / sigmas[i]) ** 2  # e^-2h
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), times[i])
        d = x0
        if x0_old is not None and i < steps - 1:
            d = x0 + h[i] / h[i - 1] / 2 * (x0 - x0_old)
        x = decay * x + (1 - decay) * d
        x = x + sigmas[i + 1] * math.sqrt(1 - decay) * noise(x, i + 1)
        x0_old = x0
        if stops(on_step, i + 1, times[i], x0):
            return x0
    return x


def dpmpp_3m(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order, multistep over three estimates (DPM-Solver++ 3M); for many steps.

    Lu et al. 2022 (DPM-Solver++), with x0 expanded to its second derivative in lam. The first and the last
    step are first order. The second step is second order, and so is the last but one in walks of fewer than
    15 steps.
    """
    times, sigmas = schedule.dpm_solver_grid(steps, karras)
    h, first = _lam_steps(sigmas), first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    x0_old = slope_old = None
    for i in range(first, steps):
        decay = sigmas[i + 1] / sigmas[i]
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), times[i])
        x = decay * x + (1 - decay) * x0
        if x0_old is not None and i < steps - 1:
            slope = (x0 - x0_old) / h[i - 1]
            if slope_old is None or (i == steps - 2 and steps < 15):
                x = x + (1 - decay) * h[i] / 2 * slope
            else:
                # Trap, kept for parity: this is half the second derivative, which the reference, like the
                # paper's code, uses as if it were the whole. With 2 * curve in the last term the method would
                # be third order.
                curve = (slope - slope_old) / (h[i - 1] + h[i - 2])
                phi = (1 - decay) / h[i]
                x = x + (1 - phi) * h[i] * (slope + h[i - 1] * curve) + (phi - 1 + h[i] / 2) * h[i] * curve
            slope_old = slope
        x0_old = x0
        if stops(on_step, i + 1, times[i], x0):
            return x0
    return x


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    karras: bool = False,
    t_start: float | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Third order (UniPC): dpmpp_2m, where the next network call also corrects each step; for few steps.

    Zhao et al. 2023 (UniPC): order 2, plus 1 from the corrector, on x0, with B(h) = e^-h - 1 (bh2).
    """
    times, sigmas = schedule.dpm_solver_grid(steps, karras)
    h, first = _lam_steps(sigmas), first_step(times, t_start)
    x = x * math.hypot(1, sigmas[first])
    x_old = x0_old = x0_older = None  # before the last step: x, x0, and the x0 before that
    for i in range(first, steps):
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), times[i])
        if x_old is not None and x0_old is not None:
            # The corrector repeats the last step from its start, now that x0 at its end is known.
            d = (x0_old + x0) / 2
            if x0_older is not None:
                r, (b_1, b_2) = -h[i - 2] / h[i - 1], _unipc_b(h[i - 1])
                rho = (b_1 - b_2) / (1 - r)
                d = x0_old + rho / r * (x0_older - x0_old) + (b_1 - rho) * (x0 - x0_old)
            decay = sigmas[i] / sigmas[i - 1]
            x = decay * x_old + (1 - decay) * d
        d = x0
        if x0_old is not None and i < steps - 1:
            d = x0 + h[i] / h[i - 1] / 2 * (x0 - x0_old)
        decay = sigmas[i + 1] / sigmas[i]
        x_old, x = x, decay * x + (1 - decay) * d
        x0_older, x0_old = x0_old, x0
        if stops(on_step, i + 1, times[i], x0):
            return x0
    return x


def _unipc_b(h: float) -> tuple[float, float]:
    """Returns the right-hand sides that fix the corrector's weights (Zhao et al. 2023, th. 3.1)."""
    b = math.expm1(-h)
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    return phi_2 / b, 2 * phi_3 / b
