"""Captioned sounds as batches of equally long clips.

A batch is a function of the seed, the step and its size alone: not of earlier batches, of what is cached, or
of the number of threads that read. sources.py opens a data set.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import PEAK, SILENCE, SoundFacts, mean_and_peak, read, read_part, resample
from audioldm2.errors import require_choice, require_whole
from audioldm2.training.distributed import ALONE, Ranks
from audioldm2.training.randomness import rng
from audioldm2.training.sound_checks import Checked
from audioldm2.training.tables import Item

PADDINGS = ("silence", "repeat")  # what fills up a sound that is shorter than a clip
WHOLE_SECONDS = 60.0  # longer files are always read in parts
CACHE_BYTES = 2 << 30  # decoded and resampled sounds kept in memory; the rest is read again each time
SILENT_CROP = 1e-4  # peak of a crop that is drawn again where levels are normalized: -80 dB, upstream's value
DRAWS = 10  # of a crop, at most


class Captioned(Protocol):
    """An endless, reproducible source of captioned clips: all that training needs from a dataset."""

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Returns the clips of a step, float32 (size, samples), and their captions."""
        ...

    def captions(self) -> list[str]:
        """Returns enough captions to train a vocabulary on."""
        ...


def part_of(data: Captioned, step: int, size: int, places: range) -> tuple[Tensor, list[str]]:
    """Returns the clips at some places of a step's batch, float32 (places, samples), and their captions.

    A source with a method `part` reads only these clips; others read the whole batch.
    """
    part = getattr(data, "part", None)
    if part is not None:
        return part(step, size, places)
    waves, captions = data.batch(step, size)
    return waves[places.start : places.stop], captions[places.start : places.stop]


class Pool:
    """The first clips of a dataset, prepared once, kept in memory and reshuffled every epoch.

    Args:
        data: where the clips come from.
        prepare: maps the waveforms of a batch (size, samples) to the tensor (size, ...) that is kept.
        clips: how many clips to keep.
        size: of each batch.
        seed: of the order.
        ranks: the processes that share each batch. Each prepares what it meets, a share of a batch at once.
    """

    def __init__(
        self, data: Captioned, prepare: Callable[[Tensor], Tensor], clips: int, size: int, seed: int,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.ranks, self.share = ranks, size // ranks.count
        self.data, self.prepare, self.clips, self.size, self.seed = data, prepare, clips, size, seed
        self._prepared: dict[int, tuple[Tensor, list[str]]] = {}  # by share of a batch

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Returns the prepared clips of a step, this rank's share of them, and their captions."""
        places = self.ranks.places(self.size)
        positions = [divmod(step * self.size + place, self.clips) for place in places]
        clips = [self._clip(int(self._order(epoch)[position])) for epoch, position in positions]
        return torch.stack([clip for clip, _ in clips]), [caption for _, caption in clips]

    @lru_cache(maxsize=2)  # noqa: B019 (a pool lives as long as its run)
    def _order(self, epoch: int) -> np.ndarray:
        # The first epoch is not shuffled, so that training need not wait until all clips are prepared.
        return rng("pool", self.seed, epoch).permutation(self.clips) if epoch else np.arange(self.clips)

    def _clip(self, index: int) -> tuple[Tensor, str]:
        share, place = divmod(index, self.share)
        if share not in self._prepared:
            batch, part = divmod(share, self.ranks.count)
            places = range(part * self.share, (part + 1) * self.share)
            wave, captions = part_of(self.data, batch, self.size, places)
            self._prepared[share] = self.prepare(wave), captions
        clips, captions = self._prepared[share]
        return clips[place], captions[place]


class Sounds:
    """Sound files as batches of clips: longer sounds are cropped at random, shorter ones padded.

    Each epoch goes through all sounds once, in a new order, each with one of its captions drawn at random.

    Args:
        name: of the data, for messages.
        items: the sounds; all of them have been checked and found good.
        checked: what is known about each file.
        seconds: length of a clip.
        sample_rate: of the clips, in Hz; every sound is mixed to mono and resampled to it.
        seed: of the order, the crops and the captions.
        pad: what fills up a short sound: "silence", or "repeat" for the sound again and again.
        normalize: bring each clip to the level of the published models, before padding: no mean, a peak of
            0.5. Silent crops are drawn again; after `DRAWS` the clip is taken around the loudest sample.
        crops: of each sound that is longer than a clip, taken in turn, one an epoch. 0: a new one every time.
        workers: threads that read the clips of a batch. Decoding and resampling do not hold Python's lock.
    """

    def __init__(
        self, name: str, items: Sequence[Item], checked: Mapping[Path, Checked], seconds: float,
        sample_rate: int, *, seed: int = 0, pad: str = "silence", normalize: bool = False, crops: int = 0,
        workers: int = 1,
    ) -> None:  # fmt: skip
        require_choice("pad", pad, PADDINGS)
        require_whole("workers", workers, 1)
        self.name, self.items, self.checked = name, list(items), checked
        self.sample_rate, self.seed, self.pad, self.normalize = sample_rate, seed, pad, normalize
        self.samples, self.crops = round(seconds * sample_rate), crops
        facts = [self._facts(item.file) for item in self.items]
        self.seconds = sum(each.frames / each.rate for each in facts)
        # Where all sounds do not fit in memory, decoding more than twice a clip would be wasted.
        short = [each.frames / each.rate for each in facts if each.frames <= WHOLE_SECONDS * each.rate]
        fits = 4 * sum(short) * sample_rate <= CACHE_BYTES
        self._whole_seconds = WHOLE_SECONDS if fits else min(2 * seconds, WHOLE_SECONDS)
        self._decoded: dict[Path, Tensor] = {}
        self._bytes_left, self._lock = CACHE_BYTES, threading.Lock()
        self._executor = ThreadPoolExecutor(workers, "sounds") if workers > 1 else None

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} captioned sounds, {self.seconds / 60:.1f} minutes>"

    def __len__(self) -> int:
        return len(self.items)

    def captions(self) -> list[str]:
        """Returns every caption of every sound."""
        return [caption for item in self.items for caption in item.captions]

    def distinct(self) -> int | None:
        """Returns how many clips there are before all of them have been given once; None: no end."""
        facts = [self._facts(item.file) for item in self.items]
        short = all(-(-each.frames * self.sample_rate // each.rate) <= self.samples for each in facts)
        return len(self) if short else len(self) * self.crops or None

    def digest(self) -> str:
        """Returns a hash of the files' names, lengths and captions, by which a resumed run knows its data."""
        digest = hashlib.blake2s(digest_size=16)
        for item in self.items:
            facts = self._facts(item.file)
            digest.update(repr((item.file.name, facts.frames, facts.rate, item.captions)).encode())
        return digest.hexdigest()

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Returns the clips of a step, float32 (size, samples), and their captions.

        Raises:
            ValueError: a file was deleted or changed since it was checked; the message names it.
        """
        return self.part(step, size, range(size))

    def part(self, step: int, size: int, places: range) -> tuple[Tensor, list[str]]:
        """Returns the clips at some places of `batch` and their captions."""
        epochs = range(step * size // len(self), ((step + 1) * size - 1) // len(self) + 1)
        drawn = [(epoch, int(index)) for epoch in epochs for index in self._order(epoch)]
        first = step * size - epochs[0] * len(self)
        drawn = drawn[first : first + size]

        def clip(place: int) -> Tensor:
            epoch, index = drawn[place]
            crop = (index, epoch % self.crops) if self.crops else (step, place)
            return self._clip(self.items[index].file, rng("crop", self.seed, *crop))

        waves = list((self._executor.map if self._executor else map)(clip, places))
        captions = [self._caption(*drawn[place]) for place in places]
        return torch.stack(waves), captions  # (places, samples)

    def _order(self, epoch: int) -> np.ndarray:
        return rng("order", self.seed, epoch).permutation(len(self))

    def _caption(self, epoch: int, index: int) -> str:
        captions = self.items[index].captions
        if len(captions) < 2:
            return self.items[index].caption
        return captions[rng("caption choice", self.seed, epoch, index).integers(len(captions))]

    def _facts(self, file: Path) -> SoundFacts:
        facts = self.checked[file].facts
        assert facts is not None, f"{file} is bad"  # bad files are left out before
        return facts

    def _clip(self, file: Path, rng: np.random.Generator) -> Tensor:
        """One clip of a sound, (samples,)."""
        facts = self._facts(file)
        length = -(-facts.frames * self.sample_rate // facts.rate)  # samples of the whole sound
        wave = self._crop(file, length, rng) if length > self.samples else self._part(file, 0, length)
        if self.normalize:
            wave = at_trained_level(wave)
        return crop_or_pad(wave, self.samples, rng, self.pad)

    def _crop(self, file: Path, length: int, rng: np.random.Generator) -> Tensor:
        """A random crop of a sound; where levels are normalized, one that is not silent."""
        last = length - self.samples
        for _ in range(DRAWS):
            wave = self._part(file, int(rng.integers(last + 1)), self.samples)
            if not self.normalize or mean_and_peak(wave)[1] > SILENT_CROP:
                return wave
        facts = self._facts(file)
        loudest = facts.loudest * self.sample_rate // facts.rate
        return self._part(file, min(max(0, loudest - self.samples // 2), last), self.samples)

    def _part(self, file: Path, start: int, samples: int) -> Tensor:
        """A part of a sound as mono at the clips' sample rate: float32 (samples,)."""
        facts = self._facts(file)
        # By length alone, not by what is kept by chance, which could change the last bit.
        if facts.frames > self._whole_seconds * facts.rate:
            self._require_unchanged(file)
            return read_part(file, facts, start, samples, self.sample_rate)
        return self._whole(file)[start : start + samples]

    def _whole(self, file: Path) -> Tensor:
        if file in self._decoded:
            return self._decoded[file]
        self._require_unchanged(file)
        wave, rate = read(file)
        wave = resample(wave, rate, self.sample_rate)
        with self._lock:
            if wave.nbytes <= self._bytes_left and file not in self._decoded:
                self._decoded[file] = wave
                self._bytes_left -= wave.nbytes
        return wave

    def _require_unchanged(self, file: Path) -> None:
        if not self.checked[file].is_current(file):
            what = "changed" if file.exists() else "is gone"
            raise ValueError(
                f"{file} {what} since it was checked; put it back, and continue with --resume, which checks "
                "all sounds again."
            )


def digest_of(data: Captioned) -> str | None:
    """Returns a hash of a source's sounds and captions; None for one that has none, such as a world."""
    digest = getattr(data, "digest", None)
    return None if digest is None else digest()


def distinct(data: Captioned) -> int | None:
    """Returns how many clips a source gives before they repeat; None for an endless one, such as a world."""
    count = getattr(data, "distinct", None)
    return None if count is None else count()


def decoded_bytes(data: Captioned) -> int:
    """Returns how much memory a source's decoded sounds may take."""
    sources = [data, getattr(data, "old", None), getattr(data, "new", None)]  # of `Mixed`, two in one
    return sum(
        min(CACHE_BYTES, round(4 * each.seconds * each.sample_rate))
        for each in sources
        if isinstance(each, Sounds)
    )


class AtTrainedLevel:
    """Another source's clips at the level of the published models, for sources that know no level."""

    def __init__(self, data: Captioned) -> None:
        self.data = data

    def __repr__(self) -> str:
        return repr(self.data)

    def captions(self) -> list[str]:
        """Returns the source's captions."""
        return self.data.captions()

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Returns the clips of a step, each without its mean and at a peak of 0.5, and their captions."""
        return self.part(step, size, range(size))

    def part(self, step: int, size: int, places: range) -> tuple[Tensor, list[str]]:
        """Returns the clips at some places of `batch` and their captions."""
        waves, captions = part_of(self.data, step, size, places)
        return torch.stack([at_trained_level(wave) for wave in waves]), captions


def at_trained_level(wave: Tensor) -> Tensor:
    """Returns a clip (samples,) without its mean and at a peak of 0.5; silence stays silent."""
    mean, peak = mean_and_peak(wave)
    return (wave - mean) * (PEAK / peak if peak > SILENCE else 1.0)


def crop_or_pad(wave: Tensor, samples: int, rng: np.random.Generator, pad: str = "silence") -> Tensor:
    """Returns a random crop of a long wave, or all of a short one followed by padding.

    Args:
        wave: (its samples,).
        samples: length of the result.
        rng: chooses the crop.
        pad: "silence", or "repeat".
    """
    if len(wave) < samples:
        if pad == "repeat":
            return wave.repeat(math.ceil(samples / len(wave)))[:samples]
        return F.pad(wave, (0, samples - len(wave)))
    start = int(rng.integers(len(wave) - samples + 1))
    return wave[start : start + samples]
