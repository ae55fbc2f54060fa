"""A sound as the prompt: read, checked and cut to what AudioMAE reads. No network runs here."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from audioldm2.audio import PEAK, SAMPLE_RATE, SILENCE, mean_and_peak, read
from audioldm2.audio.fbank import HOP
from audioldm2.editing.input_sound import InputSound
from audioldm2.errors import ArgumentError
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.options import GenerationOptions
from audioldm2.prompt.encode import TruncationWarning


@dataclass(frozen=True, eq=False)
class SoundPrompt:
    """A sound at AudioMAE's rate, 16 kHz."""

    wave: Tensor  # float32 (samples,) on the CPU, as loud as it was given
    label: str  # what messages call it
    record: dict[str, Any]  # of the sound as it was given, as plain values for JSON

    @classmethod
    def prepare(cls, wave: Tensor, sample_rate: int, label: str, name: str | None = None) -> "SoundPrompt":
        """Resample a sound (samples,) and check it; see `InputSound.prepare`."""
        sound = InputSound.prepare(wave, sample_rate, SAMPLE_RATE, label, name)
        return cls(sound.wave, label, sound.record())

    def cut(self, config: AudioMAEConfig) -> "SoundPrompt":
        """The first stretch, which AudioMAE reads.

        Raises:
            ArgumentError: it is silent.

        Warns (TruncationWarning) of a sound that is longer.
        """
        samples = config.frames * HOP
        wave, seconds = self.wave[:samples], samples / SAMPLE_RATE
        if len(wave) < len(self.wave):
            whole = len(self.wave) / SAMPLE_RATE
            warnings.warn(
                f"{self.label} lasts {whole:.4g} s; AudioMAE reads its first {seconds:g} s.",
                TruncationWarning,
                stacklevel=2,
            )
        if not mean_and_peak(wave)[1] > SILENCE:
            allowed = f"be louder than -120 dB in its first {seconds:g} s, which AudioMAE reads"
            raise ArgumentError(self.label, wave, allowed, given="begins with silence")
        return replace(self, wave=wave)

    @property
    def normalized(self) -> Tensor:
        """The wave at the level of the model's own sounds: without its mean, at a peak of 0.5."""
        mean, peak = mean_and_peak(self.wave)
        return (self.wave - mean) * (PEAK / peak)


def texts_beside(options: GenerationOptions) -> list[str]:
    """An empty text for each sound prompt, where no text was given. Raises ArgumentError without both."""
    if options.audio_prompt is None:
        allowed = "be a text or a list of at least one text, unless there is an audio_prompt"
        raise ArgumentError("prompt", None, allowed)
    return [""] * (len(options.audio_prompt) if isinstance(options.audio_prompt, list) else 1)


def read_sound_prompts(
    options: GenerationOptions, prompts: int, sample_rate: int
) -> list[SoundPrompt] | None:
    """Read the sound prompt of each prompt; None without `audio_prompt`.

    Args:
        options: what was asked for.
        prompts: how many there are.
        sample_rate: the model's, Hz: by default that of sounds that are not files.

    Raises:
        ArgumentError: a sound cannot be used, their number does not fit, or an option has no sound.
        OSError: a file cannot be opened.
    """
    given, rate = options.audio_prompt, options.audio_prompt_sample_rate
    if given is None:
        for name in ("audio_prompt_sample_rate", "heard"):
            if getattr(options, name) is not None:
                raise ArgumentError(name, getattr(options, name), "be left out without a sound prompt")
        return None
    if not isinstance(given, list):
        return [_read(given, rate, sample_rate, "audio_prompt")] * prompts
    if len(given) != prompts:
        allowed, count = "have one for each prompt, or be one sound for all", len(given)
        raise ArgumentError(
            "audio_prompt", given, allowed, given=f"has {count} entries for {prompts} prompts"
        )
    found: dict[Any, SoundPrompt] = {}
    for place, sound in enumerate(given):
        if _key(sound) not in found:
            found[_key(sound)] = _read(sound, rate, sample_rate, f"audio_prompt[{place}]")
    return [found[_key(sound)] for sound in given]


def _key(sound: Path | Tensor) -> Any:
    return sound if isinstance(sound, Path) else id(sound)


def _read(sound: Path | Tensor, rate: int | None, model_rate: int, label: str) -> SoundPrompt:
    if isinstance(sound, Tensor):
        return SoundPrompt.prepare(sound, rate or model_rate, label)
    if rate is not None:
        allowed = "be left out for a file, which has its own"
        raise ArgumentError("audio_prompt_sample_rate", rate, allowed)
    wave, own_rate = read(sound)
    return SoundPrompt.prepare(wave, own_rate, str(sound), sound.name)


def cut(sounds: Sequence[SoundPrompt], config: AudioMAEConfig) -> list[SoundPrompt]:
    """What AudioMAE reads of some sounds; the same object for the same sound. See `SoundPrompt.cut`."""
    of_each = {sound: sound.cut(config) for sound in dict.fromkeys(sounds)}
    return [of_each[sound] for sound in sounds]
