"""Sound in numbers: log-mel front ends, resampling, sound files, spectrogram plots.

Waves are float tensors (batch, samples), full scale at ±1; spectrograms are (batch, frames, mels).
"""

from audioldm2.audio.mel import (
    CLAP_FLOOR,
    CLAP_MEL,
    CLAP_SAMPLE_RATE,
    CLAP_WINDOW,
    LONGEST_SECONDS,
    SAMPLE_RATE,
    USUAL_SECONDS,
    VAE_FLOOR,
    VAE_MEL,
    MelSettings,
    clap_crops,
    clap_log_mel,
    mel_filters,
    vae_log_mel,
)
from audioldm2.audio.resampling import PASS_BAND, STOP_DB, resample
from audioldm2.audio.sound_files import HIGHEST_RATE, SOUND_FORMATS, read, write_wav

__all__ = [
    "CLAP_FLOOR",
    "CLAP_MEL",
    "CLAP_SAMPLE_RATE",
    "CLAP_WINDOW",
    "HIGHEST_RATE",
    "LONGEST_SECONDS",
    "PASS_BAND",
    "SAMPLE_RATE",
    "SOUND_FORMATS",
    "STOP_DB",
    "USUAL_SECONDS",
    "VAE_FLOOR",
    "VAE_MEL",
    "MelSettings",
    "clap_crops",
    "clap_log_mel",
    "mel_filters",
    "read",
    "resample",
    "vae_log_mel",
    "write_wav",
]
