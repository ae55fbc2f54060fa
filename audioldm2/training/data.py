"""Captioned sounds: batches of equally long clips from a folder of sound files and a caption table.

The table is the folder's only .csv file (columns file and caption; others are ignored) or its only .jsonl
file (one {"file": ..., "caption": ...} per line). File names are relative to the folder. A file with several
captions has several rows.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import read, resample
from audioldm2.errors import require_choice, some
from audioldm2.training.randomness import rng

TABLES = (".csv", ".jsonl")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")  # file types that a folder without a table lists
PADDINGS = ("silence", "repeat")  # what fills up a sound that is shorter than a clip
CACHE_BYTES = 2 << 30  # decoded sounds kept in memory; the rest is read again each time


class Captioned(Protocol):
    """An endless, reproducible source of captioned clips: all that training needs from a dataset."""

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Returns the clips of a step, float32 (size, samples), and their captions."""
        ...

    def captions(self) -> list[str]:
        """Returns enough captions to train a vocabulary on."""
        ...


class Pool:
    """The first clips of a dataset, prepared once, kept in memory and reshuffled every epoch.

    Args:
        data: where the clips come from.
        prepare: maps the waveforms of a batch (size, samples) to the tensor (size, ...) that is kept.
        clips: how many clips to keep.
        size: of each batch.
        seed: of the order.
    """

    def __init__(
        self, data: Captioned, prepare: Callable[[Tensor], Tensor], clips: int, size: int, seed: int
    ) -> None:
        self.data, self.prepare, self.clips, self.size, self.seed = data, prepare, clips, size, seed
        self._prepared: dict[int, tuple[Tensor, list[str]]] = {}  # by batch index

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Returns the prepared clips of a step and their captions."""
        positions = [divmod(i, self.clips) for i in range(step * self.size, (step + 1) * self.size)]
        clips = [self._clip(int(self._order(epoch)[position])) for epoch, position in positions]
        return torch.stack([clip for clip, _ in clips]), [caption for _, caption in clips]

    @lru_cache(maxsize=2)  # noqa: B019 (a pool lives as long as its run)
    def _order(self, epoch: int) -> np.ndarray:
        # The first epoch is not shuffled, so that training need not wait until all clips are prepared.
        return rng("pool", self.seed, epoch).permutation(self.clips) if epoch else np.arange(self.clips)

    def _clip(self, index: int) -> tuple[Tensor, str]:
        batch, place = divmod(index, self.size)
        if batch not in self._prepared:
            wave, captions = self.data.batch(batch, self.size)
            self._prepared[batch] = self.prepare(wave), captions
        clips, captions = self._prepared[batch]
        return clips[place], captions[place]


@dataclass(frozen=True)
class Item:
    """A row of the caption table."""

    file: Path
    caption: str


class Folder:
    """A folder of sounds as batches of clips: longer sounds are cropped at random, shorter ones padded.

    Each epoch goes through all sounds once, in a new order. A batch is a function of the seed, the step and
    its size.

    Args:
        folder: holds the sounds and their table.
        seconds: length of a clip.
        sample_rate: of the clips, in Hz; every sound is mixed to mono and resampled to it.
        seed: of the order and the crops.
        pad: what fills up a short sound: "silence", or "repeat" for the sound again and again.
        captioned: False where captions are not needed: a folder without a table then contributes every sound
            in it and its subfolders, with the caption "".

    Raises:
        ValueError: the folder, the table or a sound is unusable.
    """

    def __init__(
        self, folder: Path, seconds: float, sample_rate: int, *, seed: int = 0, pad: str = "silence",
        captioned: bool = True,
    ) -> None:  # fmt: skip
        require_choice("pad", pad, PADDINGS)
        self.items = list_items(folder, captioned)
        self.folder, self.sample_rate, self.seed, self.pad = folder, sample_rate, seed, pad
        self.samples = round(seconds * sample_rate)
        self.seconds = sum(_duration(file) for file in dict.fromkeys(item.file for item in self.items))
        self._decoded: dict[Path, Tensor] = {}
        self._bytes_left = CACHE_BYTES

    def __repr__(self) -> str:
        return f"<{self.folder}: {len(self.items)} captioned sounds, {self.seconds / 60:.1f} minutes>"

    def captions(self) -> list[str]:
        """Returns every caption of the table."""
        return [item.caption for item in self.items if item.caption]

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """Returns the clips of a step, float32 (size, samples), and their captions."""
        epochs = range(step * size // len(self.items), ((step + 1) * size - 1) // len(self.items) + 1)
        order = np.concatenate([self._order(epoch) for epoch in epochs])
        first = step * size - epochs[0] * len(self.items)
        items = [self.items[i] for i in order[first : first + size]]
        waves = [
            crop_or_pad(self._wave(item.file), self.samples, rng("crop", self.seed, step, place), self.pad)
            for place, item in enumerate(items)
        ]
        return torch.stack(waves), [item.caption for item in items]  # (size, samples)

    def _order(self, epoch: int) -> np.ndarray:
        return rng("order", self.seed, epoch).permutation(len(self.items))

    def _wave(self, file: Path) -> Tensor:
        """Reads one sound as mono at the clips' sample rate: float32 (samples,)."""
        if file in self._decoded:
            return self._decoded[file]
        wave, rate = read(file)
        if not wave.isfinite().all():
            raise ValueError(f"{file} holds NaN or infinite samples; remove it from the folder.")
        wave = resample(wave, rate, self.sample_rate)
        if wave.nbytes <= self._bytes_left:
            self._decoded[file] = wave
            self._bytes_left -= wave.nbytes
        return wave


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


# The table --------------------------------------------------------------------------------------------------


def list_items(folder: Path, captioned: bool = True) -> list[Item]:
    """Lists the sounds of a folder in the order of its table.

    Args:
        folder: holds the sounds and their table.
        captioned: whether a table is required.

    Raises:
        ValueError: there is no table, there are several, or the table is unusable.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLES)
    if len(tables) > 1:
        raise ValueError(f"{folder} holds {some([table.name for table in tables])}; keep only one table.")
    if not tables and captioned:
        raise ValueError(
            f"{folder} has no captions: it needs a .csv with the columns 'file' and 'caption', or a .jsonl "
            'with lines such as {"file": "dog.wav", "caption": "a dog barks"}.'
        )
    if not tables:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SOUNDS)
        items = [Item(file, "") for file in files]
    else:
        items = list(_rows(tables[0]))
    if not items:
        raise ValueError(f"{tables[0] if tables else folder} lists no sounds.")
    missing = [str(item.file.relative_to(folder)) for item in items if not item.file.is_file()]
    if missing:
        raise ValueError(f"{tables[0]} names {some(missing)}, which cannot be found in {folder}.")
    return items


def _rows(table: Path) -> Iterator[Item]:
    read_lines = _csv_lines if table.suffix.lower() == ".csv" else _json_lines
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a byte order mark
            for number, row in read_lines(lines):
                if not isinstance(row, dict) or not all(
                    isinstance(row.get(field), str) and row[field].strip() for field in ("file", "caption")
                ):
                    raise ValueError(
                        f"{table}, line {number}: 'file' and 'caption' have to be non-empty texts."
                    )
                yield Item(table.parent / row["file"].strip(), row["caption"].strip())
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read as a table in UTF-8: {error}.") from error


def _csv_lines(lines: IO[str]) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(lines)
    missing = [field for field in ("file", "caption") if field not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{lines.name} has no column {some(missing)}; its first line has to name the columns."
        )
    for row in reader:
        yield reader.line_num, row


def _json_lines(lines: IO[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, json.loads(line)


def _duration(file: Path) -> float:
    """Returns the length of a sound file in seconds; raises ValueError if it is unreadable or empty."""
    try:
        info = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} is not a readable sound file: {error}") from error
    if not info.frames:
        raise ValueError(f"{file} is empty: it has no samples.")
    return info.frames / info.samplerate
