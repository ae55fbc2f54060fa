"""The check that a caller's array is a sound, and the level at which the VAE encodes sounds."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError

PEAK = 0.5  # of a sound that the VAE encodes, in training and in editing
SILENCE = 1e-6  # largest magnitude, without the mean, of a sound that counts as silent: -120 dB


def require_waves(name: str, value: Any, *, most_dims: int = 2) -> Tensor:
    """Return a caller's waves as a tensor.

    Args:
        name:      the argument's name, for the message.
        value:     a PyTorch tensor or a NumPy array of floats, full scale at ±1: (samples,) or
                   (sounds, samples). A list of floats works too.
        most_dims: 1 to accept only (samples,).

    Returns:
        The tensor itself, detached; a NumPy array as a float32 copy on the CPU.

    Raises:
        ArgumentError: integers (divide 16-bit samples by 32768), complex numbers, another shape, or no array.
    """
    shapes = "(samples,)" if most_dims == 1 else "(samples,) or (sounds, samples)"
    allowed = f"be floats in [-1, 1], {shapes}, with one sample or more"
    found: Tensor | np.ndarray
    given: str | None
    if isinstance(value, Tensor):
        found, is_float = value.detach(), value.is_floating_point()
    else:
        try:
            found = np.asarray(value)
        except ValueError as error:  # a list of lists of different lengths
            given = f"is a {type(value).__name__} of unequal parts"
            raise ArgumentError(name, value, allowed, given=given) from error
        is_float = found.dtype.kind == "f"
    if not is_float or not 1 <= found.ndim <= most_dims:
        dtype = str(found.dtype).removeprefix("torch.")
        if found.ndim and dtype != "object":
            given = f"is {dtype} {tuple(found.shape)}"
        else:  # the text of an array may have several lines, that of these has not
            given = (
                None if isinstance(value, (str, int, float, type(None))) else f"is a {type(value).__name__}"
            )
        raise ArgumentError(name, value, allowed, given=given)
    if isinstance(found, Tensor):
        return found
    with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite, which callers report
        return torch.from_numpy(np.array(found, dtype=np.float32, order="C"))  # native byte order, writable


def mean_and_peak(wave: Tensor) -> tuple[float, float]:
    """Measure what brings a sound to the level at which the published models were trained.

    That level is `(wave - mean) * (PEAK / peak)`; a sound whose peak is not above SILENCE has none.

    Args:
        wave: floats (samples,), one sample or more.

    Returns:
        The mean, and the largest magnitude without it.

    Source: `normalize_wav` in upstream's audioldm_train/utilities/data/dataset.py.
    """
    mean = wave.double().mean().item()
    return mean, (wave - mean).abs().max().item()
