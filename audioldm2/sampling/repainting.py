"""Starting a walk from a sound, and remaking a part of it while the rest stays.

Repainting needs no sampler of its own. Where a latent is kept, the denoiser's answer is replaced by the noise
that x holds there,

    eps = (x - sqrt(alpha_bar) z) / sqrt(1 - alpha_bar),

so that every sampler, multistep and stochastic ones too, keeps x at z + sigma eps (in the sigma convention)
at each step. The network therefore sees the kept part as noisy as the remade one. At the end the kept latents
are pasted: they equal z exactly, also after ddim and pndm, which leave a little noise.

The sigma has to be the one that the sampler walks. It does not follow from the time: DPM-Solver++ and UniPC
round the times of a Karras path, and heun and pndm also call the denoiser inside a step. `call_sigmas` lists
the sigma of every call in order.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError, require_whole
from audioldm2.sampling.samplers import SAMPLERS, Denoiser, Noise, OnStep, Sampler, sigmas, times
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sampling.walk import first_step, fresh_noise


@dataclass(frozen=True)
class Walk:
    """A sampler on its path.

    Raises:
        ArgumentError: the sampler does not take these options.
    """

    sampler: str
    schedule: NoiseSchedule
    steps: int  # of the whole path
    eta: float = 0.0
    karras: bool = False

    def __post_init__(self) -> None:
        SAMPLERS[self.sampler].check(self.schedule, self.steps, self.eta, self.karras)

    @cached_property
    def times(self) -> list[float]:
        return times(self.sampler, self.schedule, self.steps, self.karras)

    @cached_property
    def sigmas(self) -> list[float]:
        return sigmas(self.sampler, self.schedule, self.steps, self.karras)

    def first_of(self, step: int) -> int:
        """The step at which a walk really starts that is to start at `step`: steps that share a time start
        together."""
        return first_step(self.times, self.times[step])

    def run(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        first: int = 0,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Walk from step `first` (from 0) to the end; see `samplers.Sampler.__call__`."""
        sampler: Sampler = SAMPLERS[self.sampler]
        return sampler(
            denoiser,
            x,
            self.schedule,
            self.steps,
            eta=self.eta,
            karras=self.karras,
            noise=noise,
            t_start=self.times[first] if first else None,
            on_step=on_step,
        )


def add_noise(z: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The latent z with noise of standard deviation sigma, scaled to unit variance as the network sees it."""
    return (z + sigma * noise) / math.hypot(1, sigma)


def repaint(
    denoiser: Denoiser,
    z: Tensor,
    noise: Tensor,
    walk: Walk,
    *,
    remake: Tensor | None = None,
    first: int = 0,
    resample_times: int = 1,
    step_noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise a sound's latent from midway, all of it or a part.

    Args:
        denoiser: predicts the noise, guided or not.
        z: clean latents (batch, channels, time, mel), float32.
        noise: standard normal, of the shape of z: what remade cells start from.
        walk: the sampler and its path.
        remake: bool, broadcastable to z; True where the latent is made anew. None: everywhere.
        first: the step to start at (from 0), with z in the noise of that step. At 0, remade cells start from
            pure noise and do not depend on z.
        resample_times: how often each step is taken (Lugmayr et al. 2022, RePaint): between two takes, noise
            brings x back to where the step began, so that what is remade can agree with what is kept. The
            cost grows as many times. Each take starts without history: multistep samplers are first order
            then, and pndm makes four calls in every step.
        step_noise: the noise of stochastic samplers and of resampling; None draws from a random seed.
        on_step: as in `samplers.Sampler.__call__`; it is called after the last take of each step.

    Returns:
        Clean latents like z, equal to z where `remake` is False.

    Raises:
        ArgumentError: `resample_times` is below 1, or above 1 where nothing is kept.
    """
    require_whole("resample_times", resample_times, 1)
    if remake is None or bool(remake.all()):
        if resample_times > 1:
            raise ArgumentError("resample_times", resample_times, "be 1 where nothing of the sound is kept")
        first = walk.first_of(first)
        x = add_noise(z, noise, walk.sigmas[first]) if first else noise
        return walk.run(denoiser, x, first=first, noise=step_noise, on_step=on_step)
    first = walk.first_of(first)
    x = add_noise(z, noise, walk.sigmas[first])
    if first == 0:
        x = torch.where(remake, noise, x)
    if resample_times > 1:
        x = _resampled(denoiser, x, z, remake, walk, first, resample_times, step_noise, on_step)
    else:
        kept = keep(denoiser, z, remake, call_sigmas(walk, first))
        x = walk.run(kept, x, first=first, noise=step_noise, on_step=on_step)
    return torch.where(remake, x, z)


def keep(denoiser: Denoiser, z: Tensor, remake: Tensor, levels: Iterable[float]) -> Denoiser:
    """A denoiser for one walk, whose answer leads to z where `remake` is False.

    Args:
        denoiser: answers where `remake` is True.
        z: clean latents (batch, channels, time, mel).
        remake: bool, broadcastable to z.
        levels: the sigma of each call, in order (`call_sigmas`). A call past the last raises `PathEnd`.
    """
    remaining = iter(levels)

    def kept(x: Tensor, t: float) -> Tensor:
        sigma = next(remaining, None)
        if sigma is None:
            raise PathEnd(x)
        return torch.where(remake, denoiser(x, t), (x * math.hypot(1, sigma) - z) / sigma)

    return kept


class PathEnd(Exception):
    """The denoiser was called past its last level, with this x, of unit variance."""

    def __init__(self, x: Tensor):
        super().__init__("the denoiser was called more often than there are levels")
        self.x = x


def call_sigmas(walk: Walk, first: int = 0, end: int | None = None) -> list[float]:
    """The sigma of x at each call of the denoiser, in order, from step `first` up to, without, step `end`."""
    levels, end = walk.sigmas, walk.steps if end is None else end
    if walk.sampler == "heun":  # both ends of each step, but of a step to 0 its start
        pairs = (levels[i : i + 2] for i in range(first, end))
        return [sigma for pair in pairs for sigma in pair if sigma > 0]
    if walk.sampler == "pndm":
        return _pndm_sigmas(walk, first, end)
    return levels[first:end]


def _pndm_sigmas(walk: Walk, first: int, end: int) -> list[float]:
    """The times of pndm's transfers: four in each of its first three steps, then one."""
    schedule, stride = walk.schedule, walk.schedule.steps // walk.steps
    visited: list[float] = []
    for i in range(first, end):
        t = int(walk.times[i])
        inner = (stride // 2, stride - stride // 2, stride) if i < first + 3 else ()
        visited += (t, *(t - back for back in inner))
    alpha_bars = [schedule.alpha_bar_at(int(t)) for t in visited]
    return [math.sqrt((1 - a) / a) for a in alpha_bars]


def _resampled(
    denoiser: Denoiser,
    x: Tensor,
    z: Tensor,
    remake: Tensor,
    walk: Walk,
    first: int,
    resample_times: int,
    noise: Noise | None,
    on_step: OnStep | None,
) -> Tensor:
    """Walk one step after the other, each several times. Steps that share a time are taken together."""
    noise = fresh_noise() if noise is None else noise
    levels, starting, stopped = walk.sigmas, walk.times, False

    def report(step: int, t: float, x0: Tensor) -> object:
        nonlocal stopped
        stopped = on_step is not None and on_step(step, t, x0) is False
        return not stopped

    starts = [i for i in range(first, walk.steps) if i == first or starting[i] < starting[i - 1]]
    for begin, end in zip(starts, [*starts[1:], walk.steps], strict=True):
        for take in range(1, resample_times + 1):
            last = take == resample_times
            part = keep(denoiser, z, remake, call_sigmas(walk, begin, end))
            try:
                there = walk.run(part, x, first=begin, noise=noise, on_step=report if last else None)
            except PathEnd as reached:  # the sampler goes on to the next step
                there = reached.x
            if stopped:
                return there
            if last:
                x = there
                continue
            sigma, sigma_next = levels[begin], levels[end]
            there = there * math.hypot(1, sigma_next)
            there = there + math.sqrt(max(sigma**2 - sigma_next**2, 0)) * noise(there, end)
            x = there / math.hypot(1, sigma)
    return x
