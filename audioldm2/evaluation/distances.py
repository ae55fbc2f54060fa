"""How far a set of sounds lies from a set of reference, measured on CLAP's vectors in float64.

`FD-CLAP` compares the normal distributions fitted to the two sets, `KAD-CLAP` the sets themselves. FD is
biased upward in small samples, by about (dim / sounds) times the spread of the vectors; KAD has no bias and
may therefore be slightly negative. "FAD" is the Frechet distance on VGGish's vectors, which this is not.
"""

import numpy as np
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError

KAD_SCALE = 100.0  # as kadtk, the toolkit of the paper, multiplies the squared MMD
MOST_FOR_BANDWIDTH = 4096  # sounds of reference whose pairs decide the bandwidth: 8 million pairs
BLOCK = 1024  # rows of a kernel matrix at once, so that memory stays flat


def require_vectors(name: str, vectors: Tensor | np.ndarray, least: int = 2) -> Tensor:
    """Vectors as float64 (sounds, dim) on the CPU; ArgumentError for too few, or NaN."""
    found = torch.as_tensor(vectors).to("cpu", torch.float64)
    if found.ndim != 2:
        given = f"has shape {tuple(found.shape)}"
        raise ArgumentError(name, vectors, "have shape (sounds, dim)", given=given)
    if len(found) < least:
        given = {0: "has no sound", 1: "has one sound"}.get(len(found), f"has {len(found)} sounds")
        number = "two" if least == 2 else str(least)
        raise ArgumentError(name, vectors, f"have at least {number} for a distance", given=given)
    broken = int((~found.isfinite()).any(dim=1).sum())
    if broken:
        given = f"has {broken} vectors of {len(found)} with NaN or infinite values"
        raise ArgumentError(name, vectors, "be finite", given=given)
    return found


def frechet_distance(sounds: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> float:
    """Compute the squared Frechet distance of the normal distributions fitted to two sets of vectors.

    |mean difference|² + tr(A) + tr(B) - 2 tr((A B)^½), with covariances A and B, as in FID (Heusel et al.
    2017, arXiv 1706.08500). With A = X'X and B = Y'Y of centred rows, the last trace is the sum of the
    singular values of X Y'. No matrix root is taken, so sets smaller than `dim` need no special care.

    Args:
        sounds, reference: (sounds, dim) each.

    Returns:
        At least 0; smaller is nearer. Biased upward: compare only values from equally many sounds.

    Raises:
        ArgumentError: a set has fewer than two vectors, or NaN.
    """
    ours, theirs = require_vectors("sounds", sounds), require_vectors("reference", reference)
    between = (ours.mean(dim=0) - theirs.mean(dim=0)).square().sum()
    x, y = _covariance_factor(ours), _covariance_factor(theirs)
    cross = torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, (between + x.square().sum() + y.square().sum() - 2 * cross).item())


def _covariance_factor(vectors: Tensor) -> Tensor:
    """A matrix F with F'F = the covariance of the rows, and at most `dim` rows."""
    centred = (vectors - vectors.mean(dim=0)) / (len(vectors) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def median_distance(reference: Tensor | np.ndarray) -> float:
    """Compute the kernel's bandwidth: the median distance of pairs of the reference.

    Sets of more than 4,096 sounds contribute 4,096 evenly spaced ones.

    Raises:
        ArgumentError: fewer than two vectors, NaN, or more than half of the pairs are equal.
    """
    vectors = require_vectors("reference", reference)
    if len(vectors) > MOST_FOR_BANDWIDTH:
        vectors = vectors[torch.linspace(0, len(vectors) - 1, MOST_FOR_BANDWIDTH).long()]
    found = float(np.median(torch.pdist(vectors).numpy()))
    if found == 0:
        raise ArgumentError(
            "reference",
            reference,
            "hold different sounds, or the kernel has no width",
            given="holds mostly copies of one sound",
        )
    return found


def kernel_distance(
    sounds: Tensor | np.ndarray, reference: Tensor | np.ndarray, bandwidth: float | None = None
) -> float:
    """Compute 100 times the unbiased squared maximum mean discrepancy of two sets, with a Gaussian kernel.

    Chung et al. 2025, "KAD: No More FAD!" (arXiv 2502.15602); the estimator is equation 3 of Gretton et al.
    2012, "A kernel two-sample test".

    Args:
        sounds, reference: (sounds, dim) each.
        bandwidth: of the kernel exp(-d² / (2 bandwidth²)); None for `median_distance(reference)`.

    Returns:
        Smaller is nearer. Two samples of one distribution give 0 on average, so it may be negative.

    Raises:
        ArgumentError: a set has fewer than two vectors, or NaN.
    """
    ours, theirs = require_vectors("sounds", sounds), require_vectors("reference", reference)
    weights = torch.ones(1, len(ours)), torch.ones(1, len(theirs))
    return kernel_distances(ours, theirs, bandwidth, *weights)[0].item()


def kernel_distances(
    sounds: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    bandwidth: float | None,
    of_sounds: Tensor,
    of_reference: Tensor,
) -> Tensor:
    """Compute `kernel_distance` of many pairs of subsets; every kernel value is computed once.

    Args:
        sounds, reference, bandwidth: as in `kernel_distance`.
        of_sounds: 1 for each sound of a subset, 0 for the others: (subsets, sounds).
        of_reference: the same for the reference: (subsets, sounds of reference).

    Returns:
        float64 (subsets,).
    """
    x, y = require_vectors("sounds", sounds), require_vectors("reference", reference)
    width = median_distance(y) if bandwidth is None else bandwidth
    u, v = of_sounds.double(), of_reference.double()
    within = [
        (_kernel_sums(each, each, width, rows, rows) - rows.sum(dim=1))  # the diagonal is 1
        / (rows.sum(dim=1) * (rows.sum(dim=1) - 1))
        for each, rows in ((x, u), (y, v))
    ]
    across = _kernel_sums(x, y, width, u, v) / (u.sum(dim=1) * v.sum(dim=1))
    return KAD_SCALE * (within[0] + within[1] - 2 * across)


def _kernel_sums(x: Tensor, y: Tensor, width: float, u: Tensor, v: Tensor) -> Tensor:
    """The sum of u_i v_j k(x_i, y_j) for each row of u (subsets, len(x)) and v (subsets, len(y))."""
    total = u.new_zeros(len(u))
    for rows, weights in zip(x.split(BLOCK), u.split(BLOCK, dim=1), strict=True):
        for columns, other_weights in zip(y.split(BLOCK), v.split(BLOCK, dim=1), strict=True):
            apart = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
            kernel = torch.exp(apart.square() / (-2 * width**2))  # (rows, columns)
            total += ((weights @ kernel) * other_weights).sum(dim=1)
    return total
