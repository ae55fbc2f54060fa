"""The interval of a mean of few paired differences."""

import math
import statistics
from collections.abc import Sequence


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.4 % from 3 degrees of freedom on, exact for 1 and 2.

    Source: Hill 1970 in the form of Abramowitz and Stegun 26.7.5, four terms.
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 2 * 0.475 * math.sqrt(2 / (1 - 4 * 0.475**2))
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def mean_and_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of independent differences and its 95 % interval by Student's t; infinite for one alone."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    half = student_t(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half
