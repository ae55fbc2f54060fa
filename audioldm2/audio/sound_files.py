"""Reading and writing sound files."""

import io
import operator
import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from audioldm2.files import atomic_write

# suffix: (soundfile's format, its encoding)
SOUND_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
HIGHEST_RATE = 192_000  # Hz; above 200,000 libsndfile's Vorbis encoder crashes the process
_BLOCK = 1 << 16  # samples; the Vorbis encoder overflows its stack on minutes given at once


def write_wav(path: str | os.PathLike, wave: Tensor | np.ndarray, sample_rate: int) -> None:
    """Write one mono sound, whole or not at all; the suffix picks the format (.wav: 16-bit PCM; .flac; .ogg).

    wave:         (samples,), full scale at ±1; what is louder is clipped.
    sample_rate:  Hz.
    Errors:       ValueError for another suffix or shape, no samples, samples that are not finite, or a rate
                  that the format cannot hold (FLAC takes few above 65,535 Hz); OSError, as the system gives
                  it, if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SOUND_FORMATS:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; sounds can be written as {', '.join(SOUND_FORMATS)}"
        )
    wave = torch.as_tensor(wave).detach().to("cpu", torch.float32)
    if wave.dim() != 1 or not len(wave):
        raise ValueError(
            f"wave has shape {tuple(wave.shape)}; one mono sound is (samples,), with at least one"
        )
    broken = int((~wave.isfinite()).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(wave)} samples are not finite (NaN or infinite): not written to {path}"
        )
    if not 1 <= sample_rate <= HIGHEST_RATE:
        raise ValueError(f"sample_rate is {sample_rate}; allowed are 1 to {HIGHEST_RATE} Hz")
    container, encoding = SOUND_FORMATS[path.suffix.lower()]
    # Encoded in memory: soundfile reports a full disk or a missing folder as a RuntimeError, or not at all.
    encoded = io.BytesIO()
    try:
        with soundfile.SoundFile(
            encoded,
            "w",
            samplerate=operator.index(sample_rate),
            channels=1,
            format=container,
            subtype=encoding,
        ) as file:
            for block in wave.clamp(-1, 1).split(_BLOCK):
                file.write(block.numpy())
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be encoded at {sample_rate} Hz: {error}") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def read(path: str | os.PathLike) -> tuple[Tensor, int]:
    """A sound file as one channel, and its rate in Hz; several channels are averaged.

    Returns float32 (samples,), full scale at ±1.
    Errors: OSError if the file cannot be opened, ValueError if it holds no sound that can be decoded.
    """
    with open(path, "rb") as file:
        try:
            samples, sample_rate = soundfile.read(
                file, dtype="float32", always_2d=True
            )  # (samples, channels)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{path} is not a sound file that can be read: {error}") from error
    return torch.from_numpy(samples).mean(dim=1), sample_rate
