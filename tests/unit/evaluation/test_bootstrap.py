"""Intervals hold the truth as often as they say, also where a distance is biased; and the floor."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.evaluation import floors, frechet_distance, frechet_interval, kernel_interval, mean_interval
from audioldm2.evaluation.bootstrap import half_samples


def coverage(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def draw(seed: int, count: int, dim: int, shift: float = 0.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((count, dim)) * np.linspace(1, 0.3, dim) + shift)


def test_mean_interval_holds_the_mean_in_95_percent():
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.exponential(size=60)) for _ in range(250)]
    assert coverage(found, 1.0) == pytest.approx(0.95, abs=0.03)


def test_mean_interval_counts_groups_not_sounds():
    """Ten seeds of a prompt that agree are one piece of evidence."""
    values = np.random.default_rng(0).standard_normal(20)
    repeated = mean_interval(np.repeat(values, 10), np.repeat(np.arange(20), 10))
    assert repeated == pytest.approx(mean_interval(values))


def test_share_on_which_all_agree_still_has_an_interval():
    assert mean_interval([1.0] * 20) == pytest.approx((0.839, 1), abs=1e-3)  # Wilson
    assert mean_interval([0.0] * 20) == pytest.approx((0, 0.161), abs=1e-3)
    assert mean_interval([0.4] * 20) == pytest.approx((0.4, 0.4))


def test_mean_interval_needs_a_value():
    with pytest.raises(ArgumentError, match="values is empty"):
        mean_interval([])


def kernel_coverage(shift: float) -> float:
    """How often the interval of two samples holds KAD, which is the mean of all: it has no bias."""
    pairs = [(draw(2 * i, 100, 4, shift), draw(2 * i + 1, 100, 4)) for i in range(250)]
    found = [kernel_interval(*pair, splits=150) for pair in pairs]
    return coverage([interval for _, interval in found], float(np.mean([value for value, _ in found])))


@pytest.mark.slow
def test_kernel_interval_holds_the_distance_in_95_percent():
    assert kernel_coverage(shift=0.4) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
def test_kernel_interval_of_equal_distributions_is_on_the_safe_side():
    assert kernel_coverage(shift=0.0) >= 0.95


@pytest.mark.slow
def test_frechet_interval_holds_the_mean_distance_in_95_percent():
    pairs = [(draw(2 * i, 80, 8, 0.5), draw(2 * i + 1, 80, 8)) for i in range(150)]
    more = [frechet_distance(draw(10_000 + i, 80, 8, 0.5), draw(20_000 + i, 80, 8)) for i in range(400)]
    truth = float(np.mean(more))
    found = [frechet_interval(*pair, splits=30)[1] for pair in pairs]
    assert coverage(found, truth) == pytest.approx(0.95, abs=0.03)


def test_usual_bootstrap_of_the_frechet_distance_is_biased():
    """Drawing with replacement makes samples narrower, so its interval lies above the distance."""
    rng = np.random.default_rng(0)
    pairs = [(draw(2 * i, 50, 16, 0.25), draw(2 * i + 1, 50, 16)) for i in range(60)]
    truth = float(np.mean([frechet_distance(*pair) for pair in pairs]))
    usual = []
    for x, y in pairs[:20]:
        drawn = ((x[rng.integers(50, size=50)], y[rng.integers(50, size=50)]) for _ in range(30))
        usual.append(tuple(np.quantile([frechet_distance(*each) for each in drawn], [0.025, 0.975])))
    assert coverage(usual, truth) < 0.5


def test_frechet_interval_lies_around_the_value():
    value, (low, high) = frechet_interval(draw(0, 30, 20), draw(1, 30, 20), splits=20)
    assert 0 <= low < value < high and value - low == pytest.approx(high - value)


def test_halves_keep_groups_together_and_have_half_of_them():
    halves = half_samples(10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], 50, seed=0)
    assert halves.shape == (50, 10) and (halves.sum(dim=1) == 4).all()
    assert torch.equal(halves[:, 0::2], halves[:, 1::2])
    assert halves.double().mean(dim=0).std() < 0.1  # every group has its turn


@pytest.mark.parametrize("interval", [frechet_interval, kernel_interval])
def test_three_sounds_have_a_distance_but_no_interval(interval):
    value, (low, high) = interval(draw(0, 3, 2), draw(1, 3, 2), splits=5)
    assert math.isfinite(value) and math.isnan(low) and math.isnan(high)


def test_floor_equals_the_distance_of_sounds_that_do_not_differ():
    everything = draw(0, 240, 4)
    found = floors(everything[:120], everything[120:], splits=30)
    for floor in found.values():
        assert floor.sounds == 60
        low, high = floor.range
        assert low <= floor.reference <= high and low <= floor.ours <= high


def test_floor_lies_below_sounds_that_differ():
    found = floors(draw(0, 80, 4, shift=0.7), draw(1, 160, 4), splits=20)
    assert all(floor.ours > floor.range[1] for floor in found.values())


def test_floor_needs_four_sounds_of_reference():
    with pytest.raises(ArgumentError, match="reference has 3 sounds; it has to have at least 4"):
        floors(draw(0, 5, 2), draw(1, 3, 2))
