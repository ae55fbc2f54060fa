"""Ten ways to walk from noise to a clean latent, each a plain function, and the registry `SAMPLERS`.

Each function computes what the diffusers scheduler of the same name computes with AudioLDM 2's published
configuration, to 1e-5; where that looks wrong, a comment says so. The functions are in `eps_samplers` and
`x0_samplers`; `Sampler.__call__` documents their arguments. A function takes only the options it supports:

    z = dpmpp_2m_sde(denoiser, x, schedule, 25, noise=generator_noise(torch.Generator().manual_seed(0)))

while every entry of `SAMPLERS` takes all of them, and `SAMPLERS[name].takes` says which have an effect.

To start midway from a latent z, pick a step with `times` and add the noise that x has there:

    k = 10  # skip the first ten of 25 steps
    sigma = sigmas("euler", schedule, 25)[k]
    x = (z + sigma * torch.randn_like(z)) / math.hypot(1, sigma)
    z = euler(denoiser, x, schedule, 25, t_start=times("euler", schedule, 25)[k])

All scalars are Python floats, so no step waits for a GPU, except to copy drawn noise to it. With a network in
half precision, keep x in float32 and cast inside the denoiser.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from audioldm2.errors import ArgumentError, require_bool, require_choice, require_number, require_whole
from audioldm2.sampling.eps_samplers import ddim, euler, euler_ancestral, heun, lms, pndm
from audioldm2.sampling.schedule import Grid, NoiseSchedule
from audioldm2.sampling.walk import Denoiser, GeneratorNoise, Generators, Noise, OnStep, generator_noise
from audioldm2.sampling.x0_samplers import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc

__all__ = [
    "SAMPLERS",
    "Denoiser",
    "Generators",
    "Noise",
    "OnStep",
    "Sampler",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "euler",
    "euler_ancestral",
    "generator_noise",
    "heun",
    "lms",
    "pndm",
    "sigmas",
    "times",
    "unipc",
]


@dataclass(frozen=True)
class Sampler:
    """A sampler, what it takes and what it costs."""

    name: str
    function: Callable[..., Tensor]
    summary: str  # one line, for a list of samplers
    takes: frozenset[str]  # of "eta", "karras" and "noise" (ddim draws noise only if eta is above 0)
    min_steps: int
    network_calls: Callable[[int], int]  # number of steps in a whole walk -> number of network calls
    grid: Callable[[NoiseSchedule, int, bool], Grid]  # (schedule, steps, karras) -> times and sigmas

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        schedule: NoiseSchedule,
        steps: int,
        *,
        eta: float = 0.0,
        karras: bool = False,
        noise: Noise | None = None,
        t_start: float | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Walks from noise to a clean latent.

        Args:
            denoiser: `denoiser(x, t)` returns the predicted noise eps. x is (batch, channels, time, mel) in
                the unit-variance convention, sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps; t is a float from
                0 to 1000, fractional with Karras sigmas. Guidance and repainting wrap a denoiser in another.
            x: where to start, as the network sees it: standard normal noise, or, with `t_start`, a latent x0
                with the noise of the first remaining step, sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps with
                alpha_bar = 1 / (1 + sigma^2), for the sigma that `sigmas` returns. It is not modified.
            schedule: the schedule the network was trained on.
            steps: number of steps in the whole walk, even if `t_start` skips some.
            eta: noise added by ddim, from 0 (none) to 1 (as much as DDPM).
            karras: space the sigmas as in Karras et al. 2022, eq. 5.
            noise: `noise(x, step)` returns standard normal noise with the shape, dtype and device of x; step
                counts from 1 in the whole walk. Its x is the mean of the step, to which the sampler adds the
                noise, scaled. None draws from a new, randomly seeded generator; the global random state is
                never used. Samplers without "noise" in `takes` ignore it.
            t_start: skips the steps whose time is above it; multistep samplers then start with no history.
                At or above the first time it skips nothing. Steps that share a rounded time (many steps with
                `karras`) are skipped together.
            on_step: `on_step(step, t, x0)` runs after each step with the step's number in the whole walk, the
                time at which the step started, and its estimate x0 of the clean latent. If it returns exactly
                False, the walk stops and returns that x0.

        Returns:
            The clean latent, with the shape, dtype and device of x.

        Raises:
            ArgumentError: an argument is out of range, or the sampler does not take it; raised before the
                network runs.
        """
        self.check(schedule, steps, eta, karras)
        if isinstance(noise, GeneratorNoise):
            noise.require_one_per_row(x)  # here, and not only at the first draw, when the network has run
        options = {"eta": eta, "karras": karras, "noise": noise}
        options = {option: value for option, value in options.items() if option in self.takes}
        return self.function(denoiser, x, schedule, steps, t_start=t_start, on_step=on_step, **options)

    def check(self, schedule: NoiseSchedule, steps: int, eta: float = 0.0, karras: bool = False) -> None:
        """Checks the options of a walk before any network runs.

        Raises:
            ArgumentError: `num_inference_steps`, `eta` or `karras` is out of range, or this sampler does not
                take it; the message names the samplers that do.
        """
        where = f"for {self.name}" if self.min_steps > 1 else ""
        require_whole("num_inference_steps", steps, self.min_steps, schedule.steps, where)
        require_number("eta", eta, 0, 1)
        require_bool("karras", karras)
        for option, value, off in (("eta", eta, "0"), ("karras", karras, "False")):
            if value and option not in self.takes:
                able = ", ".join(other.name for other in SAMPLERS.values() if option in other.takes)
                allowed = f"be {off} for {self.name} (samplers that take {option}: {able})"
                raise ArgumentError(option, value, allowed)
        self.grid(schedule, steps, karras)  # raises if the walk has too many steps for its grid


def _sampler(
    function: Callable[..., Tensor],
    grid: Callable[[NoiseSchedule, int, bool], Grid],
    min_steps: int = 1,
    network_calls: Callable[[int], int] = lambda steps: steps,
) -> Sampler:
    """Describes a sampler by its name, the first line of its docstring, and its signature."""
    takes = frozenset(inspect.signature(function).parameters.keys() & {"eta", "karras", "noise"})
    summary = (function.__doc__ or "").partition("\n")[0]
    return Sampler(function.__name__, function, summary, takes, min_steps, network_calls, grid)


def _ddim_grid(schedule: NoiseSchedule, steps: int, karras: bool) -> Grid:
    return schedule.ddim_grid(steps)  # takes no karras


_EULER, _DPM_SOLVER = NoiseSchedule.euler_grid, NoiseSchedule.dpm_solver_grid

SAMPLERS: dict[str, Sampler] = {
    entry.name: entry
    for entry in (
        _sampler(ddim, _ddim_grid),
        _sampler(pndm, _ddim_grid, min_steps=4, network_calls=lambda steps: steps + 9),
        _sampler(euler, _EULER),
        _sampler(euler_ancestral, _EULER),
        _sampler(heun, _EULER, network_calls=lambda steps: 2 * steps - 1),
        _sampler(lms, _EULER),
        _sampler(dpmpp_2m, _DPM_SOLVER),
        _sampler(dpmpp_2m_sde, _DPM_SOLVER),
        _sampler(dpmpp_3m, _DPM_SOLVER),
        _sampler(unipc, _DPM_SOLVER),
    )
}


def times(name: str, schedule: NoiseSchedule, steps: int, karras: bool = False) -> list[float]:
    """Returns the time at which each step of a whole walk starts, falling.

    Args:
        name: a key of `SAMPLERS`.
        schedule: the schedule the network was trained on.
        steps: number of steps in the whole walk.
        karras: as in `Sampler.__call__`.

    Raises:
        ArgumentError: the sampler is unknown, or does not take these options.
    """
    return _checked_grid(name, schedule, steps, karras)[0]


def sigmas(name: str, schedule: NoiseSchedule, steps: int, karras: bool = False) -> list[float]:
    """Returns the noise over signal at which each step of a whole walk starts, and that at its end.

    These are the levels the sampler works with. With `karras`, DPM-Solver++ and UniPC round the times they
    give the network, so `schedule.sigma_of(t)` only approximates them.

    Args:
        name: a key of `SAMPLERS`.
        schedule: the schedule the network was trained on.
        steps: number of steps in the whole walk.
        karras: as in `Sampler.__call__`.

    Returns:
        steps + 1 values; the last is 0, or sigma at time 0 (0.039) for ddim and pndm.

    Raises:
        ArgumentError: the sampler is unknown, or does not take these options.
    """
    return _checked_grid(name, schedule, steps, karras)[1]


def _checked_grid(name: str, schedule: NoiseSchedule, steps: int, karras: bool) -> Grid:
    sampler = SAMPLERS[require_choice("sampler", name, SAMPLERS)]
    sampler.check(schedule, steps, karras=karras)
    return sampler.grid(schedule, steps, karras)
