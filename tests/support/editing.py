"""Sounds, and requests that edit them, on the tiny model."""

import math

import pytest
import torch
from torch import Tensor

from audioldm2 import AudioLDM2, Result
from audioldm2.editing.edit import Edit
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

SHAPE = SoundShape(sample_rate=16000, hop=160, downsampling=4, latent_channels=8, mels=64)  # as published
SCHEDULE = NoiseSchedule()
RATE, CELL, FADE = 16_000, 640, 320  # samples of a latent frame and of a fade
FRAMES = 8
CLOSE = 1e-4  # relative: batches of other sizes are added up in another order
STEPS = 5


def tone(samples: int = FRAMES * CELL, level: float = 0.2, rate: int = RATE) -> Tensor:
    """A rising tone with an offset: (samples,)."""
    time = torch.arange(samples) / rate
    return level * torch.sin(2 * math.pi * (300 + 800 * time) * time) + 0.05


def broadband() -> Tensor:
    """The tone in noise, so that no band is near the floor, where rounding errors are large: (samples,)."""
    noise = torch.randn(FRAMES * CELL, generator=torch.Generator().manual_seed(1))
    return tone() + 0.05 * noise


def edit(model: AudioLDM2, prompt: str | list[str] = "a dog", **arguments) -> Result:
    return model.generate(prompt, **(dict(audio=tone(), num_inference_steps=STEPS) | arguments))


def resolved(audio: object = None, **arguments) -> Edit:
    audio = tone() if audio is None else audio
    found = Edit.resolve(GenerationOptions(audio=audio, **arguments), SHAPE, SCHEDULE, 1)
    assert found is not None
    return found


def refused(**arguments) -> str:
    with pytest.raises(ArgumentError) as caught:
        resolved(**arguments)
    return str(caught.value)
