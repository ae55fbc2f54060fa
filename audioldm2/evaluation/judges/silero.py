"""Silero's voice activity detector, from the package `silero-vad`."""

from collections.abc import Sequence

from torch import Tensor

from audioldm2.audio import resample
from audioldm2.evaluation.judges.package import import_judge

RATE = 16_000  # Hz


class SpeechShare:
    """The share of a sound's time in which somebody speaks, whatever the caption says."""

    figure = "speech, share of time"

    def __init__(self) -> None:
        self.package = import_judge("silero_vad", "silero-vad", "silero-vad")
        self.model = self.package.load_silero_vad()

    def judge(self, wave: Tensor, rate: int, captions: Sequence[str]) -> float | None:
        sound = resample(wave.float(), rate, RATE)
        spans = self.package.get_speech_timestamps(sound, self.model, sampling_rate=RATE)
        return sum(span["end"] - span["start"] for span in spans) / len(sound)
