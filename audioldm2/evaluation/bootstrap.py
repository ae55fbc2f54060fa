"""Intervals of 95 % from resampled sounds, and the distance of the reference from itself.

A mean is resampled as usual: as many sounds, drawn with replacement, and the percentiles of their means.

A distance is not. Its value depends on how many different sounds there are, and a sample with replacement has
only 63 % of them: it makes FD larger than any sample of real sounds would, so that the usual interval often
lies wholly above the value itself. Here the sets are halved at random without replacement instead. The
spread of a statistic over half samples equals, to first order, its spread over new samples of the full size
(McCarthy 1969, "Pseudo-replication: half samples"); the larger bias of the halves drops out, since only their
spread is used. The interval is about the mean of the statistic at this number of sounds, not about its limit
for infinitely many.

The unit is a group of sounds: those of one prompt, where there are several seeds.
`scripts/plot_small_samples.py` measures how often each kind of interval holds the truth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    kernel_distances,
    median_distance,
    require_vectors,
)

NORMAL_95 = 1.959964  # the 97.5 % point of the standard normal distribution
MEANS = 2000  # resamples of a mean
HALVES = 100  # half samples of a distance: their standard deviation is right to 7 %
SPLITS = 50  # of the reference, for the floor

Interval = tuple[float, float]
Statistic = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Floor:
    """What a distance is between sounds that do not differ, and between the two sets at the same size."""

    sounds: int  # on each side
    reference: float  # mean distance of two disjoint sets of reference
    range: Interval  # 95 % of the splits
    ours: float  # mean distance of so many sounds from so many of reference


def mean_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[int] | None = None, *, seed: int = 0
) -> Interval:
    """Compute the 95 % interval of a mean by bootstrap over groups.

    Where all groups agree the bootstrap has no spread. For values of 0 or 1, such as hits, the interval is
    then Wilson's for so many groups: 20 hits of 20 are 0.84 to 1.

    Args:
        values: one a sound.
        groups: of each value; None where each is its own.
        seed: of the resampling.

    Raises:
        ArgumentError: there are no values.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ArgumentError("values", values, "have at least one", given="is empty")
    _, places = np.unique(np.arange(len(found)) if groups is None else groups, return_inverse=True)
    sums, counts = np.bincount(places, found), np.bincount(places)
    if np.ptp(found) == 0 and found[0] in (0, 1):
        return _wilson(found[0], len(sums))
    rng = np.random.default_rng(seed)
    means = [
        sums[drawn].sum() / counts[drawn].sum()
        for drawn in (rng.integers(len(sums), size=len(sums)) for _ in range(MEANS))
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _wilson(share: float, n: int) -> Interval:
    """Wilson's 95 % interval of a share of n."""
    z2 = NORMAL_95**2
    centre, spread = share + z2 / (2 * n), math.sqrt(share * (1 - share) * z2 / n + z2**2 / (4 * n**2))
    return max(0.0, (centre - spread) / (1 + z2 / n)), min(1.0, (centre + spread) / (1 + z2 / n))


def frechet_interval(
    sounds: Tensor,
    reference: Tensor,
    groups: Sequence[int] | None = None,
    *,
    halves: int = HALVES,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Compute FD-CLAP and its 95 % interval.

    Args:
        sounds, reference: vectors (sounds, dim).
        groups: of the sounds; None where each is its own.
        halves: number of half samples.
        seed: of the halves.

    Returns:
        The distance, and an interval for its mean at these numbers of sounds.
    """
    x, y = require_vectors("sounds", sounds), require_vectors("reference", reference)
    value = frechet_distance(x, y)
    of_sounds, of_reference = (
        half_samples(len(x), groups, halves, seed),
        half_samples(len(y), None, halves, seed + 1),
    )
    found = [
        frechet_distance(x[ours], y[theirs])
        for ours, theirs in zip(of_sounds.bool(), of_reference.bool(), strict=True)
        if min(ours.sum(), theirs.sum()) > 1
    ]
    low, high = _around(value, found)
    return value, (max(0.0, low), high)


def kernel_interval(
    sounds: Tensor,
    reference: Tensor,
    groups: Sequence[int] | None = None,
    *,
    halves: int = MEANS,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Compute KAD-CLAP and its 95 % interval; arguments as in `frechet_interval`.

    The bandwidth stays that of the whole reference.
    """
    x, y = require_vectors("sounds", sounds), require_vectors("reference", reference)
    width = median_distance(y)
    of_sounds, of_reference = (
        half_samples(len(x), groups, halves, seed),
        half_samples(len(y), None, halves, seed + 1),
    )
    whole = torch.ones(1, len(x)), torch.ones(1, len(y))
    found = kernel_distances(
        x, y, width, torch.cat([whole[0], of_sounds]), torch.cat([whole[1], of_reference])
    )
    value, rest = found[0].item(), found[1:]
    return value, _around(value, rest[rest.isfinite()].tolist())


def half_samples(sounds: int, groups: Sequence[int] | None, count: int, seed: int) -> Tensor:
    """Draw random halves of some sounds, without replacement and group by group.

    An odd group out belongs to every second half.

    Returns:
        float32 (count, sounds): 1 for the sounds of a half.
    """
    _, places = np.unique(np.arange(sounds) if groups is None else groups, return_inverse=True)
    number, rng = places.max() + 1, np.random.default_rng(seed)
    halves = np.zeros((count, number), dtype=np.float32)
    for turn, half in enumerate(halves):
        half[rng.permutation(number)[: (number + turn % 2) // 2]] = 1
    return torch.from_numpy(halves[:, places])


def _around(value: float, of_halves: Sequence[float]) -> Interval:
    """The interval around a value, from the values of half samples; NaN where there are too few of them."""
    spread = NORMAL_95 * float(np.std(of_halves, ddof=1)) if len(of_halves) > 1 else math.nan
    return value - spread, value + spread


def floors(
    sounds: Tensor,
    reference: Tensor,
    groups: Sequence[int] | None = None,
    *,
    splits: int = SPLITS,
    seed: int = 0,
) -> dict[str, Floor]:
    """Compute the distances of the reference from itself: it is split in two, many times.

    Both sides of a split have as many sounds as there are, or half of the reference where that is less, and
    so have the sounds that are compared beside it: the bias of FD is the same in `ours` and `reference`.

    Args:
        sounds, reference: vectors (sounds, dim).
        groups: of the sounds; they are drawn group by group, as far as that comes out even.
        splits: how many.
        seed: of the splits.

    Returns:
        {"FD-CLAP": ..., "KAD-CLAP": ...}.

    Raises:
        ArgumentError: the reference has fewer than four sounds, or there are fewer than two sounds.
    """
    x, y = require_vectors("sounds", sounds), require_vectors("reference", reference, least=4)
    size, width, rng = min(len(x), len(y) // 2), median_distance(y), np.random.default_rng(seed)
    names = np.arange(len(x)) if groups is None else np.asarray(groups)
    found: dict[str, list[tuple[float, float]]] = {"FD-CLAP": [], "KAD-CLAP": []}
    statistics: dict[str, Statistic] = {
        "FD-CLAP": frechet_distance,
        "KAD-CLAP": lambda ours, theirs: kernel_distance(ours, theirs, width),
    }
    for _ in range(splits):
        order = rng.permutation(len(y))
        one, other = y[order[:size]], y[order[size : 2 * size]]
        ranks = rng.permutation(names.max() + 1)[names]  # sounds of a group stay together
        ours = x[np.argsort(ranks, kind="stable")[:size]]
        for name, statistic in statistics.items():
            found[name].append((statistic(one, other), statistic(ours, one)))
    result = {}
    for name, pairs in found.items():
        theirs, own = np.asarray(pairs).T
        low, high = np.quantile(theirs, [0.025, 0.975])
        result[name] = Floor(size, float(theirs.mean()), (float(low), float(high)), float(own.mean()))
    return result
