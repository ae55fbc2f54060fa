"""AudioLDM 2 in plain PyTorch: text in, sound out, every network written by hand.

import audioldm2
model = audioldm2.load("cvssp/audioldm2")
model.generate("Techno music with a strong beat").save("techno.wav")
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from audioldm2 import renamed
from audioldm2.checkpoints.load import load
from audioldm2.errors import WeightsError
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import TruncationWarning
from audioldm2.result import Result
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.speaking import Speech, speak

__all__ = [
    "SAMPLERS",
    "AudioLDM2",
    "Conditioning",
    "NoiseSchedule",
    "Result",
    "Speech",
    "TruncationWarning",
    "WeightsError",
    "load",
    "speak",
]

renamed.register(__name__)

if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> ModuleType:
        """Modules of version 0.1 (see `renamed`)."""
        if name in renamed.MOVED:
            return sys.modules[f"{__name__}.{name}"]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
