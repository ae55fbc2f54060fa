"""Sound as numbers: log-mel front ends, resampling, sound files, pictures.

Waves are float tensors (batch, samples), full scale at ±1; spectrograms are (batch, frames, mels).
"""

from audioldm2.audio.fbank import audiomae_fbank, kaldi_filters
from audioldm2.audio.mel import (
    CLAP_FLOOR,
    CLAP_MEL,
    CLAP_SAMPLE_RATE,
    CLAP_WINDOW,
    DEFAULT_SECONDS,
    MAX_SECONDS,
    SAMPLE_RATE,
    VAE_FLOOR,
    VAE_MEL,
    VAE_MEL_48K,
    MelSettings,
    clap_crops,
    clap_log_mel,
    mel_edges,
    mel_filters,
    vae_front_end,
    vae_log_mel,
)
from audioldm2.audio.resampling import FASTEST_RATE, PASS_BAND, STOP_DB, resample
from audioldm2.audio.sound_files import (
    HIGHEST_RATE,
    READABLE_SUFFIXES,
    SOUND_FORMATS,
    find_sounds,
    read,
    write_wav,
)
from audioldm2.audio.sound_parts import SoundFacts, examine, read_part
from audioldm2.audio.waves import PEAK, SILENCE, mean_and_peak, require_waves

__all__ = [
    "CLAP_FLOOR",
    "CLAP_MEL",
    "CLAP_SAMPLE_RATE",
    "CLAP_WINDOW",
    "DEFAULT_SECONDS",
    "FASTEST_RATE",
    "HIGHEST_RATE",
    "MAX_SECONDS",
    "PASS_BAND",
    "PEAK",
    "READABLE_SUFFIXES",
    "SAMPLE_RATE",
    "SILENCE",
    "SOUND_FORMATS",
    "STOP_DB",
    "VAE_FLOOR",
    "VAE_MEL",
    "VAE_MEL_48K",
    "MelSettings",
    "SoundFacts",
    "audiomae_fbank",
    "clap_crops",
    "clap_log_mel",
    "examine",
    "find_sounds",
    "kaldi_filters",
    "mean_and_peak",
    "mel_edges",
    "mel_filters",
    "read",
    "read_part",
    "require_waves",
    "resample",
    "vae_front_end",
    "vae_log_mel",
    "write_wav",
]
