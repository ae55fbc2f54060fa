"""The samplers on problems with a known answer, and how they are called."""

import inspect
import math
import pickle

import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.sampling import eps_samplers, samplers, x0_samplers
from audioldm2.sampling.samplers import SAMPLERS, generator_noise, sigmas
from audioldm2.sampling.schedule import NoiseSchedule
from tests.support.known_data import (
    KARRAS,
    MEAN,
    NAMES,
    ON_ALPHA_BAR,
    SCHEDULE,
    STD,
    STOCHASTIC,
    VARIANTS,
    gaussian,
    grid,
    seeded,
    unit_noise,
)

# The same noise on times 1000 times as fine, so that rounding a time to an integer costs nothing.
FINE = NoiseSchedule(steps=1_000_000, beta_start=1.5e-6, beta_end=1.95e-5)


def exact(x: Tensor, start: float, end: float) -> Tensor:
    """The probability flow from sigma `start` to `end`, as x0 + sigma eps, of an x of unit variance."""
    return MEAN + (x * math.hypot(1, start) - MEAN) * math.hypot(STD, end) / math.hypot(STD, start)


# Known answers.


@pytest.mark.parametrize(
    ("name", "karras"), [v for v in VARIANTS if v[0] not in STOCHASTIC or v[0] == "ddim"]
)
def test_deterministic_walks_end_where_the_probability_flow_does(name: str, karras: bool) -> None:
    levels = sigmas(name, SCHEDULE, 100, karras)
    expected = exact(grid(), levels[0], levels[-1])
    if name in ON_ALPHA_BAR:
        expected = expected / math.hypot(1, levels[-1])
    result = SAMPLERS[name](gaussian(), grid(), SCHEDULE, 100, karras=karras)
    assert (result - expected).abs().max() < 0.05  # of values from -1 to 2


ORDERS = {"ddim": 1, "pndm": 2, "euler": 1, "heun": 2, "lms": 4, "dpmpp_2m": 2, "dpmpp_3m": 2, "unipc": 3}


@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_with_the_order_of_the_method(name: str) -> None:
    karras = name in KARRAS
    schedule = FINE if karras else SCHEDULE

    def error(steps: int) -> float:
        # The last step, to sigma 0, is first order in all samplers; the last estimate x0 precedes it.
        estimates = []
        SAMPLERS[name](
            gaussian(schedule),
            grid(),
            schedule,
            steps,
            karras=karras,
            on_step=lambda *s: estimates.append(s[2]),
        )
        levels = sigmas(name, schedule, steps, karras)
        start, end = levels[0], levels[-2]
        x0 = (STD**2 * exact(grid(), start, end) + end**2 * MEAN) / (STD**2 + end**2)
        return (estimates[-1] - x0).abs().max().item()

    order = math.log2(error(125) / error(250))
    assert order == pytest.approx(ORDERS[name], abs=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_data_of_a_single_point_is_found_exactly(name: str) -> None:
    for steps in (4, 5, 14, 15, 50):
        x = grid()
        result = SAMPLERS[name](gaussian(std=0), x, SCHEDULE, steps)
        expected = torch.full_like(x, MEAN)
        if name in ON_ALPHA_BAR:  # they end at alpha_bar[0], with the noise that they started with
            a, a_0 = SCHEDULE.alpha_bar_at(SCHEDULE.leading_times(steps)[0]), SCHEDULE.alpha_bar_at(0)
            eps = (x - math.sqrt(a) * MEAN) / math.sqrt(1 - a)
            expected = math.sqrt(a_0) * MEAN + math.sqrt(1 - a_0) * eps
        odd_midpoint = name == "pndm" and steps == 14  # a stride of 71: see the trap in pndm
        assert (result - expected).abs().max() <= (1e-4 if odd_midpoint else 1e-9), steps


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_from_the_distribution_of_the_data(name: str) -> None:
    x = torch.randn(1, 1, 200, 200, generator=seeded(0), dtype=torch.float64)
    noise = generator_noise(seeded(1))
    result = SAMPLERS[name](gaussian(), x, SCHEDULE, 200, eta=STOCHASTIC[name], noise=noise)
    assert result.mean() == pytest.approx(MEAN, abs=0.02)
    assert result.std() == pytest.approx(STD, abs=0.025)
    correlation = torch.corrcoef(torch.stack([x.flatten(), result.flatten()]))[0, 1]
    assert abs(correlation) < 0.1  # the starting noise is forgotten


# Results and costs.


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_keeps_dtype_and_shape_and_does_not_modify_x(name: str, karras: bool) -> None:
    def sample(x: Tensor) -> Tensor:
        options = {"eta": STOCHASTIC.get(name, 0.0), "karras": karras, "noise": generator_noise(seeded(0))}
        return SAMPLERS[name](gaussian(), x, SCHEDULE, 6, **options)

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = unit_noise(2, dtype)
        before = x.clone()
        result, expected = sample(x), sample(x.double())
        assert result.dtype == dtype and result.shape == x.shape
        assert torch.equal(x, before), dtype
        error = (result - expected).abs().max()
        assert error < 200 * torch.finfo(dtype).eps, dtype  # so the noise is the same too


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_every_number_of_steps_is_finite_and_costs_what_network_calls_says(name: str, karras: bool) -> None:
    sampler, calls = SAMPLERS[name], []

    def denoiser(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return gaussian()(x, t)

    for steps in (1, 2, 3, 4, 5, 14, 15, 30, 999, 1000):
        if steps < sampler.min_steps:
            continue
        calls.clear()
        try:
            noise = generator_noise(seeded(0))
            result = sampler(denoiser, grid(), SCHEDULE, steps, karras=karras, noise=noise)
        except ArgumentError:
            assert steps > 998 and not karras and name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")
            assert not calls
            continue
        assert result.isfinite().all(), steps
        assert len(calls) == sampler.network_calls(steps)
        assert min(calls) >= 0 and max(calls) <= 1000


# on_step.


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_on_step_gets_every_step_and_changes_nothing(name: str, karras: bool) -> None:
    def sample(on_step=None) -> Tensor:
        noise = generator_noise(seeded(0))
        return SAMPLERS[name](gaussian(), grid(), SCHEDULE, 7, karras=karras, noise=noise, on_step=on_step)

    for answer in (None, True, 0):  # none of them is exactly False
        seen = []

        def on_step(step: int, t: float, x0: Tensor, answer=answer, seen=seen):
            seen.append((step, t, x0))
            return answer

        result = sample(on_step)
        assert torch.equal(result, sample())
        numbers, times, estimates = zip(*seen, strict=True)
        assert numbers == (1, 2, 3, 4, 5, 6, 7)
        assert list(times) == samplers.times(name, SCHEDULE, 7, karras)
        if name not in ON_ALPHA_BAR and name != "lms":  # the last step of the others goes to that estimate
            torch.testing.assert_close(result, estimates[-1])


@pytest.mark.parametrize("name", NAMES)
def test_on_step_false_stops_and_returns_the_estimate(name: str) -> None:
    seen, calls = [], []

    def denoiser(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return gaussian()(x, t)

    def on_step(step: int, t: float, x0: Tensor) -> bool:
        seen.append((x0, len(calls)))
        return step < 3

    result = SAMPLERS[name](denoiser, grid(), SCHEDULE, 7, on_step=on_step)
    assert len(seen) == 3
    assert result is seen[-1][0]
    assert len(calls) == seen[-1][1]


def test_first_estimate_is_the_mean_of_the_data_given_x() -> None:
    """At the first step x is known, and so is the estimate that every sampler must report."""
    for name in NAMES:
        first = []
        SAMPLERS[name](gaussian(), grid(), SCHEDULE, 7, on_step=lambda _, t, x0, f=first: f.append((t, x0)))
        t, x0 = first[0]
        a = SCHEDULE.alpha_bar_at(int(t))
        expected = (math.sqrt(a) * STD**2 * grid() + (1 - a) * MEAN) / (a * STD**2 + 1 - a)
        torch.testing.assert_close(x0, expected)


# Rejected arguments.


def unreachable(x: Tensor, t: float) -> Tensor:
    raise AssertionError("the network ran before the arguments were checked")


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("ddim", 0, {}, "num_inference_steps is 0; it has to be a whole number from 1 to 1000."),
        ("euler", 1001, {}, "num_inference_steps is 1001; it has to be a whole number from 1 to 1000."),
        ("heun", 20.0, {}, "num_inference_steps is 20.0; it has to be a whole number from 1 to 1000."),
        ("pndm", 3, {}, "num_inference_steps is 3; it has to be a whole number from 4 to 1000 for pndm."),
        (
            "unipc",
            1000,
            {},
            "num_inference_steps is 1000; it has to be a whole number from 1 to 998 without karras.",
        ),
        (
            "unipc",
            1001,
            {"karras": True},
            "num_inference_steps is 1001; it has to be a whole number from 1 to 1000.",
        ),
        ("ddim", 5, {"eta": 1.5}, "eta is 1.5; it has to be a number from 0 to 1."),
        ("ddim", 5, {"eta": -0.1}, "eta is -0.1; it has to be a number from 0 to 1."),
        ("ddim", 5, {"eta": math.nan}, "eta is nan; it has to be a number from 0 to 1."),
    ],
)
def test_rejects_arguments_out_of_range_before_the_network_runs(name, steps, options, message) -> None:
    for call in (SAMPLERS[name], SAMPLERS[name].function):
        with pytest.raises(ArgumentError) as caught:
            call(unreachable, unit_noise(), SCHEDULE, steps, **options)
        assert str(caught.value) == message
    with pytest.raises(ArgumentError) as caught:
        SAMPLERS[name].check(SCHEDULE, steps, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpmpp_2m", {"eta": 0.5}, "eta is 0.5; it has to be 0 for dpmpp_2m (samplers that take eta: ddim)."),
        (
            "pndm",
            {"karras": True},
            "karras is True; it has to be False for pndm (samplers that take karras: "
            "euler, euler_ancestral, heun, lms, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc).",
        ),
        ("euler", {"karras": 1}, "karras is 1; it has to be True or False."),
        (
            "euler",
            {"noise": generator_noise([])},
            "generator has 0 entries for 1 rows; it has to hold one generator per row.",
        ),
    ],
)
def test_rejects_options_the_sampler_does_not_take(name: str, options: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        SAMPLERS[name](unreachable, unit_noise(), SCHEDULE, 5, **options)
    assert str(caught.value) == message
    assert caught.value.name in (*options, "generator")


# Signatures.

WALK = ["denoiser", "x", "schedule", "steps"]


def test_signature_lists_exactly_what_the_function_uses() -> None:
    for name in NAMES:
        function, parameters = SAMPLERS[name].function, inspect.signature(SAMPLERS[name].function).parameters
        options = [
            *(["eta"] if name == "ddim" else []),
            *(["karras"] if name in KARRAS else []),
            *(["noise"] if name in STOCHASTIC else []),
            *("t_start", "on_step"),
        ]
        assert list(parameters) == WALK + options, name
        for option in options:
            assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert SAMPLERS[name].takes == set(options) - {"t_start", "on_step"}
        names_in_code = {*function.__code__.co_names, *function.__code__.co_varnames}
        assert set(parameters) <= names_in_code, name


def test_registry_holds_the_plain_functions() -> None:
    for name in NAMES:
        function = SAMPLERS[name].function
        assert inspect.isfunction(function) and not hasattr(function, "__wrapped__")
        assert function is getattr(samplers, name)
        home = eps_samplers if hasattr(eps_samplers, name) else x0_samplers
        assert function is getattr(home, name)
        assert function.__code__.co_filename == home.__file__ and function.__code__.co_name == name
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_registry_entry_computes_what_its_function_does(name: str, karras: bool) -> None:
    given = {"eta": STOCHASTIC.get(name, 0.0), "karras": karras, "noise": lambda x, step: torch.sin(x + step)}
    taken = {option: value for option, value in given.items() if option in SAMPLERS[name].takes}
    result = SAMPLERS[name](gaussian(), grid(), SCHEDULE, 7, **given)
    assert torch.equal(result, SAMPLERS[name].function(gaussian(), grid(), SCHEDULE, 7, **taken))


def test_registry_describes_each_sampler() -> None:
    assert [
        *("ddim", "pndm", "euler", "euler_ancestral", "heun", "lms"),
        *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"),
    ] == NAMES
    for name, sampler in SAMPLERS.items():
        assert sampler.name == name == sampler.function.__name__
        assert sampler.function.__doc__.startswith(sampler.summary)
        assert 20 < len(sampler.summary) < 110 and sampler.summary.endswith(".")
    assert len({sampler.summary for sampler in SAMPLERS.values()}) == 10


def test_generators_for_another_batch_are_refused_before_the_network_runs() -> None:
    for wrong in ([], [seeded(0), seeded(1)]):
        with pytest.raises(ArgumentError, match=rf"^generator has {len(wrong)} entries for 1 rows"):
            SAMPLERS["euler"](unreachable, unit_noise(), SCHEDULE, 5, noise=generator_noise(wrong))
