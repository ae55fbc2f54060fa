"""The noise schedule of AudioLDM 2, and ten ways to walk it back from noise to a clean latent.

All are called alike: `sampler(denoiser, x, schedule, steps, eta=, karras=, generator=, on_step=) -> Tensor`.

- `denoiser(x, t)` is the network (guidance is a wrapper around it): x (batch, channels, time, mel), of unit
  variance at the last time; t, a float from 0 to 1000, fractional on Karras sigmas. It returns the noise eps.
- `x` is unit-variance noise for every sampler; the result is the clean latent, same dtype, same device.
- `eta` from 0 to 1, and `karras`: for the samplers that take them; elsewhere only the default is allowed.
- `generator` gives the noise of the stochastic samplers: one `torch.Generator` for the batch; or a list of
  one for each row, and then a row's noise does not depend on its batch; or None, a new seed at each call.
  Global random state is never used.
- `on_step(step, t, x0)` is called after each step with its number, 1..steps, the time t just left and the
  estimate x0 of the clean latent made there. If it returns exactly False, the sampler returns that x0.

A wrong argument is a ValueError before the network runs. `SAMPLERS[name].traits` says what a sampler takes.

Letters: x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps. Eight samplers walk on x / sqrt(alpha_bar), that is
x0 + sigma eps: there the probability-flow equation reads dx/dsigma = eps (Karras et al. 2022), and
DPM-Solver++ loses its alpha. All scalars are Python floats: no step waits for a GPU, but to copy drawn noise
there. With a network in half precision, keep x in float32 and cast in the denoiser. Each sampler computes
what the diffusers scheduler of its name does with AudioLDM 2's published configuration, to 1e-5; where that
looks wrong, a comment says so. The file is long because it is all of one kind, to be compared loop by loop.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audioldm2.sampling.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, float], Tensor]
Generators = torch.Generator | Sequence[torch.Generator]
Steps = Iterator[tuple[float, Tensor, Tensor]]  # of each step: the time t left, the x0 seen there, the new x


@dataclass(frozen=True)
class Traits:
    """What a sampler takes and costs: `SAMPLERS[name].traits`."""

    summary: str  # one line, for a list of samplers
    takes: frozenset[str]  # of "eta", "karras" and "generator": it draws noise (ddim: if eta is not 0)
    min_steps: int
    network_calls: Callable[[int], int]  # number of steps -> number of calls of the denoiser


SAMPLERS: dict[str, Callable[..., Tensor]] = {}


def sampler(
    min_steps: int = 1,
    network_calls: Callable[[int], int] = lambda steps: steps,
    open_end: bool = False,  # whether it walks on `open_path`
) -> Callable:
    """Turn a loop that yields its steps into the sampler of that name: shared signature, checks, on_step.

    The parameters of a loop are the options that it takes.
    """

    def register(loop: Callable[..., Steps]) -> Callable[..., Tensor]:
        name = loop.__name__
        takes = inspect.signature(loop).parameters.keys() & {"eta", "karras", "generator"}

        def check(schedule: NoiseSchedule, steps: int, eta: float, karras: bool) -> None:
            if (
                isinstance(steps, bool)
                or not isinstance(steps, int)
                or not min_steps <= steps <= schedule.steps
            ):
                allowed = f"a whole number from {min_steps} to {schedule.steps}"
                raise ValueError(f"steps={steps!r}: {allowed} is allowed for {name}.")
            if open_end and not karras:
                schedule.times(steps, open_end=True)
            if not 0 <= eta <= 1:
                raise ValueError(f"eta={eta!r}: 0 (no noise) to 1 (the noise of DDPM) is allowed.")
            for option, value in (("eta", eta), ("karras", karras)):
                if value and option not in takes:
                    able = ", ".join(other for other, run in SAMPLERS.items() if option in run.traits.takes)
                    raise ValueError(f"{option}={value!r}: {name} takes none; {able} can.")

        def run(
            denoiser: Denoiser,
            x: Tensor,
            schedule: NoiseSchedule,
            steps: int,
            *,
            eta: float = 0.0,
            karras: bool = False,
            generator: Generators | None = None,
            on_step: Callable[[int, float, Tensor], object] | None = None,
        ) -> Tensor:
            check(schedule, steps, eta, karras)
            options = {"eta": eta, "karras": karras, "generator": generator}
            if generator is None:
                options["generator"] = torch.Generator()
                options["generator"].seed()
            elif not isinstance(generator, torch.Generator) and len(generator) != len(x):
                raise ValueError(
                    f"generator: a list of {len(generator)}, for {len(x)} rows; one each is allowed."
                )
            walk = loop(denoiser, x, schedule, steps, **{option: options[option] for option in takes})
            for step in range(1, steps + 1):
                t, x0, x = next(walk)
                if on_step is not None and on_step(step, t, x0) is False:
                    return x0
            return x

        run.__name__, run.__qualname__, run.__doc__ = name, name, loop.__doc__
        run.traits = Traits(
            (loop.__doc__ or "").partition("\n")[0], frozenset(takes), min_steps, network_calls
        )
        run.check = check
        SAMPLERS[name] = run
        return run

    return register


def _noise_like(x: Tensor, generator: Generators) -> Tensor:
    """Draw unit noise on the generator's device, in float32, so that a seed means the same everywhere."""
    if isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, device=generator.device, dtype=torch.float32).to(x)
    return torch.stack([_noise_like(row, g) for row, g in zip(x, generator, strict=True)])


# The two samplers that walk on alpha_bar.


@sampler()
def ddim(
    denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, eta: float, generator: Generators
) -> Steps:
    """First order, the published default; eta above 0 adds noise, at 1 as much as DDPM.

    Song et al. 2021 (DDIM), eq. 12 and 16. The walk ends at alpha_bar[0]: noise of 0.039 stays in the result.
    """
    times = schedule.times(steps)
    signals = [schedule.signal(t) for t in (*times, 0)]
    for i, t in enumerate(times):
        a, a_next = signals[i : i + 2]
        eps = denoiser(x, float(t))
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        std = eta * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - std**2) * eps
        if eta > 0:
            x = x + std * _noise_like(x, generator)
        yield float(t), x0, x


@sampler(min_steps=4, network_calls=lambda steps: steps + 9)
def pndm(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int) -> Steps:
    """Multistep by fourth-order formulas; each of the first three steps makes four network calls.

    Liu et al. 2022 (PNDM), section 3: transfer (here move), pseudo Runge-Kutta, multistep. Ends as ddim.
    """

    def move(x: Tensor, eps: Tensor, t: int, t_next: int) -> Tensor:
        a, a_next = schedule.signal(t), schedule.signal(t_next)
        return math.sqrt(a_next / a) * x + (math.sqrt(1 - a_next) - math.sqrt(a_next / a * (1 - a))) * eps

    stride = schedule.steps // steps
    history: list[Tensor] = []  # eps at the starts of the last four steps, the newest first
    for t in schedule.times(steps):
        t_mid, t_next = t - stride + stride // 2, t - stride
        eps = denoiser(x, float(t))
        x0 = (x - math.sqrt(1 - schedule.signal(t)) * eps) / math.sqrt(schedule.signal(t))
        history = [eps, *history[:3]]
        if len(history) < 4:
            # If the stride is odd, this midpoint is at t_mid + 1, and the network is told t_mid: for parity.
            eps_2 = denoiser(move(x, eps, t, t - stride // 2), float(t_mid))
            eps_3 = denoiser(move(x, eps_2, t, t_mid), float(t_mid))
            eps_4 = denoiser(move(x, eps_3, t, t_next), float(t_next))
            eps = (eps + 2 * eps_2 + 2 * eps_3 + eps_4) / 6
        else:
            eps = (55 * history[0] - 59 * history[1] + 37 * history[2] - 9 * history[3]) / 24
        x = move(x, eps, t, t_next)
        yield float(t), x0, x


# The samplers that walk on sigma: x is x0 + sigma eps, and the network is given x / sqrt(1 + sigma^2).


@sampler()
def euler(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool) -> Steps:
    """First order in sigma, the simplest; as ddim, but to a clean end.

    Karras et al. 2022, algorithm 1 without its second-order correction.
    """
    times, sigmas = schedule.path(steps, karras)
    x = x * math.hypot(1, sigmas[0])
    for i, t in enumerate(times):
        sigma, sigma_next = sigmas[i : i + 2]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        x = x + (sigma_next - sigma) * eps
        yield t, x0, x


@sampler()
def euler_ancestral(
    denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool, generator: Generators
) -> Steps:
    """First order, with fresh noise at every step: overshoots to a lower sigma and adds noise back.

    DDIM with eta 1 in sigma (Song et al. 2021, eq. 16); the form and the name are k-diffusion's, and so are
    the Karras sigmas, which the reference lacks here.
    """
    times, sigmas = schedule.path(steps, karras)
    x = x * math.hypot(1, sigmas[0])
    for i, t in enumerate(times):
        sigma, sigma_next = sigmas[i : i + 2]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        sigma_up = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        sigma_down = sigma_next**2 / sigma  # sigma_up^2 + sigma_down^2 = sigma_next^2
        x = x + (sigma_down - sigma) * eps + sigma_up * _noise_like(x, generator)
        yield t, x0, x


@sampler(network_calls=lambda steps: 2 * steps - 1)
def heun(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool) -> Steps:
    """Second order: an Euler step, then the mean of the slopes at its ends; two network calls a step.

    Karras et al. 2022, algorithm 1. The last step, to sigma 0, is Euler's.
    """
    times, sigmas = schedule.path(steps, karras)
    x = x * math.hypot(1, sigmas[0])
    for i, t in enumerate(times):
        sigma, sigma_next = sigmas[i : i + 2]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * eps
            eps = (eps + denoiser(x_next / math.hypot(1, sigma_next), times[i + 1])) / 2
        x = x + (sigma_next - sigma) * eps
        yield t, x0, x


@sampler()
def lms(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool) -> Steps:
    """Fourth order, linear multistep in sigma (Adams-Bashforth on uneven steps).

    Integrates the polynomial through the last four slopes, as k-diffusion's sample_lms. Beware of karras
    with hundreds of steps: the last, to sigma 0, then reaches far beyond its nodes and amplifies rounding.
    """
    times, sigmas = schedule.path(steps, karras)
    x = x * math.hypot(1, sigmas[0])
    history: list[tuple[float, Tensor]] = []  # sigma and eps of the last four steps, the newest first
    for i, t in enumerate(times):
        sigma, sigma_next = sigmas[i : i + 2]
        eps = denoiser(x / math.hypot(1, sigma), t)
        x0 = x - sigma * eps
        # A sigma that comes twice (the first of 1000) is kept once; the reference divides by the gap, 0.
        history = [(sigma, eps), *[old for old in history if old[0] != sigma][:3]]
        nodes = [node for node, _ in history]
        for k, (_, eps) in enumerate(history):
            x = x + _integral_of_lagrange(nodes, k, sigma, sigma_next) * eps
        yield t, x0, x


def _integral_of_lagrange(nodes: list[float], k: int, start: float, end: float) -> float:
    """Integrate the polynomial that is 1 at node k and 0 at the others; exact by Gauss's two points."""
    middle, half = (start + end) / 2, (end - start) / 2
    others = [node for node in nodes if node != nodes[k]]
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return half * sum(math.prod((p - node) / (nodes[k] - node) for node in others) for p in points)


# The samplers that walk on lam = -log(sigma), in steps h (e^-h = sigma_next / sigma), by estimates of x0.


def _steps_in_lam(sigmas: list[float]) -> list[float]:
    """Return h of each step but the last, which goes to sigma 0, where h is infinite and none needs it."""
    return [math.log(sigmas[i] / sigmas[i + 1]) for i in range(len(sigmas) - 2)]


@sampler(open_end=True)
def dpmpp_2m(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool) -> Steps:
    """Second order, multistep, DPM-Solver++ 2M; the usual choice at 15 to 25 steps.

    Lu et al. 2022 (DPM-Solver++), algorithm 2. The first and the last step are of first order.
    """
    times, sigmas = schedule.open_path(steps, karras)
    h = _steps_in_lam(sigmas)
    x = x * math.hypot(1, sigmas[0])
    x0_old = None
    for i, t in enumerate(times):
        decay = sigmas[i + 1] / sigmas[i]
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), t)
        d = x0
        if 0 < i < steps - 1:
            d = x0 + h[i] / h[i - 1] / 2 * (x0 - x0_old)
        x = decay * x + (1 - decay) * d
        x0_old = x0
        yield t, x0, x


@sampler(open_end=True)
def dpmpp_2m_sde(
    denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool, generator: Generators
) -> Steps:
    """Second order, multistep, with fresh noise at every step: DPM-Solver++ 2M on the reverse SDE.

    Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M). The first and the last step are of first order.
    """
    times, sigmas = schedule.open_path(steps, karras)
    h = _steps_in_lam(sigmas)
    x = x * math.hypot(1, sigmas[0])
    x0_old = None
    for i, t in enumerate(times):
        decay = (sigmas[i + 1] / sigmas[i]) ** 2  # e^-2h
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), t)
        d = x0
        if 0 < i < steps - 1:
            d = x0 + h[i] / h[i - 1] / 2 * (x0 - x0_old)
        x = decay * x + (1 - decay) * d + sigmas[i + 1] * math.sqrt(1 - decay) * _noise_like(x, generator)
        x0_old = x0
        yield t, x0, x


@sampler(open_end=True)
def dpmpp_3m(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool) -> Steps:
    """Second order, multistep over three estimates, DPM-Solver++ 3M; for many steps.

    Lu et al. 2022 (DPM-Solver++), with x0 expanded to its second derivative in lam. The first and the last
    step are of first order, the second is of second order, and so is, below 15 steps, the last but one.
    """
    times, sigmas = schedule.open_path(steps, karras)
    h = _steps_in_lam(sigmas)
    x = x * math.hypot(1, sigmas[0])
    x0_old = slope_old = None
    for i, t in enumerate(times):
        decay = sigmas[i + 1] / sigmas[i]
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), t)
        x = decay * x + (1 - decay) * x0
        if 0 < i < steps - 1:
            slope = (x0 - x0_old) / h[i - 1]
            if i == 1 or (i == steps - 2 and steps < 15):
                x = x + (1 - decay) * h[i] / 2 * slope
            else:
                # This is half the second derivative. The reference, as its authors, takes it for the whole:
                # with 2 * curve in the last term the method would be of order 3. Kept for parity.
                curve = (slope - slope_old) / (h[i - 1] + h[i - 2])
                phi = (1 - decay) / h[i]
                x = x + (1 - phi) * h[i] * (slope + h[i - 1] * curve) + (phi - 1 + h[i] / 2) * h[i] * curve
            slope_old = slope
        x0_old = x0
        yield t, x0, x


@sampler(open_end=True)
def unipc(denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, steps: int, karras: bool) -> Steps:
    """Third order, UniPC: dpmpp_2m, each step corrected by the next one's network call; for few steps.

    Zhao et al. 2023 (UniPC), of order 2 plus the corrector's 1, for x0, with B(h) = e^-h - 1 (bh2).
    """
    times, sigmas = schedule.open_path(steps, karras)
    h = _steps_in_lam(sigmas)
    x = x * math.hypot(1, sigmas[0])
    x_old = x0_old = x0_older = None
    for i, t in enumerate(times):
        x0 = x - sigmas[i] * denoiser(x / math.hypot(1, sigmas[i]), t)
        if i > 0:  # the corrector: the last step once more, from its start, now that x0 at its end is known
            d = (x0_old + x0) / 2
            if i > 1:
                r, (b_1, b_2) = -h[i - 2] / h[i - 1], _unipc_b(h[i - 1])
                rho = (b_1 - b_2) / (1 - r)
                d = x0_old + rho / r * (x0_older - x0_old) + (b_1 - rho) * (x0 - x0_old)
            decay = sigmas[i] / sigmas[i - 1]
            x = decay * x_old + (1 - decay) * d
        d = x0
        if 0 < i < steps - 1:
            d = x0 + h[i] / h[i - 1] / 2 * (x0 - x0_old)
        decay = sigmas[i + 1] / sigmas[i]
        x_old, x = x, decay * x + (1 - decay) * d
        x0_older, x0_old = x0_old, x0
        yield t, x0, x


def _unipc_b(h: float) -> tuple[float, float]:
    """Return the right side of the equations for the corrector's weights (Zhao et al. 2023, th. 3.1)."""
    b = math.expm1(-h)
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    return phi_2 / b, 2 * phi_3 / b
