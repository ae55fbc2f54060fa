"""Intervals of 95 % from resampled sounds, and the distance of the reference from itself.

A mean is resampled as usual: as many sounds, drawn with replacement, and the percentiles of their means.

A distance is not. Its value depends on how many different sounds there are, and a sample with replacement has
only 63 % of them: it makes FD larger than any sample of real sounds would, so that the usual interval often
lies wholly above the value itself. Here both sets are split into halves at random, without replacement, many
times. The two halves of a split are independent samples of half the size: half of their mean squared
difference is the variance of the distance at half the size, and a quarter of it the variance at the full
size, if that falls as 1/sounds. It falls faster where the two sets come from almost the same distribution;
there the interval is wider than it need be. (McCarthy 1969, "Pseudo-replication: half samples".)

The larger bias of the halves drops out, since both have it. The interval is therefore about the mean of the
distance at this number of sounds, not about its limit for infinitely many.

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
AT_ONCE = 100  # of those, so that memory stays flat
FRECHET_SPLITS = 100  # into halves: each takes a tenth of a second at the published width of 512
KERNEL_SPLITS = 1000
FLOOR_SPLITS = 50

Interval = tuple[float, float]
Statistic = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Floor:
    """What a distance is between sounds that do not differ, and between the two sets at the same size."""

    sounds: int  # on each side
    reference: float  # mean distance of two disjoint sets of reference
    range: Interval  # 95 % of the splits
    ours: float  # mean distance of `sounds` sounds from as many of reference


def mean_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[int] | None = None, *, seed: int = 0
) -> Interval:
    """Compute the 95 % interval of a mean by bootstrap over groups.

    Where all groups agree the bootstrap has no spread. For values of 0 or 1, such as hits, the interval is
    then Wilson's for that number of groups: 20 hits of 20 give 0.84 to 1.

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
    means = []
    for _ in range(0, MEANS, AT_ONCE):
        drawn = rng.integers(len(sums), size=(AT_ONCE, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
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
    splits: int = FRECHET_SPLITS,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Compute FD-CLAP and its 95 % interval.

    Args:
        sounds, reference: vectors (sounds, dim).
        groups: of the sounds; None where each is its own.
        splits: how often both sets are halved.
        seed: of the splits.

    Returns:
        The distance, and an interval for its mean at these numbers of sounds; NaN where a half would have
        fewer than two sounds.
    """
    x, y = require_vectors("sounds", sounds), require_vectors("reference", reference)
    value = frechet_distance(x, y)
    first = half_samples(len(x), groups, splits, seed), half_samples(len(y), None, splits, seed + 1)
    if not _can_halve(*first):
        return value, (math.nan, math.nan)
    one, other = (
        [frechet_distance(x[ours], y[theirs]) for ours, theirs in zip(*halves, strict=True)]
        for halves in (first, [~half for half in first])
    )
    low, high = _around(value, one, other, min(_count(groups, x), len(y)))
    return value, (max(0.0, low), high)


def kernel_interval(
    sounds: Tensor,
    reference: Tensor,
    groups: Sequence[int] | None = None,
    *,
    splits: int = KERNEL_SPLITS,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Compute KAD-CLAP and its 95 % interval; arguments as in `frechet_interval`.

    The bandwidth stays that of the whole reference.
    """
    x, y = require_vectors("sounds", sounds), require_vectors("reference", reference)
    first = half_samples(len(x), groups, splits, seed), half_samples(len(y), None, splits, seed + 1)
    everything = torch.ones(1, len(x), dtype=torch.bool), torch.ones(1, len(y), dtype=torch.bool)
    of_sounds, of_reference = (
        torch.cat([all_of_them, half, ~half]) for all_of_them, half in zip(everything, first, strict=True)
    )
    found = kernel_distances(x, y, median_distance(y), of_sounds, of_reference)
    value = found[0].item()
    if not _can_halve(*first):
        return value, (math.nan, math.nan)
    one, other = found[1:].view(2, splits).tolist()
    return value, _around(value, one, other, min(_count(groups, x), len(y)))


def half_samples(sounds: int, groups: Sequence[int] | None, count: int, seed: int) -> Tensor:
    """Draw random halves of some sounds, group by group.

    Returns:
        bool (count, sounds), True for the sounds of a half. The other half has an odd group out.
    """
    _, places = np.unique(np.arange(sounds) if groups is None else groups, return_inverse=True)
    number, rng = places.max() + 1, np.random.default_rng(seed)
    order = rng.random((count, number)).argsort(axis=1)  # a random permutation in each row
    return torch.from_numpy((order < number // 2)[:, places])


def _count(groups: Sequence[int] | None, sounds: Tensor) -> int:
    return len(sounds) if groups is None else len(set(groups))


def _can_halve(*halves: Tensor) -> bool:
    """Whether every half, and every rest, has the two sounds that a distance needs."""
    return all(int(each.sum(dim=1).min()) > 1 for half in halves for each in (half, ~half))


def _around(value: float, one: Sequence[float], other: Sequence[float], groups: int) -> Interval:
    """The interval around a value, from the values of the two halves of each split.

    Where the variance falls as 1/sounds², a quarter of the halves' squared difference is two thirds of the
    variance among halves of one sample, and it is never less: estimates below that are noise.

    groups: of the smaller set, for Student's distribution.
    """
    among = (np.var(one, ddof=1) + np.var(other, ddof=1)) / 2
    variance = max(float(np.var(np.subtract(one, other), ddof=1)) / 4, 2 / 3 * float(among))
    spread = _student_95(groups - 1) * math.sqrt(variance)
    return value - spread, value + spread


def _student_95(freedom: int) -> float:
    """The 97.5 % point of Student's distribution, to 1 % from 8 degrees of freedom on."""
    return NORMAL_95 + (NORMAL_95**3 + NORMAL_95) / (4 * freedom)


def floors(
    sounds: Tensor,
    reference: Tensor,
    groups: Sequence[int] | None = None,
    *,
    splits: int = FLOOR_SPLITS,
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
