"""All randomness of training: a function of the run's seed and of where in the run it is, of nothing else.

So a run that goes on where it was stopped draws what it would have drawn. Each function takes what the
chance is for, so that two uses at the same place have nothing to do with each other, and some whole numbers
from 0 on, such as the seed, the step and the place in the batch.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def rng(purpose: str, *numbers: int) -> np.random.Generator:
    """NumPy's generator."""
    return np.random.default_rng(_sequence(purpose, numbers))


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """PyTorch's, on the CPU: what is drawn is the same on every device."""
    return torch.Generator().manual_seed(_seed(purpose, numbers))


@contextmanager
def chance(device: torch.device, purpose: str, *numbers: int) -> Iterator[None]:
    """PyTorch's global generators follow the numbers inside the block, and are as they were after it.

    For what cannot be given a generator of its own: dropout, and modules that fill themselves.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(purpose, numbers))
        yield


def _sequence(purpose: str, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers])


def _seed(purpose: str, numbers: tuple[int, ...]) -> int:
    return int(_sequence(purpose, numbers).generate_state(1, np.uint64)[0] >> 1)
