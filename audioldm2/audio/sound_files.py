"""Reading, writing and finding sound files, with libsndfile."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from audioldm2.audio.resampling import FASTEST_RATE
from audioldm2.audio.waves import require_waves
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.files import atomic_write, failed_download

# suffix: (soundfile's format, its encoding)
SOUND_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
HIGHEST_RATE = 192_000  # Hz; above 200,000 libsndfile's Vorbis encoder crashes the process
LOWEST_RATE_READ = 100  # Hz; below it, a header is wrong: ten seconds of sound would last for hours
ANTIPHASE = 0.01  # the mean's energy over the channels' mean energy, below which channels cancel each other
_BLOCK = 1 << 16  # samples; the Vorbis encoder overflows its stack when it gets minutes at once

# The suffixes of libsndfile's formats, where they are more or others than the format's name. Headerless RAW
# tells no rate, and SD2 keeps its header in a second file: neither can be read.
_SUFFIXES = {
    "AIFF": (".aiff", ".aif", ".aifc"),
    "AU": (".au", ".snd"),
    "FLAC": (".flac", ".fla"),
    "IRCAM": (".sf", ".ircam"),
    "MP3": (".mp3", ".mp2"),
    "NIST": (".nist", ".sph"),
    "OGG": (".ogg", ".oga", ".opus"),
    "RAW": (),
    "SD2": (),
    "SVX": (".svx", ".8svx", ".iff"),
    "WAV": (".wav", ".wave", ".bwf"),
    "WAVEX": (),
}
# Lower case, of all files that the installed libsndfile reads (MP3 since version 1.1).
READABLE_SUFFIXES: frozenset[str] = frozenset(
    suffix for name in soundfile.available_formats() for suffix in _SUFFIXES.get(name, (f".{name.lower()}",))
)


def write_wav(path: str | os.PathLike, wave: Tensor | np.ndarray, sample_rate: int) -> None:
    """Write one mono sound, completely or not at all, in the format of the suffix.

    Args:
        path:        .wav (16-bit PCM), .flac (16-bit) or .ogg (Vorbis), in either case.
        wave:        floats (samples,), full scale at ±1; louder samples are clipped.
        sample_rate: Hz, 1 to 192,000.

    Raises:
        ArgumentError: another suffix, dtype or shape; no samples, or samples that are not finite; a rate that
            the format cannot hold (FLAC takes few above 65,535 Hz).
        OSError: from the system, unchanged.
    """
    path = Path(path)
    if path.suffix.lower() not in SOUND_FORMATS:
        given, allowed = f"ends in {path.suffix!r}", f"end in one of {', '.join(SOUND_FORMATS)}"
        raise ArgumentError(str(path), path, allowed, given=given)
    wave = require_waves("wave", wave, most_dims=1).to("cpu", torch.float32)
    if not len(wave):
        raise ArgumentError("wave", wave, "have at least one", given="has no samples")
    broken = int((~wave.isfinite()).sum())
    if broken:
        given = f"has {broken} samples of {len(wave)} that are NaN or infinite"
        raise ArgumentError("wave", wave, f"be finite; {path} was not written", given=given)
    sample_rate = require_whole("sample_rate", sample_rate, 1, HIGHEST_RATE)
    container, encoding = SOUND_FORMATS[path.suffix.lower()]
    # Encode in memory: soundfile reports a full disk or a missing folder as a RuntimeError, or not at all.
    encoded = io.BytesIO()
    try:
        with soundfile.SoundFile(
            encoded, "w", samplerate=sample_rate, channels=1, format=container, subtype=encoding
        ) as file:
            for block in wave.clamp(-1, 1).split(_BLOCK):
                file.write(block.numpy())
    except soundfile.LibsndfileError as error:
        allowed = f"be a rate that {container} can hold: {path} cannot be encoded at {sample_rate} Hz"
        raise ArgumentError("sample_rate", sample_rate, allowed) from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def read(path: str | os.PathLike) -> tuple[Tensor, int]:
    """Read any file that libsndfile decodes (see `READABLE_SUFFIXES`) as one channel.

    The content decides the format, not the suffix. Several channels are averaged, unless they cancel each
    other: stereo in antiphase (left = -right) would average to silence. Where the energy of the mean is below
    1 % of the channels' mean energy, the loudest channel is returned alone.

    Returns:
        float32 (samples,), full scale at ±1, finite, with at least one sample; and the rate in Hz.

    Raises:
        ArgumentError: carries the file as its name; the file is a folder, empty, a Git LFS pointer, a web
            page, not a sound or damaged, or it has no samples, NaN or infinite samples, or an absurd rate.
        OSError: from the system, unchanged: no such file, no permission.
    """
    path = Path(path)
    with opened(path) as sound:
        # The number of frames, because formats without a seek table refuse to read "all".
        samples, sample_rate = sound.read(sound.frames, dtype="float32", always_2d=True), sound.samplerate
    if not len(samples):
        raise rejected(path, "has no samples", "have at least one")
    broken = int((~np.isfinite(samples)).sum())
    if broken:
        raise rejected(path, f"has {broken} samples of {samples.size} that are NaN or infinite", "be finite")
    return _one_channel(torch.from_numpy(samples)), sample_rate


@contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a sound file; what libsndfile reports inside the block becomes an ArgumentError, as in `read`.

    Raises:
        ArgumentError: carries the file as its name.
        OSError: from the system, unchanged.
    """
    if path.is_dir():
        raise rejected(path, "is a folder", "be a sound file")
    mistaken = failed_download(path)
    if mistaken:
        raise rejected(path, f"is {mistaken[0]}", mistaken[1])
    try:
        with open(path, "rb") as file, soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
            if not LOWEST_RATE_READ <= rate <= FASTEST_RATE:
                allowed = f"have one from {LOWEST_RATE_READ} to {FASTEST_RATE} Hz"
                raise rejected(path, f"has a sample rate of {rate} Hz", allowed)
            yield sound
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".") or "its data is damaged"  # some errors have no text
        given = f"is not a sound file that can be read ({reason})"
        raise rejected(path, given, "be one that libsndfile decodes") from error
    except TypeError as error:  # soundfile wants a rate for every file named *.raw
        given = "is not a sound file that can be read (raw samples without a header)"
        raise rejected(path, given, "be one that libsndfile decodes, under another suffix") from error
    except (MemoryError, ValueError) as error:  # NumPy raises either, by how far it is too much
        if isinstance(error, ArgumentError):
            raise
        given = f"claims {sound.frames} samples in {sound.channels} channels"
        raise rejected(path, given, "fit in memory; its header may be damaged") from error


def rejected(path: Path, given: str, allowed: str) -> ArgumentError:
    """The error for a sound file, which is its name: \"PATH GIVEN; it has to ALLOWED.\""""
    return ArgumentError(str(path), path, allowed, given=given)


def _one_channel(samples: Tensor) -> Tensor:
    """(samples, channels) to (samples,): the mean, or the loudest channel where the mean cancels."""
    mean = samples.mean(dim=1)
    if samples.shape[1] == 1:
        return mean
    energies = torch.linalg.vector_norm(samples, dim=0, dtype=torch.float64).square()  # (channels,)
    energy = torch.linalg.vector_norm(mean, dtype=torch.float64).square()
    if energy < ANTIPHASE * energies.mean():
        return samples[:, energies.argmax()].clone()
    return mean


def find_sounds(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """Find the sound files in a folder and the folders inside it, by suffix.

    Hidden files and folders are ignored: what begins with a dot, such as the AppleDouble file `._x.wav` that
    macOS writes beside `x.wav`. Links to folders are not followed.

    Returns:
        (sounds, skipped), both sorted: the files that end in one of `READABLE_SUFFIXES`, in either case, and
        all other files that are not hidden, for a caller to report.

    Raises:
        ArgumentError: `folder` is not a folder.
        OSError: from the system, unchanged: a folder inside cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        given = "is not a folder" if folder.exists() else "does not exist"
        raise ArgumentError(str(folder), folder, "be a folder of sound files", given=given)

    def stop(error: OSError) -> None:
        raise error

    sounds: list[Path] = []
    skipped: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = Path(parent, name)
                (sounds if path.suffix.lower() in READABLE_SUFFIXES else skipped).append(path)
    return sorted(sounds), sorted(skipped)
