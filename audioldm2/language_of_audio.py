"""The language of audio (LOA): a sound as vectors like those that GPT-2 writes for a prompt.

Source: AudioLDM 2 (arXiv 2308.05734), section III-B. For the level and length of sounds: `read_wav_file` in
audioldm_train/utilities/data/dataset.py of haoheliu/AudioLDM-training-finetuning.

AudioMAE reads a sound as the denoiser's training prepared it: at 16 kHz, without its mean, at a peak of 0.5,
with silence behind it up to the length that AudioMAE reads (10.24 s in the published models). Of a longer
sound upstream takes a stretch at random; here it is the first one, with a warning.

Trap: each of the eight vectors stands for 1.28 s, but AudioMAE attends to the whole sound, so an early vector
depends on what comes late.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2.audio import (
    FASTEST_RATE,
    PEAK,
    SAMPLE_RATE,
    SILENCE,
    audiomae_fbank,
    mean_and_peak,
    require_waves,
)
from audioldm2.audio.fbank import HOP
from audioldm2.editing.input_sound import InputSound
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.prompt.encode import TruncationWarning
from audioldm2.runtime.placement import Networks


def hear(networks: Networks, wave: Any, sample_rate: int) -> Tensor:
    """Compute LOA of sounds, one after the other: the same alone and in a batch.

    Args:
        networks: with "audiomae".
        wave: floats (samples,) or (sounds, samples), a tensor or an array, at any level; or a list of sounds.
        sample_rate: Hz.

    Returns:
        float32 (sounds, tokens, dim), on the networks' device.

    Raises:
        ArgumentError: a sound is silent, empty or not finite, or the wave has another shape; raised before
            the network runs.

    Warns (TruncationWarning) of a sound that is longer than AudioMAE reads.
    """
    rate = require_whole("sample_rate", sample_rate, 1, FASTEST_RATE)
    sounds, config = _sounds(wave), networks.configs["audiomae"]
    labels = ["wave"] if len(sounds) == 1 else [f"wave[{row}]" for row in range(len(sounds))]
    fbanks = [
        _fbank(InputSound.prepare(sound, rate, SAMPLE_RATE, label), config, label)
        for sound, label in zip(sounds, labels, strict=True)
    ]
    device, dtype = networks.device, networks.dtypes["audiomae"]
    with networks.running("audiomae") as audiomae:
        return torch.cat([audiomae(fbank.to(device, dtype)).float() for fbank in fbanks])


def _sounds(wave: Any) -> list[Tensor]:
    """Each sound as (samples,)."""
    if isinstance(wave, (list, tuple)) and any(isinstance(each, (Tensor, np.ndarray)) for each in wave):
        return [require_waves(f"wave[{row}]", each, most_dims=1) for row, each in enumerate(wave)]
    waves = require_waves("wave", wave)
    if waves.ndim == 2 and not len(waves):
        raise ArgumentError("wave", wave, "have at least one", given="has no sounds")
    return [waves] if waves.ndim == 1 else list(waves)


def _fbank(sound: InputSound, config: AudioMAEConfig, label: str) -> Tensor:
    """The spectrogram of the first stretch of a sound, at the level of training: (1, frames, mels)."""
    samples = config.frames * HOP
    wave, seconds = sound.wave[:samples], samples / SAMPLE_RATE
    if len(wave) < len(sound.wave):
        warnings.warn(
            f"{label} lasts {sound.seconds:.4g} s; AudioMAE reads its first {seconds:g} s.",
            TruncationWarning,
            stacklevel=2,
        )
    if not mean_and_peak(wave)[1] > SILENCE:
        allowed = f"be louder than -120 dB in its first {seconds:g} s, which AudioMAE reads"
        raise ArgumentError(label, wave, allowed, given="begins with silence")
    return spectrograms(wave[None], config)


def spectrograms(waves: Tensor, config: AudioMAEConfig) -> Tensor:
    """Compute what AudioMAE reads of clips, each at the level of training; a silent clip stays silent.

    Args:
        waves: float (batch, samples) at 16 kHz, one sample or more; what AudioMAE has no room for is cut off.
        config: of AudioMAE.

    Returns:
        float32 (batch, frames, mels), on the CPU.
    """
    samples = config.frames * HOP
    padded = torch.zeros(len(waves), samples, device="cpu", dtype=torch.float32)
    for row, wave in zip(padded, waves[:, :samples].cpu(), strict=True):
        mean, peak = mean_and_peak(wave)
        if peak > SILENCE:
            row[: len(wave)] = (wave - mean) * (PEAK / peak)
    return audiomae_fbank(padded, config.frames, config.mels)
