"""The rules of the options for given sounds: each checks and normalises one value; raises ArgumentError."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2.audio import FASTEST_RATE, MAX_SECONDS, require_waves
from audioldm2.errors import ArgumentError, require_number, require_whole


def sound(name: str, value: Any) -> Path | Tensor | None:
    """The path of a file, or one sound (samples,)."""
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)):
        if not os.fspath(value):
            raise ArgumentError(name, value, "be a sound file")
        return Path(value)
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_nested or value.is_meta):
        raise ArgumentError(name, value, "be a sound file or floats (samples,)", given="has no dense data")
    wave = require_waves(name, value)
    if wave.ndim == 2 and len(wave) != 1:
        allowed = "be one sound, (samples,): average the channels of a stereo sound"
        raise ArgumentError(name, value, allowed, given=f"has shape {tuple(wave.shape)}")
    return wave.reshape(-1).to(torch.float32)


def sounds(name: str, value: Any) -> Path | Tensor | list[Path | Tensor] | None:
    """As `sound`; or a list of such sounds. A list of numbers is one sound."""
    kinds = (str, os.PathLike, Tensor, np.ndarray)
    if not isinstance(value, (list, tuple)) or not any(isinstance(each, kinds) for each in value):
        return sound(name, value)
    found = []
    for place, each in enumerate(value):
        one = sound(f"{name}[{place}]", each)
        if one is None:
            raise ArgumentError(f"{name}[{place}]", each, "be a sound file or floats (samples,)")
        found.append(one)
    return found


def sample_rate(name: str, value: Any) -> int | None:
    return None if value is None else require_whole(name, value, 1, FASTEST_RATE)


def heard(name: str, value: Any) -> int | None:
    return None if value is None else require_whole(name, value, 0)


def strength(name: str, value: Any) -> float | None:
    return None if value is None else require_number(name, value, 0, 1)


def positions(name: str, value: Any) -> tuple[float, ...] | None:
    """One number or several, of seconds or Hz."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        return (require_number(name, value, 0),)
    if not value:
        raise ArgumentError(name, value, "be a number or a list of at least one")
    return tuple(require_number(f"{name}[{i}]", each, 0) for i, each in enumerate(value))


def extension(name: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        require_number(name, value, 0, MAX_SECONDS)
    pair = value if isinstance(value, (list, tuple)) else (0.0, value)
    wanted = "be the seconds to add at the end, or two numbers (before, after), one of them above 0"
    if len(pair) != 2:
        raise ArgumentError(name, value, wanted)
    before, after = (require_number(f"{name}[{i}]", each, 0, MAX_SECONDS) for i, each in enumerate(pair))
    if before + after == 0:
        raise ArgumentError(name, value, wanted)
    return before, after


def repaint_mask(name: str, value: Any) -> Tensor | None:
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.dtype == bool:
        value = torch.from_numpy(value)
    wanted = "be a bool tensor (time, mel) or (batch, 1, time, mel) of latent cells, True where to remake"
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(name, value, wanted, given=f"is a {found}")
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        raise ArgumentError(name, value, wanted, given="is sparse, nested or without data")
    if value.ndim not in (2, 4) or (value.ndim == 4 and value.shape[1] != 1):
        raise ArgumentError(name, value, wanted, given=f"has shape {tuple(value.shape)}")
    if not value.any():
        raise ArgumentError(name, value, "mark at least one cell as True", given="marks nothing to remake")
    return value


def skip(name: str, value: Any) -> float:
    found = require_number(name, value, 0)
    if found >= 1:
        raise ArgumentError(name, value, "be below 1, so that a step is left")
    return found


def source_prompt(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ArgumentError(name, value, "be one text, which describes the sound")
    return value
