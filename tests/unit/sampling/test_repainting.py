"""Walks that start from a latent, and walks that remake a part of it, with every sampler."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.sampling.repainting import PathEnd, Walk, add_noise, call_sigmas, keep, repaint
from audioldm2.sampling.samplers import SAMPLERS, generator_noise
from tests.support.known_data import (
    MEAN,
    NAMES,
    SCHEDULE,
    STD,
    STOCHASTIC,
    VARIANTS,
    gaussian,
    seeded,
    unit_noise,
)

STEPS = 12


def walk_of(name: str, karras: bool = False, steps: int = STEPS) -> Walk:
    return Walk(name, SCHEDULE, steps, eta=STOCHASTIC.get(name, 0.0), karras=karras)


def latent(batch: int = 1) -> Tensor:
    """A latent unlike the data that the denoiser knows: (batch, 2, 5, 4)."""
    return 3 * torch.randn(batch, 2, 5, 4, generator=seeded(11))


def half() -> Tensor:
    """Remake the frames from the third on: (1, 1, 5, 4)."""
    remake = torch.zeros(1, 1, 5, 4, dtype=torch.bool)
    remake[:, :, 2:] = True
    return remake


def drawn(batch: int = 1):
    return generator_noise([seeded(20 + row) for row in range(batch)])


# The whole latent.


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_start_at_the_first_step_is_the_plain_walk(name: str, karras: bool) -> None:
    walk = walk_of(name, karras)
    plain = SAMPLERS[name](
        gaussian(), unit_noise(), SCHEDULE, STEPS, eta=walk.eta, karras=karras, noise=drawn()
    )
    for remake in (None, torch.ones(1, 1, 5, 4, dtype=torch.bool)):
        found = repaint(gaussian(), latent(), unit_noise(), walk, remake=remake, step_noise=drawn())
        assert torch.equal(found, plain)


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_later_starts_stay_closer_to_the_latent(name: str, karras: bool) -> None:
    walk, z = walk_of(name, karras), latent()
    distances = [
        (repaint(gaussian(std=2.0), z, unit_noise(), walk, first=first, step_noise=drawn()) - z).norm().item()
        for first in (1, 4, 8, 11)
    ]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_start_has_the_noise_of_its_step(name: str, karras: bool) -> None:
    walk, seen = walk_of(name, karras), []

    def denoiser(x: Tensor, t: float) -> Tensor:
        seen.append((x, t))
        return gaussian()(x, t)

    repaint(denoiser, latent(), unit_noise(), walk, first=5, step_noise=drawn())
    x, t = seen[0]
    sigma = walk.sigmas[walk.first_of(5)]
    torch.testing.assert_close(x, (latent() + sigma * unit_noise()) / math.hypot(1, sigma))
    assert t == walk.times[5]


# A part of it.


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_kept_latents_follow_the_sound_at_every_step_and_equal_it_at_the_end(name: str, karras: bool) -> None:
    """The sigma of every call is the one that is walked, or the estimates x0 would drift from z."""
    for steps in (4, 12, 100):
        walk, z, remake, estimates = walk_of(name, karras, steps), latent(), half(), []
        found = repaint(
            gaussian(), z, unit_noise(), walk, remake=remake, step_noise=drawn(),
            on_step=lambda *about, estimates=estimates: estimates.append(about[2]),
        )  # fmt: skip
        kept = ~remake.expand_as(z)
        assert torch.equal(found[kept], z[kept]), steps
        assert len(estimates) == steps
        drift = max((x0 - z)[kept].abs().max().item() for x0 in estimates)
        # Of values up to 8: the noise is 80 times as loud at the start, in float32.
        assert drift < 2e-4, steps


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_call_sigmas_are_those_of_a_kept_latent(name: str, karras: bool) -> None:
    """Where everything is kept, the denoiser gets z with the first noise, at exactly that sigma."""
    walk, z = replace(walk_of(name, karras), eta=0.0), latent().double()
    if name in ("euler_ancestral", "dpmpp_2m_sde"):
        return  # the noise changes at each step; the test above covers them
    noise, seen = unit_noise(dtype=torch.float64), []

    def denoiser(x: Tensor, t: float) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    nothing = torch.zeros(1, 1, 5, 4, dtype=torch.bool)
    levels = call_sigmas(walk, 3)
    walk.run(keep(denoiser, z, nothing, levels), add_noise(z, noise, walk.sigmas[3]), first=3)
    assert len(seen) == len(levels)
    for x, sigma in zip(seen, levels, strict=True):
        torch.testing.assert_close(x, add_noise(z, noise, sigma), rtol=0, atol=1e-9)


def test_odd_strides_of_pndm_keep_the_latent_too() -> None:
    for steps in (7, 11, 13, 14, 600):
        walk, z, remake = walk_of("pndm", steps=steps), latent(), half()
        estimates: list[Tensor] = []
        repaint(
            gaussian(), z, unit_noise(), walk, remake=remake, first=steps - 3,
            on_step=lambda *about, estimates=estimates: estimates.append(about[2]),
        )  # fmt: skip
        kept = ~remake.expand_as(z)
        assert max((x0 - z)[kept].abs().max().item() for x0 in estimates) < 2e-4


def test_steps_that_share_a_rounded_time_keep_the_sigma_that_is_walked() -> None:
    walk = walk_of("dpmpp_2m", karras=True, steps=100)
    assert len(set(walk.times)) < len(walk.times)
    by_time = [SCHEDULE.sigma_of(t) for t in walk.times]
    apart = max(abs(a / b - 1) for a, b in zip(by_time, walk.sigmas, strict=False))
    assert apart > 0.01, "the sigma of the rounded time would do, and the test shows nothing"
    assert call_sigmas(walk) == walk.sigmas[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_remade_is_the_input(name: str) -> None:
    nothing = torch.zeros(1, 1, 5, 4, dtype=torch.bool)
    for resample_times in (1, 3):
        found = repaint(
            gaussian(), latent(), unit_noise(), walk_of(name), remake=nothing, resample_times=resample_times,
            step_noise=drawn(),
        )  # fmt: skip
        assert torch.equal(found, latent()), resample_times


@pytest.mark.parametrize("name", NAMES)
def test_remade_cells_come_from_the_data(name: str) -> None:
    """The denoiser knows cells that do not depend on each other, so kept ones change nothing."""
    remake, walk = half(), walk_of(name)
    plain = repaint(gaussian(), latent(), unit_noise(), walk, step_noise=drawn())
    found = repaint(gaussian(), latent(), unit_noise(), walk, remake=remake, step_noise=drawn())
    new = remake.expand_as(found)
    assert torch.equal(found[new], plain[new])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resample_times", [1, 2])
def test_rows_do_not_depend_on_their_batch(name: str, resample_times: int) -> None:
    z, noise, walk = latent(3), unit_noise(3), walk_of(name)
    remake = torch.cat([half(), ~half(), torch.zeros_like(half())])
    arguments = dict(first=3, resample_times=resample_times)
    both = repaint(gaussian(), z, noise, walk, remake=remake, step_noise=drawn(3), **arguments)
    for row in range(3):
        alone = repaint(
            gaussian(), z[row : row + 1], noise[row : row + 1], walk, remake=remake[row : row + 1],
            step_noise=generator_noise([seeded(20 + row)]), **arguments,
        )  # fmt: skip
        assert torch.equal(both[row : row + 1], alone)


# Resampling.


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_resampling_keeps_the_latent_and_reports_each_step_once(name: str, karras: bool) -> None:
    walk, z, remake, seen = walk_of(name, karras), latent(), half(), []
    found = repaint(
        gaussian(), z, unit_noise(), walk, remake=remake, resample_times=3, step_noise=drawn(),
        on_step=lambda step, t, x0: seen.append((step, t, x0)),
    )  # fmt: skip
    kept = ~remake.expand_as(z)
    assert torch.equal(found[kept], z[kept])
    assert [step for step, _, _ in seen] == list(range(1, STEPS + 1))
    assert [t for _, t, _ in seen] == walk.times
    assert max((x0 - z)[kept].abs().max().item() for _, _, x0 in seen) < 2e-4


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m_sde"])
def test_resampling_costs_as_many_times(name: str) -> None:
    walk, calls = walk_of(name), []

    def denoiser(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return gaussian()(x, t)

    repaint(denoiser, latent(), unit_noise(), walk, remake=half(), resample_times=3, step_noise=drawn())
    assert len(calls) == 3 * SAMPLERS[name].network_calls(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "pndm", "heun", "dpmpp_2m", "dpmpp_2m_sde"])
def test_resampled_cells_follow_the_distribution_of_the_data(name: str) -> None:
    """Of each kind of sampler one. Takes are first order, and stochastic ones add noise twice, so it takes
    many steps to show."""
    steps = 900 if name in STOCHASTIC else 200
    z = 3 * torch.randn(1, 2, 60, 60, generator=seeded(1))
    remake = torch.zeros(1, 1, 60, 60, dtype=torch.bool)
    remake[:, :, 30:] = True
    noise = torch.randn(z.shape, generator=seeded(2))
    found = repaint(
        gaussian(), z, noise, walk_of(name, steps=steps), remake=remake, resample_times=2,
        step_noise=generator_noise(seeded(3)),
    )  # fmt: skip
    new = found[remake.expand_as(found)]
    assert new.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert new.std().item() == pytest.approx(STD, abs=0.03)


def test_resampling_makes_kept_and_remade_cells_agree() -> None:
    """Data whose cells are all equal: resampling brings the remade ones to the value of the kept ones."""

    def denoiser(x: Tensor, t: float) -> Tensor:  # exact for x0 = m everywhere, m ~ N(0, 1)
        sigma = SCHEDULE.sigma_of(t)
        x = x * math.hypot(1, sigma)
        mean = x.mean() / (1 + sigma**2 / x.numel())
        return (x - mean) / sigma

    z, noise = torch.full((1, 1, 8, 8), 1.5), torch.randn(1, 1, 8, 8, generator=seeded(4))
    remake = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    remake[:, :, :2] = False
    once, often = (
        repaint(
            denoiser, z, noise, walk_of("euler"), remake=remake, resample_times=times, step_noise=drawn()
        )
        for times in (1, 8)
    )  # fmt: skip
    assert (often - 1.5).abs().mean() < 0.5 * (once - 1.5).abs().mean()


# Stopping, and mistakes.


@pytest.mark.parametrize("resample_times", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_stopped_walk_returns_the_estimate_with_the_kept_latents(name: str, resample_times: int) -> None:
    z, remake, seen = latent(), half(), []

    def on_step(step: int, t: float, x0: Tensor) -> bool:
        seen.append(x0)
        return step < 3

    found = repaint(
        gaussian(), z, unit_noise(), walk_of(name), remake=remake, resample_times=resample_times,
        step_noise=drawn(), on_step=on_step,
    )  # fmt: skip
    assert len(seen) == 3
    assert torch.equal(found, torch.where(remake, seen[-1], z))


def test_resampling_needs_something_kept() -> None:
    walk = walk_of("euler")
    for remake in (None, torch.ones(1, 1, 5, 4, dtype=torch.bool)):
        with pytest.raises(ArgumentError, match="resample_times is 2; it has to be 1 where nothing"):
            repaint(gaussian(), latent(), unit_noise(), walk, remake=remake, resample_times=2)
    with pytest.raises(ArgumentError, match="resample_times is 0; it has to be a whole number"):
        repaint(gaussian(), latent(), unit_noise(), walk, remake=half(), resample_times=0)


def test_walk_takes_only_options_of_its_sampler() -> None:
    with pytest.raises(ArgumentError, match="karras is True; it has to be False for ddim"):
        Walk("ddim", SCHEDULE, 10, karras=True)


def test_call_past_the_last_level_is_an_error() -> None:
    kept = keep(gaussian(), latent(), half(), [1.0])
    kept(unit_noise(), 500.0)
    with pytest.raises(PathEnd, match="more often than there are levels"):
        kept(unit_noise(), 400.0)
