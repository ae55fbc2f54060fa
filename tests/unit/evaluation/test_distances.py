"""Distances of two sets of vectors, where their values are known."""

import numpy as np
import pytest
import torch

from audioldm2.errors import ArgumentError
from audioldm2.evaluation import distances
from audioldm2.evaluation.distances import KAD_SCALE, frechet_distance, kernel_distance, median_distance


def test_frechet_distance_of_normal_distributions():
    rng = np.random.default_rng(0)
    sounds = rng.standard_normal((4000, 3)) * [1.0, 2.0, 3.0]
    reference = rng.standard_normal((4000, 3)) * [2.0, 2.0, 1.0] + [5.0, 0.0, 0.0]
    # |difference of means|², and for uncorrelated axes the squared differences of their deviations
    expected = 25 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2
    assert frechet_distance(sounds, reference) == pytest.approx(expected, rel=0.03)


def test_frechet_distance_of_shifted_sets_is_the_squared_shift():
    sounds = np.random.default_rng(0).standard_normal((50, 4))
    assert frechet_distance(sounds, sounds + np.array([3.0, 0, 4.0, 0])) == pytest.approx(25, abs=1e-9)


@pytest.mark.parametrize("count", [5, 60])  # fewer and more than the dimensions
def test_frechet_distance_of_a_set_from_itself_is_zero(count):
    sounds = np.random.default_rng(0).standard_normal((count, 16))
    assert frechet_distance(sounds, sounds[::-1].copy()) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_sets_of_different_size_needs_no_full_rank():
    rng = np.random.default_rng(1)
    few, many = rng.standard_normal((6, 16)), rng.standard_normal((40, 16))
    repeated = np.concatenate([few] * 7)  # the same covariance, but for the factor 1 / (n - 1)
    scaled = (repeated - few.mean(axis=0)) * (41 / 42 * 6 / 5) ** 0.5 + few.mean(axis=0)
    assert frechet_distance(few, many) == pytest.approx(frechet_distance(scaled, many), abs=1e-9)


def test_kernel_distance_is_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((33, 4))
    whole = kernel_distance(x, y)
    monkeypatch.setattr(distances, "BLOCK", 7)
    assert kernel_distance(x, y) == pytest.approx(whole, abs=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    found = [kernel_distance(*rng.standard_normal((2, 10, 3)), 2.0) for _ in range(600)]
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 3 * error and min(found) < 0


def test_kernel_distance_of_normal_distributions_has_its_closed_form():
    """For N(0, 1) and N(s, 1) in each axis: 2 (1 - exp(-s² / (2 (w² + 2)))) (w² / (w² + 2))^(1/2)."""
    rng, width, shift = np.random.default_rng(0), 1.5, 2.0
    x, y = rng.standard_normal((2000, 1)) + shift, rng.standard_normal((2000, 1))
    wide = width**2 + 2
    expected = 2 * (1 - np.exp(-(shift**2) / (2 * wide))) * (width**2 / wide) ** 0.5
    assert kernel_distance(x, y, width) == pytest.approx(KAD_SCALE * expected, rel=0.05)


def test_bandwidth_is_the_median_distance_of_the_reference():
    points = np.array([[0.0], [1.0], [4.0]])  # distances 1, 3 and 4
    assert median_distance(points) == 3
    rng = np.random.default_rng(0)
    sounds, reference = rng.standard_normal((2, 9, 3))
    assert kernel_distance(sounds, reference) == kernel_distance(
        sounds, reference, median_distance(reference)
    )


def test_reference_of_copies_has_no_bandwidth():
    with pytest.raises(ArgumentError, match="reference holds mostly copies of one sound"):
        median_distance(np.ones((5, 3)))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("ours", "theirs", "name"), [(1, 5, "sounds"), (5, 1, "reference"), (0, 5, "sounds")]
)
def test_distance_needs_two_sounds(distance, ours, theirs, name):
    with pytest.raises(ArgumentError, match=f"^{name} has (one|no) sound; it has to have at least two"):
        distance(np.zeros((ours, 3)), np.zeros((theirs, 3)))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distance_refuses_nan(distance):
    broken = torch.zeros(4, 3)
    broken[1, 2] = torch.nan
    with pytest.raises(ArgumentError, match=r"^reference has 1 vectors of 4 with NaN"):
        distance(torch.randn(4, 3), broken)
