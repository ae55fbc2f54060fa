"""The samplers against problems whose answer is known: every element of the data is N(MEAN, STD^2)."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audioldm2.sampling.samplers import SAMPLERS, ddim
from audioldm2.sampling.schedule import NoiseSchedule, karras_sigmas

MEAN, STD = 0.7, 0.5
SCHEDULE = NoiseSchedule()
# The same noise, over times 1000 times as fine: rounding a time to a whole one then costs nothing.
FINE = NoiseSchedule(steps=1_000_000, beta_start=1.5e-6, beta_end=1.95e-5)
NAMES = [
    *("ddim", "pndm", "euler", "euler_ancestral", "heun", "lms"),
    *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"),
]
ON_ALPHA_BAR = ("ddim", "pndm")
KARRAS = [name for name in NAMES if name not in ON_ALPHA_BAR]
STOCHASTIC = {"ddim": 1.0, "euler_ancestral": 0.0, "dpmpp_2m_sde": 0.0}  # name -> eta
VARIANTS = [*((name, False) for name in NAMES), *((name, True) for name in KARRAS)]


def gaussian(schedule: NoiseSchedule = SCHEDULE, std: float = STD):
    """The exact denoiser of that data, for fractional times too."""

    def denoiser(x: Tensor, t: float) -> Tensor:
        assert isinstance(t, float)
        i = min(int(t), schedule.steps - 2)
        low, high = schedule.sigmas[i : i + 2]
        sigma = low * (high / low) ** min(t - i, 1)
        a = 1 / (1 + sigma**2)
        return math.sqrt(1 - a) * (x - math.sqrt(a) * MEAN) / (a * std**2 + 1 - a)

    return denoiser


def sigma_path(name: str, steps: int, karras: bool, schedule: NoiseSchedule) -> list[float]:
    if name in ON_ALPHA_BAR:
        return [schedule.sigmas[min(t, schedule.steps - 1)] for t in (*schedule.times(steps), 0)]
    open_end = name.startswith("dpmpp") or name == "unipc"
    return (schedule.open_path if open_end else schedule.path)(steps, karras)[1]


def exact(x: Tensor, start: float, end: float) -> Tensor:
    """The probability flow from sigma `start` to `end`, in x0 + sigma eps; x is of unit variance."""
    return MEAN + (x * math.hypot(1, start) - MEAN) * math.hypot(STD, end) / math.hypot(STD, start)


def grid() -> Tensor:
    return torch.linspace(-2, 2, 40, dtype=torch.float64).view(1, 2, 5, 4)


def unit_noise(batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 2, 5, 4, generator=torch.Generator().manual_seed(3)).to(dtype)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The answers.


@pytest.mark.parametrize(
    ("name", "karras"), [v for v in VARIANTS if v[0] not in STOCHASTIC or v[0] == "ddim"]
)
def test_result_is_the_end_of_the_probability_flow(name: str, karras: bool) -> None:
    sigmas = sigma_path(name, 100, karras, SCHEDULE)
    expected = exact(grid(), sigmas[0], sigmas[-1])
    if name in ON_ALPHA_BAR:
        expected = expected / math.hypot(1, sigmas[-1])
    result = SAMPLERS[name](gaussian(), grid(), SCHEDULE, 100, karras=karras)
    assert (result - expected).abs().max() < 0.05  # of values from -1 to 2


ORDERS = {"ddim": 1, "pndm": 2, "euler": 1, "heun": 2, "lms": 4, "dpmpp_2m": 2, "dpmpp_3m": 2, "unipc": 3}


@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_with_the_order_of_the_method(name: str) -> None:
    karras = name in KARRAS
    schedule = FINE if karras else SCHEDULE

    def error(steps: int) -> float:
        # The last step, to sigma 0, is of first order in all; the last estimate x0 is made before it.
        estimates = []
        SAMPLERS[name](
            gaussian(schedule),
            grid(),
            schedule,
            steps,
            karras=karras,
            on_step=lambda *s: estimates.append(s[2]),
        )
        sigmas = sigma_path(name, steps, karras, schedule)
        start, end = sigmas[0], sigmas[-2]
        x0 = (STD**2 * exact(grid(), start, end) + end**2 * MEAN) / (STD**2 + end**2)
        return (estimates[-1] - x0).abs().max().item()

    order = math.log2(error(125) / error(250))
    assert order == pytest.approx(ORDERS[name], abs=0.3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [4, 5, 14, 15, 50])
def test_a_single_point_is_found_exactly(name: str, steps: int) -> None:
    x = grid()
    result = SAMPLERS[name](gaussian(std=0), x, SCHEDULE, steps)
    expected = torch.full_like(x, MEAN)
    if name in ON_ALPHA_BAR:  # they end at alpha_bar[0], with the noise that they started with
        a, a_0 = SCHEDULE.signal(SCHEDULE.times(steps)[0]), SCHEDULE.signal(0)
        eps = (x - math.sqrt(a) * MEAN) / math.sqrt(1 - a)
        expected = math.sqrt(a_0) * MEAN + math.sqrt(1 - a_0) * eps
    odd_midpoint = name == "pndm" and steps == 14  # a stride of 71: see the comment in pndm
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4 if odd_midpoint else 1e-9)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_draw_from_the_distribution_of_the_data(name: str) -> None:
    x = torch.randn(1, 1, 200, 200, generator=seeded(0), dtype=torch.float64)
    result = SAMPLERS[name](gaussian(), x, SCHEDULE, 200, eta=STOCHASTIC[name], generator=seeded(1))
    assert result.mean() == pytest.approx(MEAN, abs=0.02)
    assert result.std() == pytest.approx(STD, abs=0.025)
    assert (
        abs(torch.corrcoef(torch.stack([x.flatten(), result.flatten()]))[0, 1]) < 0.1
    )  # the start is forgotten


# The schedule.


@pytest.mark.parametrize(("kind", "power"), [("scaled_linear", 2), ("linear", 1)])
def test_alpha_bar_is_the_product_of_the_definition(kind: str, power: int) -> None:
    alpha_bar = NoiseSchedule(kind=kind).alpha_bar
    start, end = 0.0015 ** (1 / power), 0.0195 ** (1 / power)
    expected, product = [], 1.0
    for t in range(1000):
        product *= 1 - (start + t / 999 * (end - start)) ** power
        expected.append(product)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar.tolist() == pytest.approx(expected, rel=1e-12)


def test_signal_outside_the_schedule_is_that_of_its_ends() -> None:
    assert SCHEDULE.signal(-1) == SCHEDULE.signal(0) == pytest.approx(1 - 0.0015)
    assert SCHEDULE.signal(1000) == SCHEDULE.signal(999) < SCHEDULE.signal(998)


def test_times_of_known_counts() -> None:
    assert SCHEDULE.times(5) == [801, 601, 401, 201, 1]
    assert SCHEDULE.times(5, open_end=True) == [831, 665, 499, 333, 167]
    assert NoiseSchedule(steps_offset=0).times(2) == [500, 0]


@given(steps=st.integers(1, 998), open_end=st.booleans())
def test_times_fall_by_one_stride_within_the_schedule(steps: int, open_end: bool) -> None:
    times = SCHEDULE.times(steps, open_end)
    stride = 1000 // (steps + open_end)
    assert len(times) == steps
    assert times[-1] == 1 + open_end * stride and times[0] <= 1000
    assert {a - b for a, b in pairwise(times)} <= {stride}


@given(t=st.floats(0, 999))
def test_time_of_is_the_inverse_of_sigma(t: float) -> None:
    low, high = SCHEDULE.sigmas[min(int(t), 998) : min(int(t), 998) + 2]
    sigma = low * (high / low) ** (t - min(int(t), 998))
    assert SCHEDULE.time_of(sigma) == pytest.approx(t, abs=1e-9)


def test_karras_sigmas_keep_the_ends_and_have_even_roots() -> None:
    sigmas = karras_sigmas(80.0, 0.04, 11)
    roots = [sigma ** (1 / 7) for sigma in sigmas]
    assert (sigmas[0], sigmas[-1]) == pytest.approx((80.0, 0.04))
    assert [a - b for a, b in pairwise(roots)] == pytest.approx([(roots[0] - roots[-1]) / 10] * 10)
    assert karras_sigmas(80.0, 0.04, 1) == pytest.approx([80.0])


# Noise.


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_row_s_noise_does_not_depend_on_its_batch(name: str) -> None:
    def sample(rows: list[int]) -> Tensor:
        x, generators = unit_noise(4)[rows], [seeded(row) for row in rows]
        return SAMPLERS[name](gaussian(), x, SCHEDULE, 6, eta=STOCHASTIC[name], generator=generators)

    batch = sample([0, 1, 2, 3])
    assert torch.equal(sample([3, 1, 0, 2]), batch[[3, 1, 0, 2]])
    for row in range(4):
        assert torch.equal(sample([row])[0], batch[row])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_one_row_draws_the_same_from_a_generator_and_from_a_list_of_it(name: str) -> None:
    def sample(generator) -> Tensor:
        return SAMPLERS[name](
            gaussian(), unit_noise(), SCHEDULE, 6, eta=STOCHASTIC[name], generator=generator
        )

    assert torch.equal(sample(seeded(1)), sample([seeded(1)]))
    assert torch.equal(sample(seeded(1)), sample(seeded(1)))
    assert not torch.equal(sample(seeded(1)), sample(seeded(2)))
    assert not torch.equal(sample(None), sample(None))


@pytest.mark.parametrize("name", NAMES)
def test_generator_decides_nothing_unless_the_sampler_draws(name: str) -> None:
    results = [
        SAMPLERS[name](gaussian(), unit_noise(), SCHEDULE, 6, generator=seeded(seed)) for seed in (1, 2)
    ]
    assert torch.equal(*results) == (name not in ("euler_ancestral", "dpmpp_2m_sde"))


@pytest.mark.parametrize("name", NAMES)
def test_global_random_state_is_not_used(name: str) -> None:
    before = torch.get_rng_state()
    for generator in (None, seeded(0), [seeded(0)]):
        SAMPLERS[name](
            gaussian(), unit_noise(), SCHEDULE, 6, eta=STOCHASTIC.get(name, 0.0), generator=generator
        )
    assert torch.equal(torch.get_rng_state(), before)


# The call.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_dtype_and_shape_are_kept_and_x_is_not_changed(name: str, karras: bool, dtype: torch.dtype) -> None:
    x = unit_noise(2, dtype)
    before = x.clone()
    options = {"eta": STOCHASTIC.get(name, 0.0), "karras": karras}
    result = SAMPLERS[name](gaussian(), x, SCHEDULE, 6, generator=seeded(0), **options)
    expected = SAMPLERS[name](gaussian(), x.double(), SCHEDULE, 6, generator=seeded(0), **options)
    assert result.dtype == dtype and result.shape == x.shape
    assert torch.equal(x, before)
    assert (result - expected).abs().max() < 200 * torch.finfo(dtype).eps  # so the noise is the same too


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 14, 15, 30, 999, 1000])
@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_every_count_of_steps_gives_finite_numbers_at_its_price(name: str, karras: bool, steps: int) -> None:
    traits = SAMPLERS[name].traits
    if steps < traits.min_steps:
        return
    calls = []

    def denoiser(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return gaussian()(x, t)

    try:
        result = SAMPLERS[name](denoiser, grid(), SCHEDULE, steps, karras=karras, generator=seeded(0))
    except ValueError:
        assert steps > 998 and not karras and name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")
        assert not calls
        return
    assert result.isfinite().all()
    assert len(calls) == traits.network_calls(steps)
    assert min(calls) >= 0 and max(calls) <= 1000


@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_on_step_sees_every_step_and_changes_nothing(name: str, karras: bool) -> None:
    seen = []
    for answer in (None, True, 0):  # none of them is exactly False
        seen.clear()

        def on_step(step: int, t: float, x0: Tensor, answer=answer):
            seen.append((step, t, x0))
            return answer

        options = {"karras": karras, "generator": seeded(0)}
        watched = SAMPLERS[name](gaussian(), grid(), SCHEDULE, 7, on_step=on_step, **options)
        alone = SAMPLERS[name](gaussian(), grid(), SCHEDULE, 7, karras=karras, generator=seeded(0))
        assert torch.equal(watched, alone)
        steps, times, estimates = zip(*seen, strict=True)
        assert steps == (1, 2, 3, 4, 5, 6, 7)
        assert all(isinstance(t, float) for t in times) and list(times) == sorted(times, reverse=True)
        if name not in ON_ALPHA_BAR and name != "lms":  # their last step goes to that estimate itself
            torch.testing.assert_close(watched, estimates[-1])


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


def test_estimate_is_the_mean_of_the_data_given_x() -> None:
    """At the first step x is known, and so is the estimate that every sampler must report."""
    for name in NAMES:
        first = []
        SAMPLERS[name](gaussian(), grid(), SCHEDULE, 7, on_step=lambda _, t, x0, f=first: f.append((t, x0)))
        t, x0 = first[0]
        a = SCHEDULE.signal(int(t))
        expected = (math.sqrt(a) * STD**2 * grid() + (1 - a) * MEAN) / (a * STD**2 + 1 - a)
        torch.testing.assert_close(x0, expected)


def refuse(x: Tensor, t: float) -> Tensor:
    raise AssertionError("the network ran before the arguments were checked")


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("ddim", 0, {}, "steps=0: a whole number from 1 to 1000 is allowed for ddim."),
        ("euler", 1001, {}, "steps=1001: a whole number from 1 to 1000 is allowed for euler."),
        ("heun", 20.0, {}, "steps=20.0: a whole number from 1 to 1000 is allowed for heun."),
        ("pndm", 3, {}, "steps=3: a whole number from 4 to 1000 is allowed for pndm."),
        ("unipc", 1000, {}, "steps=1000: at most 998 are allowed here without karras."),
        ("ddim", 5, {"eta": 1.5}, "eta=1.5: 0 (no noise) to 1 (the noise of DDPM) is allowed."),
        ("ddim", 5, {"eta": -0.1}, "eta=-0.1: 0 (no noise) to 1 (the noise of DDPM) is allowed."),
        ("ddim", 5, {"eta": math.nan}, "eta=nan: 0 (no noise) to 1 (the noise of DDPM) is allowed."),
        ("dpmpp_2m", 5, {"eta": 0.5}, "eta=0.5: dpmpp_2m takes none; ddim can."),
        (
            "pndm",
            5,
            {"karras": True},
            "karras=True: pndm takes none; "
            "euler, euler_ancestral, heun, lms, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc can.",
        ),
        ("euler", 5, {"generator": []}, "generator: a list of 0, for 1 rows; one each is allowed."),
    ],
)
def test_wrong_arguments_are_sentences_before_the_network_runs(name, steps, options, message) -> None:
    with pytest.raises(ValueError) as caught:
        SAMPLERS[name](refuse, unit_noise(), SCHEDULE, steps, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "cosine"}, "kind='cosine': 'linear' and 'scaled_linear' are allowed."),
        ({"beta_start": 0.0}, "beta_start=0.0, beta_end=0.0195: 0 < beta_start <= beta_end < 1 is allowed."),
        ({"steps": 1}, "steps=1: 2 or more are allowed."),
        ({"steps_offset": 2}, "steps_offset=2: 0 and 1 are allowed."),
    ],
)
def test_wrong_schedules_are_sentences(fields: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        NoiseSchedule(**fields)
    assert str(caught.value) == message


def test_samplers_share_one_call_and_say_what_they_are() -> None:
    assert list(SAMPLERS) == NAMES
    for name, run in SAMPLERS.items():
        options = inspect.signature(run).parameters
        assert list(options) == [
            *("denoiser", "x", "schedule", "steps"),
            *("eta", "karras", "generator", "on_step"),
        ]
        assert run.__name__ == name and run.__doc__.startswith(run.traits.summary)
        assert 20 < len(run.traits.summary) < 110 and run.traits.summary.endswith(".")
        assert ("karras" in run.traits.takes) == (name in KARRAS)
        assert ("eta" in run.traits.takes) == (name == "ddim")
        assert ("generator" in run.traits.takes) == (name in STOCHASTIC)
    assert len({run.traits.summary for run in SAMPLERS.values()}) == 10
    assert SAMPLERS["ddim"] is ddim
