"""Distances against implementations of their own, in SciPy and in plain loops."""

import numpy as np
import pytest

from audioldm2.evaluation import frechet_distance, kernel_distance, median_distance

linalg = pytest.importorskip("scipy.linalg")


def unit_vectors(seed: int, count: int, dim: int) -> np.ndarray:
    """As CLAP's: float32, norm 1, around a common direction."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim)) * np.linspace(1, 0.2, dim) + 0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("ours", "theirs"), [(80, 120), (40, 300)])
def test_frechet_distance_equals_the_one_with_scipys_matrix_root(ours, theirs):
    x, y = unit_vectors(0, ours, 24), unit_vectors(1, theirs, 24)
    a, b = (np.cov(each.astype(np.float64), rowvar=False) for each in (x, y))
    means = x.astype(np.float64).mean(axis=0) - y.astype(np.float64).mean(axis=0)
    root = linalg.sqrtm(a @ b).real
    expected = means @ means + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-6)


def test_kernel_distance_equals_a_double_loop():
    x, y = (each.astype(np.float64) for each in (unit_vectors(0, 30, 16), unit_vectors(1, 41, 16)))
    apart = sorted(np.linalg.norm(y[i] - y[j]) for i in range(len(y)) for j in range(i))
    width = (apart[len(apart) // 2] + apart[(len(apart) - 1) // 2]) / 2
    assert median_distance(y) == pytest.approx(width, abs=1e-12)

    def mean(one: np.ndarray, other: np.ndarray, same: bool) -> float:
        values = [
            np.exp(-np.sum((u - v) ** 2) / (2 * width**2))
            for i, u in enumerate(one)
            for j, v in enumerate(other)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    expected = 100 * (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))
    assert kernel_distance(x, y) == pytest.approx(expected, abs=1e-6)
