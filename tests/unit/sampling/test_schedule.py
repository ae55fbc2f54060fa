"""The noise schedule and the times and sigmas that samplers visit."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audioldm2.errors import ArgumentError
from audioldm2.sampling.samplers import sigmas, times
from audioldm2.sampling.schedule import NoiseSchedule, karras_sigmas
from tests.support.known_data import NAMES, ON_ALPHA_BAR, SCHEDULE, VARIANTS


@pytest.mark.parametrize(("kind", "power"), [("scaled_linear", 2), ("linear", 1)])
def test_alpha_bar_is_the_product_of_its_definition(kind: str, power: int) -> None:
    alpha_bar = NoiseSchedule(kind=kind).alpha_bar
    start, end = 0.0015 ** (1 / power), 0.0195 ** (1 / power)
    expected, product = [], 1.0
    for t in range(1000):
        product *= 1 - (start + t / 999 * (end - start)) ** power
        expected.append(product)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar.tolist() == pytest.approx(expected, rel=1e-12)


def test_alpha_bar_outside_the_training_times_is_that_of_the_nearest() -> None:
    assert SCHEDULE.alpha_bar_at(-1) == SCHEDULE.alpha_bar_at(0) == pytest.approx(1 - 0.0015)
    assert SCHEDULE.alpha_bar_at(1000) == SCHEDULE.alpha_bar_at(999) < SCHEDULE.alpha_bar_at(998)


def test_leading_times_for_known_counts() -> None:
    assert SCHEDULE.leading_times(5) == [801, 601, 401, 201, 1]
    assert SCHEDULE.leading_times(5, skip_zero=True) == [831, 665, 499, 333, 167]
    assert NoiseSchedule(steps_offset=0).leading_times(2) == [500, 0]


@given(steps=st.integers(1, 998), skip_zero=st.booleans())
def test_leading_times_fall_by_one_stride_within_the_schedule(steps: int, skip_zero: bool) -> None:
    found = SCHEDULE.leading_times(steps, skip_zero)
    stride = 1000 // (steps + skip_zero)
    assert len(found) == steps
    assert found[-1] == 1 + skip_zero * stride and found[0] <= 1000
    assert {a - b for a, b in pairwise(found)} <= {stride}


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "5"])
def test_leading_times_reject_steps_outside_the_schedule(steps: object) -> None:
    with pytest.raises(ArgumentError, match=r"^num_inference_steps is .* a whole number from 1 to 1000"):
        SCHEDULE.leading_times(steps)


@given(t=st.floats(0, 999))
def test_time_of_and_sigma_of_are_inverse(t: float) -> None:
    low, high = SCHEDULE.sigmas[min(int(t), 998) : min(int(t), 998) + 2]
    sigma = low * (high / low) ** (t - min(int(t), 998))
    assert SCHEDULE.time_of(sigma) == pytest.approx(t, abs=1e-9)
    assert SCHEDULE.sigma_of(t) == pytest.approx(sigma, rel=1e-12)


def test_karras_sigmas_keep_the_ends_and_space_the_roots_evenly() -> None:
    found = karras_sigmas(80.0, 0.04, 11)
    roots = [sigma ** (1 / 7) for sigma in found]
    assert (found[0], found[-1]) == pytest.approx((80.0, 0.04))
    assert [a - b for a, b in pairwise(roots)] == pytest.approx([(roots[0] - roots[-1]) / 10] * 10)
    assert karras_sigmas(80.0, 0.04, 1) == pytest.approx([80.0])


@pytest.mark.parametrize("steps", [4, 7, 30])
@pytest.mark.parametrize(("name", "karras"), VARIANTS)
def test_each_sampler_reports_its_times_and_sigmas(name: str, karras: bool, steps: int) -> None:
    found, levels = times(name, SCHEDULE, steps, karras), sigmas(name, SCHEDULE, steps, karras)
    assert len(found) == steps and len(levels) == steps + 1
    assert all(isinstance(t, float) for t in found)
    assert all(a > b for a, b in pairwise(found)) and all(a > b for a, b in pairwise(levels))
    assert levels[-1] == (SCHEDULE.sigmas[0] if name in ON_ALPHA_BAR else 0.0)
    rounded = karras and (name.startswith("dpmpp") or name == "unipc")
    for t, sigma in zip(found, levels, strict=False):
        assert SCHEDULE.time_of(sigma) == pytest.approx(t, abs=0.5 if rounded else 1e-9)


@pytest.mark.parametrize("function", [times, sigmas])
def test_times_and_sigmas_reject_what_the_sampler_does_not_take(function) -> None:
    with pytest.raises(ArgumentError, match="^sampler is 'ddpm'; it has to be one of " + ", ".join(NAMES)):
        function("ddpm", SCHEDULE, 10)
    with pytest.raises(ArgumentError, match=r"^num_inference_steps is 3; .* from 4 to 1000"):
        function("pndm", SCHEDULE, 3)
    with pytest.raises(ArgumentError, match=r"^karras is True; it has to be False for ddim"):
        function("ddim", SCHEDULE, 10, karras=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "cosine"}, "kind is 'cosine'; it has to be one of linear, scaled_linear."),
        (
            {"beta_start": 0.0},
            "beta_start is 0.0 and beta_end is 0.0195; it has to satisfy 0 < beta_start <= beta_end < 1.",
        ),
        (
            {"beta_end": math.nan},
            "beta_start is 0.0015 and beta_end is nan; it has to satisfy 0 < beta_start <= beta_end < 1.",
        ),
        ({"steps": 1}, "steps is 1; it has to be a whole number of at least 2."),
        ({"steps_offset": 2}, "steps_offset is 2; it has to be a whole number from 0 to 1."),
    ],
)
def test_rejects_fields_out_of_range(fields: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        NoiseSchedule(**fields)
    assert str(caught.value) == message
