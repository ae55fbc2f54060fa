"""Where a walk starts, and where its noise comes from."""

import math

import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.sampling.samplers import SAMPLERS, Noise, ddim, generator_noise, sigmas, times
from audioldm2.sampling.schedule import NoiseSchedule
from tests.support.known_data import (
    KARRAS,
    MEAN,
    NAMES,
    ON_ALPHA_BAR,
    SCHEDULE,
    STOCHASTIC,
    VARIANTS,
    gaussian,
    grid,
    seeded,
    unit_noise,
)


def wave(x: Tensor, step: int) -> Tensor:
    """Noise of the right shape, different at each step, without a random generator."""
    return torch.sin(3 * torch.arange(x.numel(), dtype=x.dtype).view(x.shape) + step)


def noisy(x0: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """x0 with noise, in the unit-variance convention."""
    return (x0 + sigma * eps) / math.hypot(1, sigma)


# Starting midway.


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_start_at_or_above_the_first_time_is_the_whole_walk(name: str, karras: bool) -> None:
    def sample(steps: int, **start) -> Tensor:
        options = {"eta": STOCHASTIC.get(name, 0.0), "karras": karras, "noise": wave}
        return SAMPLERS[name](gaussian(), grid(), SCHEDULE, steps, **options, **start)

    for steps in (4, 10, 30):
        whole = sample(steps)
        top = times(name, SCHEDULE, steps, karras)[0]
        for t_start in (None, top, top + 0.5, 1000, 2000.0, math.inf):
            assert torch.equal(sample(steps, t_start=t_start), whole), (steps, t_start)


# Times of an even stride, for pndm's midpoints; times that are not rounded, for DPM-Solver++.
EXACT = [*((name, False) for name in NAMES), *((name, True) for name in ("euler", "heun", "lms"))]


@pytest.mark.parametrize(("name", "karras"), EXACT)
def test_start_on_the_path_of_a_perfect_denoiser_ends_as_the_whole_walk(name: str, karras: bool) -> None:
    steps, clean = 10, torch.full_like(grid(), MEAN)
    levels, starts = sigmas(name, SCHEDULE, steps, karras), times(name, SCHEDULE, steps, karras)
    options = {"karras": karras, "noise": wave}
    whole = SAMPLERS[name](gaussian(std=0), noisy(clean, grid(), levels[0]), SCHEDULE, steps, **options)
    expected = noisy(clean, grid(), levels[-1])  # at sigma 0: clean
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-9)
    for first in range(steps):
        x = noisy(clean, grid(), levels[first])
        result = SAMPLERS[name](gaussian(std=0), x, SCHEDULE, steps, t_start=starts[first], **options)
        assert (result - expected).abs().max() <= 1e-9, first


@pytest.mark.parametrize(("name", "karras"), [("ddim", False), *((name, True) for name in ("euler", "heun"))])
@pytest.mark.parametrize("first", [1, 5, 9])
def test_one_step_method_continues_a_walk_exactly(name: str, karras: bool, first: int) -> None:
    """A sampler without history, started from where a whole walk is, walks on as that walk does."""
    seen = []

    def denoiser(x: Tensor, t: float) -> Tensor:
        seen.append((x, t))
        return gaussian()(x, t)

    whole = SAMPLERS[name](denoiser, grid(), SCHEDULE, 10, karras=karras)
    t_start = times(name, SCHEDULE, 10, karras)[first]
    x = next(x for x, t in seen[2 * first if name == "heun" else first :] if t == t_start)
    result = SAMPLERS[name](gaussian(), x, SCHEDULE, 10, karras=karras, t_start=t_start)
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pndm", "lms", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_multistep_method_started_midway_agrees_with_the_whole_walk_roughly(name: str) -> None:
    """The history is lost, so the results differ; the end rules stay those of the end of the walk."""
    steps, first = 50, 20
    levels, t_start = sigmas(name, SCHEDULE, steps), times(name, SCHEDULE, steps)[first]
    states = []
    whole = SAMPLERS[name](lambda x, t: states.append((t, x)) or gaussian()(x, t), grid(), SCHEDULE, steps)
    x = dict(reversed(states))[t_start]
    result = SAMPLERS[name](gaussian(), x, SCHEDULE, steps, t_start=t_start)
    assert levels[first] > 1  # far enough from the end for the history to matter
    assert 0 < (result - whole).abs().max() < 0.02


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_step_numbers_and_times_are_those_of_the_whole_walk(name: str, karras: bool) -> None:
    starts, reported, drawn = times(name, SCHEDULE, 10, karras), [], []

    def noise(x: Tensor, step: int) -> Tensor:
        drawn.append(step)
        return torch.zeros_like(x)

    options = {"eta": STOCHASTIC.get(name, 0.0), "karras": karras, "noise": noise}
    SAMPLERS[name](
        gaussian(),
        grid(),
        SCHEDULE,
        10,
        t_start=starts[5],
        on_step=lambda step, t, x0: reported.append((step, t)),
        **options,
    )
    assert reported == list(zip(range(6, 11), starts[5:], strict=True))
    assert drawn == ([6, 7, 8, 9, 10] if name in STOCHASTIC else [])


@pytest.mark.parametrize("name", NAMES)
def test_start_between_two_times_begins_at_the_lower(name: str) -> None:
    starts, reported = times(name, SCHEDULE, 10), []
    t_start = (starts[3] + starts[4]) / 2
    SAMPLERS[name](
        gaussian(), grid(), SCHEDULE, 10, t_start=t_start, on_step=lambda step, *_: reported.append(step)
    )
    assert reported == [5, 6, 7, 8, 9, 10]


def test_start_at_a_time_several_steps_share_begins_at_the_first_of_them() -> None:
    """Karras steps of DPM-Solver++ share rounded times near the end."""
    starts, reported = times("dpmpp_2m", SCHEDULE, 200, True), []
    t_start = starts[-2]
    assert starts.count(t_start) > 1
    x, on_step = grid(), lambda step, *_: reported.append(step)
    SAMPLERS["dpmpp_2m"](gaussian(), x, SCHEDULE, 200, karras=True, t_start=t_start, on_step=on_step)
    assert reported[0] == starts.index(t_start) + 1


@pytest.mark.parametrize("steps", [4, 5, 30, 1000])
def test_pndm_started_in_its_last_steps_stays_within_the_schedule(steps: int) -> None:
    """Its Runge-Kutta steps would evaluate the network below time 0."""
    for left in (1, 2, 3):
        calls = []

        def denoiser(x: Tensor, t: float, calls=calls) -> Tensor:
            calls.append(t)
            return gaussian()(x, t)

        t_start = times("pndm", SCHEDULE, steps)[-left]
        result = SAMPLERS["pndm"](denoiser, grid(), SCHEDULE, steps, t_start=t_start)
        assert result.isfinite().all()
        assert len(calls) == 4 * left and min(calls) >= 0 and max(calls) <= t_start


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_rejects_a_start_below_the_last_time(name: str, karras: bool) -> None:
    last = times(name, SCHEDULE, 10, karras)[-1]
    for t_start in (last - 0.5, -1, -math.inf):
        with pytest.raises(ArgumentError) as caught:
            SAMPLERS[name](None, grid(), SCHEDULE, 10, karras=karras, t_start=t_start)
        assert caught.value.name == "t_start"
        assert f"; it has to be at least {last}, the time of the last step." in str(caught.value)
    for t_start in (math.nan, "1", True):
        with pytest.raises(ArgumentError, match=r"^t_start is .*; it has to be a number."):
            SAMPLERS[name](None, grid(), SCHEDULE, 10, karras=karras, t_start=t_start)


# Noise from a callable.


def sample(name: str, noise: Noise | None, x: Tensor | None = None, **options) -> Tensor:
    x = grid() if x is None else x
    return SAMPLERS[name](gaussian(), x, SCHEDULE, 6, eta=STOCHASTIC.get(name, 0.0), noise=noise, **options)


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_used_by_the_samplers_that_take_it(name: str) -> None:
    zero, one = sample(name, lambda x, step: torch.zeros_like(x)), sample(name, lambda x, step: x * 0 + 1)
    assert zero.isfinite().all()
    assert torch.equal(zero, one) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_recorded_noise_replays_the_same_result(name: str) -> None:
    recorded, drawing = {}, generator_noise(seeded(4))

    def record(x: Tensor, step: int) -> Tensor:
        recorded[step] = drawing(x, step)
        return recorded[step]

    first = sample(name, record)
    assert list(recorded) == [1, 2, 3, 4, 5, 6]
    assert torch.equal(first, sample(name, lambda x, step: recorded[step]))
    assert torch.equal(first, sample(name, generator_noise(seeded(4))))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_gets_the_mean_of_the_step(name: str) -> None:
    """So the caller can choose the noise that leads to any given state, as DDPM inversion does."""
    means, levels = {}, sigmas(name, SCHEDULE, 6)

    def record(x: Tensor, step: int) -> Tensor:
        means[step] = x.clone()
        return wave(x, step)

    states = []
    SAMPLERS[name](
        lambda x, t: states.append(x) or gaussian()(x, t),
        grid(),
        SCHEDULE,
        6,
        eta=STOCHASTIC[name],
        noise=record,
    )
    for step in range(1, 6):
        sigma, sigma_next = levels[step - 1], levels[step]
        std = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        scale = math.hypot(1, sigma_next)
        if name == "ddim":  # it works in the unit-variance convention already
            std, scale = std / scale, 1.0
        expected = (means[step] + std * wave(grid(), step)) / scale
        torch.testing.assert_close(states[step], expected, rtol=0, atol=1e-12)


def test_ddpm_inversion_restores_a_latent_through_the_noise_callable() -> None:
    """Huberman-Spiegelglas et al. 2024: noise each level independently, and solve for the noise between."""
    steps, first, clean = 20, 5, unit_noise(dtype=torch.float64)
    levels, t_start = sigmas("ddim", SCHEDULE, steps), times("ddim", SCHEDULE, steps)[first]
    targets = [noisy(clean, torch.randn(clean.shape, generator=seeded(i)), s) for i, s in enumerate(levels)]
    targets[-1] = clean
    solved = {}

    def solve(mean: Tensor, step: int) -> Tensor:
        sigma, sigma_next = levels[step - 1], levels[step]
        std = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2) / math.hypot(1, sigma_next)
        solved[step] = (targets[step] - mean) / std
        return solved[step]

    options = {"eta": 1.0, "t_start": t_start}
    ddim(gaussian(), targets[first], SCHEDULE, steps, noise=solve, **options)
    assert list(solved) == list(range(first + 1, steps + 1))
    restored = ddim(gaussian(), targets[first], SCHEDULE, steps, noise=lambda x, i: solved[i], **options)
    torch.testing.assert_close(restored, clean, rtol=0, atol=1e-9)
    edited = ddim(gaussian(std=0.2), targets[first], SCHEDULE, steps, noise=lambda x, i: solved[i], **options)
    assert (edited - clean).abs().max() > 0.1


def test_ddim_without_eta_draws_no_noise() -> None:
    def unexpected(x: Tensor, step: int) -> Tensor:
        raise AssertionError("eta is 0")

    ddim(gaussian(), grid(), SCHEDULE, 5, noise=unexpected)


# Noise from generators.


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_of_a_row_does_not_depend_on_its_batch(name: str) -> None:
    def rows(chosen: list[int]) -> Tensor:
        return sample(name, generator_noise([seeded(row) for row in chosen]), unit_noise(4)[chosen])

    batch = rows([0, 1, 2, 3])
    assert torch.equal(rows([3, 1, 0, 2]), batch[[3, 1, 0, 2]])
    for row in range(4):
        assert torch.equal(rows([row])[0], batch[row])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_one_row_draws_the_same_from_a_generator_and_from_a_list_of_it(name: str) -> None:
    assert torch.equal(sample(name, generator_noise(seeded(1))), sample(name, generator_noise([seeded(1)])))
    assert torch.equal(sample(name, generator_noise(seeded(1))), sample(name, generator_noise(seeded(1))))
    assert not torch.equal(sample(name, generator_noise(seeded(1))), sample(name, generator_noise(seeded(2))))
    assert not torch.equal(sample(name, None), sample(name, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_generator_noise_is_drawn_in_float32_and_cast(dtype: torch.dtype) -> None:
    x = unit_noise(2, dtype)
    expected = torch.randn(x.shape, generator=seeded(7)).to(dtype)
    assert torch.equal(generator_noise(seeded(7))(x, 1), expected)


@pytest.mark.parametrize("name", NAMES)
def test_seed_matters_only_if_the_sampler_draws_by_default(name: str) -> None:
    results = [
        SAMPLERS[name](gaussian(), unit_noise(), SCHEDULE, 6, noise=generator_noise(seeded(seed)))
        for seed in (1, 2)
    ]
    assert torch.equal(*results) == (name not in ("euler_ancestral", "dpmpp_2m_sde"))


@pytest.mark.parametrize("name", NAMES)
def test_global_random_state_is_not_used(name: str) -> None:
    before = torch.get_rng_state()
    for noise in (None, generator_noise(seeded(0)), generator_noise([seeded(0)])):
        sample(name, noise)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [3, "seed", None, [3], [seeded(0), None]])
def test_generator_noise_rejects_other_types(wrong: object) -> None:
    with pytest.raises(ArgumentError, match=r"^generator is .*; it has to be a torch.Generator or a list"):
        generator_noise(wrong)


def test_generator_noise_rejects_another_batch_size() -> None:
    noise = generator_noise([seeded(0), seeded(1)])
    with pytest.raises(ArgumentError, match=r"^generator has 2 entries for 3 rows; it has to hold one"):
        noise(unit_noise(3), 1)


def test_other_schedules_start_midway_too() -> None:
    schedule = NoiseSchedule(kind="linear", steps=800, steps_offset=0)
    for name in NAMES:
        for karras in (False, True) if name in KARRAS else (False,):
            starts, levels = times(name, schedule, 10, karras), sigmas(name, schedule, 10, karras)
            x = noisy(torch.full_like(grid(), MEAN), grid(), levels[6])
            denoiser = gaussian(schedule, std=0.01)
            result = SAMPLERS[name](denoiser, x, schedule, 10, karras=karras, t_start=starts[6])
            expected = noisy(torch.full_like(grid(), MEAN), grid() if name in ON_ALPHA_BAR else 0, levels[-1])
            assert (result - expected).abs().max() < 0.1
