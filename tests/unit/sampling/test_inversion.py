"""Edit-friendly inversion and the inversion-free edit, with denoisers that are simple functions."""

import math

import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.sampling.inversion import INVERTIBLE, edit_directly, invert
from audioldm2.sampling.repainting import Walk
from audioldm2.sampling.samplers import SAMPLERS, Denoiser, generator_noise
from tests.support.known_data import SCHEDULE, gaussian, seeded

ETAS = {"ddim": 1.0}
HALF_ETA = ("ddim", 0.5)
WALKS = [*((name, ETAS.get(name, 0.0)) for name in INVERTIBLE), HALF_ETA]


def latent(batch: int = 2) -> Tensor:
    """A latent unlike the data that the denoisers know: (batch, 2, 5, 4)."""
    return 3 * torch.randn(batch, 2, 5, 4, generator=seeded(11))


def drawn(batch: int = 2, seed: int = 20):
    return generator_noise([seeded(seed + row) for row in range(batch)])


def source(x: Tensor, t: float) -> Tensor:
    return gaussian()(x, t) + 0.2 * torch.sin(3 * x)


def target(x: Tensor, t: float) -> Tensor:
    return gaussian(std=0.2)(x, t) - 0.1 * torch.cos(x)


def decibels(found: Tensor, expected: Tensor) -> float:
    """Signal to error."""
    error = (found.double() - expected.double()).square().mean()
    return 10 * math.log10(expected.double().square().mean() / error.clamp(min=1e-30))


def reference(source: Denoiser, target: Denoiser, z: Tensor, first: int, steps: int, eta: float) -> Tensor:
    """DDPM inversion and the edit by the formulas of Huberman-Spiegelglas et al. 2024, in float64."""
    times = SCHEDULE.leading_times(steps)
    a = [SCHEDULE.alpha_bar_at(t) for t in (*times, 0)]
    draw = drawn(len(z))
    path = {i: math.sqrt(a[i]) * z + math.sqrt(1 - a[i]) * draw(z, 0) for i in range(first, steps)}
    path[steps] = z

    def mean_and_std(denoiser: Denoiser, x: Tensor, i: int) -> tuple[Tensor, float]:
        eps = denoiser(x, float(times[i]))
        x0 = (x - math.sqrt(1 - a[i]) * eps) / math.sqrt(a[i])
        s = eta * math.sqrt((1 - a[i + 1]) / (1 - a[i]) * (1 - a[i] / a[i + 1]))
        return math.sqrt(a[i + 1]) * x0 + math.sqrt(1 - a[i + 1] - s**2) * eps, s

    edited = path[first]
    for i in range(first, steps):
        mean, s = mean_and_std(source, path[i], i)
        noise = (path[i + 1] - mean) / s
        path[i + 1] = mean + s * noise
        mean, s = mean_and_std(target, edited, i)
        edited = mean + s * noise
    return edited


@pytest.mark.parametrize(
    ("steps", "first", "eta"), [(10, 0, 1.0), (25, 7, 1.0), (12, 11, 0.5), (200, 100, 1)]
)
def test_ddpm_computes_the_formulas_of_the_paper(steps: int, first: int, eta: float):
    walk, z = Walk("ddim", SCHEDULE, steps, eta), latent().double()
    expected = reference(source, target, z, first, steps, eta)
    found = invert(source, z, walk, drawn(), first=first).follow(target)
    assert (found - expected).norm() < 1e-9 * expected.norm()
    assert (expected - z).norm() > 0.01 * z.norm()


@pytest.mark.parametrize(("sampler", "eta"), WALKS)
@pytest.mark.parametrize(("steps", "first"), [(1, 0), (4, 0), (25, 0), (25, 24), (50, 20), (100, 40)])
def test_the_same_prompt_gives_the_latent_back(sampler: str, eta: float, steps: int, first: int):
    inversion = invert(source, latent(), Walk(sampler, SCHEDULE, steps, eta), drawn(), first=first)
    assert decibels(inversion.follow(source), latent()) >= 100
    assert len(inversion.noises) == steps - inversion.first
    by_hand = SAMPLERS[sampler](
        source, inversion.x, SCHEDULE, steps, eta=eta, noise=inversion.noise, t_start=inversion.t_start
    )
    assert decibels(by_hand + inversion.residual, latent()) >= 100


@pytest.mark.parametrize("sampler", [name for name in INVERTIBLE if "karras" in SAMPLERS[name].takes])
@pytest.mark.parametrize("steps", [10, 300])
def test_karras_paths_give_the_latent_back(sampler: str, steps: int):
    """With many steps some share a rounded time, and are skipped together."""
    walk = Walk(sampler, SCHEDULE, steps, karras=True)
    inversion = invert(source, latent(), walk, drawn(), first=steps // 2 - 1)
    assert decibels(inversion.follow(source), latent()) >= 100


def test_ddim_needs_no_residual():
    inversion = invert(source, latent(), Walk("ddim", SCHEDULE, 25, 1.0), drawn())
    assert inversion.residual.norm() < 1e-5 * latent().norm()
    assert inversion.noises[-1].abs().max() > 0, "the last noise is kept"


@pytest.mark.parametrize("sampler", INVERTIBLE)
def test_noise_of_each_step_is_drawn_for_itself(sampler: str):
    """Two latents of the path share no noise: without the latent itself, they are not correlated."""
    steps, seen = 20, []

    def watching(x: Tensor, t: float) -> Tensor:
        seen.append(x)
        return source(x, t)

    walk = Walk(sampler, SCHEDULE, steps, ETAS.get(sampler, 0.0))
    z = 3 * torch.randn(1, 8, 50, 16, generator=seeded(11))
    invert(watching, z, walk, drawn(1))
    noises = [(x * math.hypot(1, s) - z) / s for x, s in zip(seen, walk.sigmas[:-1], strict=True)]
    correlations = torch.corrcoef(torch.stack([each.flatten() for each in noises]))
    assert (correlations - torch.eye(steps)).abs().max() < 0.06  # 5 standard deviations
    assert all(abs(each.std() - 1) < 0.05 for each in noises)


@pytest.mark.parametrize("first", [0, 6, 9])
def test_skipped_steps_are_not_computed(first: int):
    times: list[float] = []

    def counting(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return source(x, t)

    walk = Walk("ddim", SCHEDULE, 10, 1.0)
    inversion = invert(counting, latent(), walk, drawn(), first=first)
    assert times == walk.times[first:] and inversion.t_start == walk.times[first]


def test_stopped_edit_returns_its_estimate():
    seen: list[Tensor] = []

    def stop_at_8(step: int, t: float, x0: Tensor) -> bool:
        seen.append(x0)
        return step < 8

    inversion = invert(source, latent(), Walk("dpmpp_2m_sde", SCHEDULE, 10), drawn(), first=3)
    assert torch.equal(inversion.follow(target, stop_at_8), seen[-1]) and len(seen) == 5
    seen.clear()
    walk = Walk("euler", SCHEDULE, 10)
    found = edit_directly(source, target, latent(), walk, drawn(), first=3, on_step=stop_at_8)
    assert torch.equal(found, seen[-1]) and len(seen) == 5


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in INVERTIBLE])
def test_samplers_without_noise_are_refused(name: str):
    with pytest.raises(ArgumentError) as caught:
        invert(source, latent(), Walk(name, SCHEDULE, 10), drawn())
    assert str(caught.value) == (
        f"sampler is '{name}'; it has to be one that adds noise, which an inversion recovers: "
        "ddim, euler_ancestral, dpmpp_2m_sde."
    )


def test_ddim_without_noise_is_refused():
    with pytest.raises(ArgumentError) as caught:
        invert(source, latent(), Walk("ddim", SCHEDULE, 10), drawn())
    assert str(caught.value) == (
        "eta is 0.0; it has to be above 0: an inversion recovers the noise of the steps."
    )


# Without inversion.


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("first", [0, 5, 11])
def test_direct_edit_integrates_the_difference(karras: bool, first: int):
    walk, z = Walk("euler", SCHEDULE, 12, karras=karras), latent()
    edited, draw = z, drawn()
    for i in range(first, 12):
        s, s_next, t = walk.sigmas[i], walk.sigmas[i + 1], walk.times[i]
        n, unit = draw(z, 0), math.sqrt(1 / (1 + s**2))
        difference = target(unit * (edited + s * n), t) - source(unit * (z + s * n), t)
        edited = edited + (s_next - s) * difference
    found = edit_directly(source, target, z, walk, drawn(), first=first)
    assert decibels(found, edited) >= 120
    assert (found - z).norm() > 0.01 * z.norm()


@pytest.mark.parametrize("steps", [1, 10, 25])
def test_direct_edit_by_the_same_prompt_is_the_latent_itself(steps: int):
    walk = Walk("euler", SCHEDULE, steps)
    assert torch.equal(edit_directly(source, source, latent(), walk, drawn()), latent())


def test_direct_edit_moves_one_gaussian_to_another():
    """Between exact denoisers of N(0.7, 0.5^2) and of data 2 higher, it adds 2."""

    def shifted(x: Tensor, t: float) -> Tensor:
        return gaussian()(x - 2 / math.hypot(1, SCHEDULE.sigma_of(t)), t)

    z = 0.7 + 0.5 * torch.randn(1, 8, 20, 16, generator=seeded(4))
    found = edit_directly(gaussian(), shifted, z, Walk("euler", SCHEDULE, 100), drawn(1))
    assert (found - z - 2).abs().max() < 0.05


def test_direct_edit_takes_the_steps_of_euler():
    with pytest.raises(ArgumentError, match=r"sampler is 'ddim'; it has to be euler"):
        edit_directly(source, target, latent(), Walk("ddim", SCHEDULE, 10), drawn())
