"""The language of audio (LOA): a sound as vectors like those that GPT-2 writes for a prompt.

Source: AudioLDM 2 (arXiv 2308.05734), section III-B. For the level and length of sounds: `read_wav_file` in
audioldm_train/utilities/data/dataset.py of haoheliu/AudioLDM-training-finetuning.

AudioMAE reads a sound as the denoiser's training prepared it: at 16 kHz, without its mean, at a peak of 0.5,
with silence behind it up to the length that AudioMAE reads (10.24 s in the published models). Of a longer
sound upstream takes a stretch at random; here it is the first one, with a warning (`sound_prompt`).

Trap: each of the eight vectors stands for 1.28 s, but AudioMAE attends to the whole sound, so an early vector
depends on what comes late.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2.audio import FASTEST_RATE, PEAK, SILENCE, audiomae_fbank, mean_and_peak, require_waves
from audioldm2.audio.fbank import HOP
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.models.audiomae import AudioMAEConfig
from audioldm2.runtime.placement import Networks
from audioldm2.sound_prompt import SoundPrompt, cut


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
    waves = _waves(wave)
    labels = ["wave"] if len(waves) == 1 else [f"wave[{row}]" for row in range(len(waves))]
    sounds = [SoundPrompt.prepare(each, rate, label) for each, label in zip(waves, labels, strict=True)]
    return loa_of(networks, cut(sounds, networks.configs["audiomae"]))


def loa_of(networks: Networks, sounds: Sequence[SoundPrompt]) -> Tensor:
    """LOA of sounds that were cut for AudioMAE, float32 (sounds, tokens, dim); equal ones run once."""
    config, device, dtype = networks.configs["audiomae"], networks.device, networks.dtypes["audiomae"]
    fbanks = {sound: spectrograms(sound.wave[None], config) for sound in dict.fromkeys(sounds)}
    with networks.running("audiomae") as audiomae:
        loa = {sound: audiomae(fbank.to(device, dtype)).float() for sound, fbank in fbanks.items()}
    return torch.cat([loa[sound] for sound in sounds])


def _waves(wave: Any) -> list[Tensor]:
    """Each sound as (samples,)."""
    if isinstance(wave, (list, tuple)) and any(isinstance(each, (Tensor, np.ndarray)) for each in wave):
        return [require_waves(f"wave[{row}]", each, most_dims=1) for row, each in enumerate(wave)]
    waves = require_waves("wave", wave)
    if waves.ndim == 2 and not len(waves):
        raise ArgumentError("wave", wave, "have at least one", given="has no sounds")
    return [waves] if waves.ndim == 1 else list(waves)


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
