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
        for size, found in _CUT.findall(sound.extra_info):
            if int(found) < int(size) < _UNKNOWN_SIZE:
                raise rejected(path, f"is cut off: {found} bytes of {size} are there", "be complete")
        signals = _Signals(sound.channels)
        while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            signals.add(block)
        claimed, rate = sound.frames, sound.samplerate
    if signals.broken:
        count = signals.frames * signals.channels
        raise rejected(path, f"has {signals.broken} samples of {count} that are NaN or infinite", "be finite")
    if signals.frames < claimed:
        raise rejected(path, f"is cut off: {signals.frames} samples of {claimed} are there", "be complete")
    if not signals.frames:
        raise rejected(path, "has no samples", "have at least one")
    return signals.facts(rate)


class _Signals:
    """Running measures of several signals: the channels' mean, and the channels if there are several."""

    def __init__(self, channels: int) -> None:
        count = 1 if channels == 1 else 1 + channels
        self.channels, self.frames, self.broken = channels, 0, 0
        self.total, self.energy = np.zeros(count), np.zeros(count)
        self.lowest, self.highest = np.full(count, np.inf), np.full(count, -np.inf)
        self.where_lowest, self.where_highest = np.zeros(count, int), np.zeros(count, int)

    def add(self, block: np.ndarray) -> None:
        """Measures the next samples, float32 (frames, channels)."""
        waves = np.ascontiguousarray(block.T)  # (channels, frames): contiguous rows are measured much faster
        if self.channels > 1:
            waves = np.concatenate([waves.mean(axis=0, keepdims=True), waves])
        total = waves.sum(axis=1, dtype=np.float64)
        if not np.isfinite(total).all():  # float64 holds every sum of finite float32 values
            self.broken += int((~np.isfinite(block)).sum())
        elif not self.broken:
            self.total += total
            self.energy += np.square(waves).sum(axis=1, dtype=np.float64)
            for row, (least, most) in enumerate(zip(waves.min(axis=1), waves.max(axis=1), strict=True)):
                if least < self.lowest[row]:
                    self.lowest[row], self.where_lowest[row] = least, self.frames + waves[row].argmin()
                if most > self.highest[row]:
                    self.highest[row], self.where_highest[row] = most, self.frames + waves[row].argmax()
        self.frames += len(block)

    def facts(self, rate: int) -> SoundFacts:
        """What the file is, read as one channel."""
        cancels = self.channels > 1 and self.energy[0] < ANTIPHASE * self.energy[1:].mean()
        row = 1 + int(self.energy[1:].argmax()) if cancels else 0
        mean = self.total[row] / self.frames
        above, below = self.highest[row] - mean, mean - self.lowest[row]
        loudest = self.where_highest[row] if above >= below else self.where_lowest[row]
        peak = float(max(above, below))
        return SoundFacts(self.frames, rate, row - 1 if cancels else None, int(loudest), peak)


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
        if sound.frames < last:  # before a seek behind the end, which fails in libsndfile's words
            raise rejected(path, f"has fewer than {last} samples", "be as long as when it was checked")
        block = _read_frames(sound, first, last, facts.frames)
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
