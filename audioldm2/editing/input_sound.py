"""A sound given to the model: its level, its hash, and the log-mel spectrogram that the VAE encodes."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import FASTEST_RATE, MelSettings, require_waves, resample, vae_front_end, vae_log_mel
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.sound_shape import SoundShape

PEAK = 0.5  # of a sound that the VAE encodes, in training and here
SILENCE = 1e-6  # largest magnitude, without the mean, of a sound that counts as silent: -120 dB


@dataclass(frozen=True, eq=False)
class InputSound:
    """A sound at the model's rate, and what puts results back at its level."""

    wave: Tensor  # float32 (samples,) on the CPU, as loud as it was given
    sample_rate: int  # Hz, of the model
    mean: float
    scale: float  # (wave - mean) * scale has a peak of 0.5
    name: str | None  # of its file
    sha256: str  # of the samples as given: float32, little-endian, one channel, at their own rate
    given_rate: int  # Hz

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate

    @property
    def normalized(self) -> Tensor:
        """The wave as in training: without its mean, at a peak of 0.5 (upstream's `normalize_wav`)."""
        return (self.wave - self.mean) * self.scale

    def at_own_level(self, wave: Tensor) -> Tensor:
        """Waves of the model at the level of this sound."""
        return wave / self.scale + self.mean

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "file": self.name,
            "sha256": self.sha256,
            "sample_rate": self.given_rate,
            "seconds": self.seconds,
        }

    @classmethod
    def prepare(
        cls, wave: Tensor, given_rate: int, sample_rate: int, label: str, name: str | None = None
    ) -> "InputSound":
        """Resample and measure a sound.

        Args:
            wave: floats (samples,).
            given_rate: its rate, Hz.
            sample_rate: the model's rate, Hz.
            label: what messages call it.
            name: of its file.

        Raises:
            ArgumentError: it has no samples, samples that are not finite, or is silent.
        """
        wave = wave.detach().to("cpu", torch.float32)
        if not len(wave):
            raise ArgumentError(label, wave, "have at least one", given="has no samples")
        broken = int((~wave.isfinite()).sum())
        if broken:
            given = f"has {broken} samples of {len(wave)} that are NaN or infinite"
            raise ArgumentError(label, wave, "be finite", given=given)
        digest = hashlib.sha256(wave.contiguous().numpy().astype("<f4").tobytes()).hexdigest()
        wave = resample(wave, given_rate, sample_rate)
        mean = wave.double().mean().item()
        peak = (wave - mean).abs().max().item()
        if not peak > SILENCE:
            raise ArgumentError(label, wave, "be louder than -120 dB", given="is silent")
        return cls(wave, sample_rate, mean, PEAK / peak, name, digest, given_rate)


def log_mel(sound: InputSound, shape: SoundShape, frames: int | None = None, before: int = 0) -> Tensor:
    """The log-mel spectrogram of a normalised sound with silence around it, in whole latent frames.

    Silence is added to the wave, so that its log-mel is the floor, -11.5. (Upstream pads log-mels with 0,
    which is loud.)

    Args:
        sound: the sound.
        shape: the model's.
        frames: latent frames of the result; by default as many as hold the sound.
        before: latent frames of silence in front.

    Returns:
        float32 (1, 1, frames * downsampling, mels), on the CPU.

    Raises:
        ValueError: no log-mel front end is known at the model's sample rate.
    """
    settings: MelSettings = vae_front_end(shape.sample_rate, shape.hop, shape.mels)
    frames = math.ceil(len(sound.wave) / shape.frame_samples) if frames is None else frames
    least = settings.n_fft  # samples that a spectrogram needs
    wave = torch.zeros(max(frames * shape.frame_samples, least), device="cpu", dtype=torch.float32)
    start = before * shape.frame_samples
    wave[start : start + len(sound.wave)] = sound.normalized
    return vae_log_mel(wave[None], settings)[:, None, : frames * shape.downsampling]


def log_mels(wave: Any, sample_rate: int | None, shape: SoundShape) -> Tensor:
    """The log-mel spectrograms of normalised sounds: the input of the VAE's encoder.

    Args:
        wave: floats (samples,) or (sounds, samples), a tensor or an array.
        sample_rate: of the wave, Hz; by default the model's.
        shape: the model's.

    Returns:
        float32 (sounds, 1, time, mels), on the CPU.

    Raises:
        ArgumentError: see `InputSound.prepare`; or the wave has another shape.
    """
    rate = shape.sample_rate if sample_rate is None else sample_rate
    rate = require_whole("sample_rate", rate, 1, FASTEST_RATE)
    waves = require_waves("wave", wave)
    waves = waves[None] if waves.ndim == 1 else waves
    if not len(waves):
        raise ArgumentError("wave", wave, "have at least one", given="has no sounds")
    labels = ["wave"] if len(waves) == 1 else [f"wave[{row}]" for row in range(len(waves))]
    sounds = [
        InputSound.prepare(each, rate, shape.sample_rate, label)
        for each, label in zip(waves, labels, strict=True)
    ]
    return torch.cat([log_mel(each, shape) for each in sounds])
