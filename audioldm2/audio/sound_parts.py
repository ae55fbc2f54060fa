"""Long sound files without decoding them whole each time: measured once, then read in parts, by seeking."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from audioldm2.audio.resampling import input_span, resample
from audioldm2.audio.sound_files import ANTIPHASE, opened, rejected

_BLOCK = 1 << 18  # frames decoded at a time
# After a seek, libsndfile decodes these exactly only some frames later, and into the last page of an Ogg file
# it does not seek reliably. They are read from earlier on, and from before the last pages.
_COMPRESSED = ("VORBIS", "OPUS", "MPEG")
_LEAD, _LAST_PAGES = 1 << 16, 1 << 18  # frames

# libsndfile's log of a WAV or AIFF file that ends before its header says. Programs that write to a pipe leave
# sizes of about 2^31 or 2^32, which claim nothing.
_CUT = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFF0000


@dataclass(frozen=True)
class SoundFacts:
    """What one complete decoding of a file finds out."""

    frames: int  # samples of each channel
    rate: int  # Hz
    channel: int | None  # the one that stands for all where their mean cancels, as in `read`; None: the mean
    loudest: int  # frame with the largest deviation from the mean
    peak: float  # that deviation


def examine(path: str | os.PathLike) -> SoundFacts:
    """Decode a file completely, block by block, and measure it.

    Raises:
        ArgumentError: everything that `read` rejects; or the file is cut off: it ends before its header says.
            (An Ogg file that was cut between two pages looks complete.)
        OSError: from the system, unchanged.
    """
    path = Path(path)
    with opened(path) as sound:
        for claimed, found in _CUT.findall(sound.extra_info):
            if int(found) < int(claimed) < _UNKNOWN_SIZE:
                raise rejected(path, f"is cut off: {found} bytes of {claimed} are there", "be complete")
        # Column 0 is the channels' mean, the others are the channels.
        columns = sound.channels + 1
        total, energy = np.zeros(columns), np.zeros(columns)
        lowest, highest = np.full(columns, np.inf), np.full(columns, -np.inf)
        where_lowest, where_highest = np.zeros(columns, int), np.zeros(columns, int)
        frames = broken = 0
        while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            block = np.concatenate([block.mean(axis=1, keepdims=True), block], axis=1)  # (frames, columns)
            broken += int((~np.isfinite(block[:, 1:])).sum())
            if not broken:
                total += block.sum(axis=0, dtype=np.float64)
                energy += np.square(block, dtype=np.float64).sum(axis=0)
                where = block.argmin(axis=0), block.argmax(axis=0)
                least, most = block.min(axis=0), block.max(axis=0)
                where_lowest[least < lowest] = (frames + where[0])[least < lowest]
                where_highest[most > highest] = (frames + where[1])[most > highest]
                lowest, highest = np.minimum(lowest, least), np.maximum(highest, most)
            frames += len(block)
        claimed, rate = sound.frames, sound.samplerate
    if broken:
        given = f"has {broken} samples of {frames * (columns - 1)} that are NaN or infinite"
        raise rejected(path, given, "be finite")
    if frames < claimed:
        raise rejected(path, f"is cut off: {frames} samples of {claimed} are there", "be complete")
    if not frames:
        raise rejected(path, "has no samples", "have at least one")
    cancels = columns > 2 and energy[0] < ANTIPHASE * energy[1:].mean()
    column = 1 + int(energy[1:].argmax()) if cancels else 0
    mean = total[column] / frames
    above, below = highest[column] - mean, mean - lowest[column]
    loudest = where_highest[column] if above >= below else where_lowest[column]
    return SoundFacts(frames, rate, column - 1 if cancels else None, int(loudest), float(max(above, below)))


def read_part(path: str | os.PathLike, facts: SoundFacts, start: int, samples: int, rate: int) -> Tensor:
    """Read a part of a file as one channel at another rate, decoding little more than that part.

    Args:
        path: the file.
        facts: of the file.
        start: first sample of the part, at `rate`.
        samples: its length, at `rate`; it ends within the sound.
        rate: Hz.

    Returns:
        float32 (samples,): the same part of the whole sound resampled, to 1e-6.

    Raises:
        ArgumentError: the file cannot be decoded any more, or is shorter than `facts` say.
        OSError: from the system, unchanged.
    """
    path = Path(path)
    first, last, skipped = input_span(start, start + samples, facts.rate, rate)
    last = min(last, facts.frames)
    with opened(path) as sound:
        # a seek behind the end fails in libsndfile's words
        block = _read_frames(sound, first, last, facts.frames) if sound.frames >= last else ()
    if len(block) < last - first:
        raise rejected(path, f"has fewer than {last} samples", "be as long as when it was checked")
    one = block.mean(axis=1) if facts.channel is None else block[:, facts.channel]
    wave = resample(torch.from_numpy(np.ascontiguousarray(one)), facts.rate, rate)
    return wave[skipped : skipped + samples]


def _read_frames(sound: soundfile.SoundFile, first: int, last: int, frames: int) -> np.ndarray:
    """Frames `first` to `last`, float32 (last - first, channels)."""
    seek_to = first
    if sound.subtype.startswith(_COMPRESSED):
        seek_to = max(0, min(first - _LEAD, frames - _LAST_PAGES))
    if seek_to:
        sound.seek(seek_to)
    return sound.read(last - seek_to, dtype="float32", always_2d=True)[first - seek_to :]
