"""Editing a latent by text: noise that leads a sampler back to it, or no inversion at all.

**Edit-friendly DDPM inversion** (Huberman-Spiegelglas et al. 2024; for audio ZETA, Manor and Michaeli 2024).
Take a path of noisy latents, each with noise of its own,

    x_i = sqrt(alpha_bar_i) z + sqrt(1 - alpha_bar_i) e_i,     e_i independent,

and find, for each step of a sampler under the source prompt, the noise that leads from the mean of the step
to the next latent of the path: (x_next - mean) / std. With this noise the sampler walks the same path again
under the same prompt, and another path under another prompt. A sampler takes its noise from a callable, so
its own code computes the means.

**The inversion-free edit** (FlowEdit, Kulikov et al. 2024; for audio DirectAudioEdit) starts from the clean
latent and integrates the difference of two predictions that see the same noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.sampling.repainting import Walk, add_noise
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.walk import Denoiser, Noise, OnStep, stops

INVERTIBLE = [sampler.name for sampler in SAMPLERS.values() if "noise" in sampler.takes]


@dataclass(frozen=True, eq=False)
class Inversion:
    """Where a walk starts, and the noise of its steps that leads the source prompt back to the latent.

    With the sampler, the number of steps and the eta of `walk`, this is the latent again under the same
    prompt and scale, and an edit of it under another:

        model.denoise(..., inversion.x, t_start=inversion.t_start, noise=inversion.noise) + inversion.residual
    """

    walk: Walk
    first: int  # the step at which it starts, from 0
    x: Tensor  # (batch, channels, time, mel) of unit variance, as the first step sees it
    noises: (
        Tensor  # (steps left, batch, channels, time, mel), not normal: they hold what the prompt does not say
    )
    residual: (
        Tensor  # (batch, channels, time, mel), what a last step to sigma 0 leaves; 0 but for rounding in ddim
    )

    @property
    def t_start(self) -> float:
        return self.walk.times[self.first]

    def noise(self, x: Tensor, step: int) -> Tensor:
        """The `Noise` of these steps; `step` counts from 1 in the whole walk."""
        return self.noises[step - 1 - self.first].to(x)

    def follow(self, denoiser: Denoiser, on_step: OnStep | None = None) -> Tensor:
        """The edited latent under another prompt's denoiser; x0 where `on_step` stops the walk."""
        stopped = []

        def report(step: int, t: float, x0: Tensor) -> bool:
            if stops(on_step, step, t, x0):
                stopped.append(x0)
            return not stopped

        end = self.walk.run(denoiser, self.x, first=self.first, noise=self.noise, on_step=report)
        return stopped[0] if stopped else end + self.residual


def require_invertible(walk: Walk) -> None:
    """Raise ArgumentError unless the walk adds noise."""
    if walk.sampler not in INVERTIBLE:
        allowed = f"be one that adds noise, which an inversion recovers: {', '.join(INVERTIBLE)}"
        raise ArgumentError("sampler", walk.sampler, allowed)
    if walk.sampler == "ddim" and walk.eta == 0:
        raise ArgumentError("eta", walk.eta, "be above 0: an inversion recovers the noise of the steps")


def invert(denoiser: Denoiser, z: Tensor, walk: Walk, noise: Noise, *, first: int = 0) -> Inversion:
    """Recover the noise with which a walk from step `first` ends at a given latent.

    Huberman-Spiegelglas et al. 2024, algorithm 1; with dpmpp_2m_sde the inversion of LEDITS++ (Brack et al.
    2024). The path is corrected as in both: each latent is the one that the sampler computes from the
    recovered noise. Unlike in the code of ZETA and LEDITS++, the last noise is not set to 0, and where the
    last step adds none, the residual takes its place, so that the walk ends at z.

    Args:
        denoiser: predicts the noise by the source prompt, guided or not.
        z: clean latents (batch, channels, time, mel), float32.
        walk: of a sampler that adds noise.
        noise: draws the noise of the path; its step is the one that starts at this latent of the path.
        first: the step to start at, from 0; the steps before it are not computed.

    Raises:
        ArgumentError: the walk adds no noise.
    """
    require_invertible(walk)
    first = walk.first_of(first)
    sigmas, noises = walk.sigmas, []
    is_ddim = walk.sampler == "ddim"  # works in unit variance, the others on x0 + sigma eps

    def recover(mean: Tensor, step: int) -> Tensor:
        sigma, sigma_next = sigmas[step - 1], sigmas[step]
        target = z if step == walk.steps else add_noise(z, noise(z, step + 1), sigma_next)
        # One formula for all three samplers: in sigma, the std of ddim's step is that of an ancestral step.
        std = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2) * (walk.eta if is_ddim else 1)
        to_unit = 1 / math.hypot(1, sigma_next)
        mean = mean if is_ddim else mean * to_unit
        noises.append((target - mean) / (std * to_unit) if std > 0 else torch.zeros_like(mean))
        return noises[-1]

    x = add_noise(z, noise(z, first + 1), sigmas[first])
    end = walk.run(denoiser, x, first=first, noise=recover)
    return Inversion(walk, first, x, torch.stack(noises), z - end)


def edit_directly(
    source: Denoiser,
    target: Denoiser,
    z: Tensor,
    walk: Walk,
    noise: Noise,
    *,
    first: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Move a latent from what one prompt predicts to what another does, without inverting it.

    The edited latent z_e starts as z; each step draws fresh noise n, which both predictions see:

        z_e <- z_e + (sigma_next - sigma) [target(z_e + sigma n) - source(z + sigma n)]

    FlowEdit (Kulikov et al. 2024), algorithm 1 with n_avg = 1, for a network that predicts the noise. If both
    denoisers are the same, the result is z, bit for bit.

    Args:
        source: predicts the noise by the source prompt, guided or not.
        target: predicts the noise by the target prompt, guided or not.
        z: clean latents (batch, channels, time, mel), float32.
        walk: of euler; gives the times and sigmas.
        noise: draws n.
        first: the step to start at, from 0.
        on_step: as in `samplers.Sampler.__call__`; x0 is z_e after the step.

    Raises:
        ArgumentError: the walk is of another sampler.
    """
    if walk.sampler != "euler":
        raise ArgumentError("sampler", walk.sampler, "be euler, whose steps a direct edit takes")
    first = walk.first_of(first)
    times, sigmas, edited = walk.times, walk.sigmas, z
    for i in range(first, walk.steps):
        t, sigma, sigma_next = times[i], sigmas[i], sigmas[i + 1]
        n = noise(z, i + 1)
        slope = target(add_noise(edited, n, sigma), t) - source(add_noise(z, n, sigma), t)
        edited = edited + (sigma_next - sigma) * slope
        if stops(on_step, i + 1, t, edited):
            break
    return edited
