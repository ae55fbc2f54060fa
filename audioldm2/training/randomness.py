"""Random generators for training: each is a function of the run's seed and of the position in the run alone.

A resumed run therefore draws what the uninterrupted run would have drawn. Every function takes a purpose,
which keeps two uses at the same position independent, and non-negative whole numbers such as the seed, the
step and the index in the batch.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def rng(purpose: str, *numbers: int) -> np.random.Generator:
    """Returns a NumPy generator."""
    return np.random.default_rng(_sequence(purpose, numbers))


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Returns a PyTorch generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(_seed(purpose, numbers))


@contextmanager
def forked_rng(device: torch.device, purpose: str, *numbers: int) -> Iterator[None]:
    """Seeds PyTorch's global generators inside the block and restores them after it.

    For code that accepts no generator: dropout, and modules that initialize their own weights.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(purpose, numbers))
        yield


def _sequence(purpose: str, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers])


def _seed(purpose: str, numbers: tuple[int, ...]) -> int:
    return int(_sequence(purpose, numbers).generate_state(1, np.uint64)[0] >> 1)
