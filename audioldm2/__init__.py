"""AudioLDM 2 in plain PyTorch: text in, sound out, every network written by hand.

import audioldm2
model = audioldm2.load("cvssp/audioldm2")
model.generate("Techno music with a strong beat").save("techno.wav")
"""

from audioldm2.checkpoints.load import load
from audioldm2.errors import WeightsError
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.prompt.encode import TruncationWarning
from audioldm2.result import Result
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule

__all__ = [
    "SAMPLERS",
    "AudioLDM2",
    "Conditioning",
    "NoiseSchedule",
    "Result",
    "TruncationWarning",
    "WeightsError",
    "load",
]
