"""Captioned sounds: a folder of sound files with a table of captions, as batches of clips of one length.

The table is the folder's only .csv (with the columns file and caption, and perhaps others) or its only .jsonl
(a line {"file": ..., "caption": ...} each); files are named relative to the folder. A file with several
captions has several lines.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.audio import read, resample
from audioldm2.errors import some
from audioldm2.training.randomness import rng

TABLES = (".csv", ".jsonl")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")  # looked for where no table is needed
PADDINGS = ("silence", "repeat")  # what follows a sound that is shorter than a clip
KEPT = 2 << 30  # bytes of decoded sound that stay in memory; what is beyond is read again each time


class Captioned(Protocol):
    """Captioned sounds, endless and the same each time: all that training asks of data."""

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        """The clips of a step, float32 (size, samples), and the caption of each."""
        ...

    def captions(self) -> list[str]:
        """Enough captions to train a vocabulary on."""
        ...


class Pool:
    """The first clips of data, made ready once and kept in memory, in an order drawn anew each time round.

    ready: what is made of the waves (size, samples) of a batch: a tensor (size, ...).
    clips: how many; they come in batches of `size`.
    """

    def __init__(self, data: Captioned, ready: Callable[[Tensor], Tensor], clips: int, size: int, seed: int):
        self.data, self.ready, self.clips, self.size, self.seed = data, ready, clips, size, seed
        self._kept: dict[int, tuple[Tensor, list[str]]] = {}  # of each batch of the data

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """What is ready of the clips of a step, and their captions."""
        places = [divmod(place, self.clips) for place in range(step * self.size, (step + 1) * self.size)]
        clips = [self._clip(int(self._order(round_)[place])) for round_, place in places]
        return torch.stack([clip for clip, _ in clips]), [caption for _, caption in clips]

    @lru_cache(maxsize=2)  # noqa: B019 (a pool lives as long as its run)
    def _order(self, round_: int) -> np.ndarray:
        """The first time as they are, so that training need not wait until all are ready."""
        return rng("pool", self.seed, round_).permutation(self.clips) if round_ else np.arange(self.clips)

    def _clip(self, place: int) -> tuple[Tensor, str]:
        batch, place = divmod(place, self.size)
        if batch not in self._kept:
            wave, captions = self.data.batch(batch, self.size)
            self._kept[batch] = self.ready(wave), captions
        clips, captions = self._kept[batch]
        return clips[place], captions[place]


@dataclass(frozen=True)
class Item:
    file: Path
    caption: str


class Folder:
    """A folder of sounds as batches of clips: a random part of what is longer, padding after what is shorter.

    Every sound comes once before any comes again, in an order that is drawn anew each time round. A batch is
    a function of the seed, the step and its size.

    seconds:     of a clip. sample_rate: Hz, of the clips; each sound is made mono and resampled to it.
    pad:         what follows a short sound: "silence", or "repeat" for the sound again and again.
    captioned:   False where captions are not needed: then a folder without a table gives every sound in it,
                 those in its folders too, with the caption "".
    Raises ValueError, a sentence, for a folder, a table or a sound that cannot be used.
    """

    def __init__(
        self, folder: Path, seconds: float, sample_rate: int, *, seed: int = 0, pad: str = "silence",
        captioned: bool = True,
    ):  # fmt: skip
        if pad not in PADDINGS:
            raise ValueError(f"pad is {pad!r}; it has to be one of {', '.join(PADDINGS)}.")
        self.items = list_items(folder, captioned)
        self.folder, self.sample_rate, self.seed, self.pad = folder, sample_rate, seed, pad
        self.samples = round(seconds * sample_rate)
        self.seconds = sum(_seconds(file) for file in dict.fromkeys(item.file for item in self.items))
        self._decoded: dict[Path, Tensor] = {}
        self._room = KEPT

    def __repr__(self) -> str:
        return f"<{self.folder}: {len(self.items)} captioned sounds, {self.seconds / 60:.1f} minutes>"

    def captions(self) -> list[str]:
        return [item.caption for item in self.items if item.caption]

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        rounds = range(step * size // len(self.items), ((step + 1) * size - 1) // len(self.items) + 1)
        order = np.concatenate([self._order(round_) for round_ in rounds])
        first = step * size - rounds[0] * len(self.items)
        items = [self.items[i] for i in order[first : first + size]]
        waves = [
            clip(self._wave(item.file), self.samples, rng("crop", self.seed, step, place), self.pad)
            for place, item in enumerate(items)
        ]
        return torch.stack(waves), [item.caption for item in items]  # (size, samples)

    def _order(self, round_: int) -> np.ndarray:
        """Of the sounds, the `round_`-th time through."""
        return rng("order", self.seed, round_).permutation(len(self.items))

    def _wave(self, file: Path) -> Tensor:
        """One sound, mono, at the rate of the clips: float32 (samples,)."""
        if file in self._decoded:
            return self._decoded[file]
        wave, rate = read(file)
        if not wave.isfinite().all():
            raise ValueError(f"{file} holds samples that are no numbers (NaN or infinite); take it out.")
        wave = resample(wave, rate, self.sample_rate)
        if wave.nbytes <= self._room:
            self._decoded[file] = wave
            self._room -= wave.nbytes
        return wave


def clip(wave: Tensor, samples: int, chance: np.random.Generator, pad: str = "silence") -> Tensor:
    """So many samples of a wave (its samples,): a random part, or all of it and padding after it."""
    if len(wave) < samples:
        if pad == "repeat":
            return wave.repeat(math.ceil(samples / len(wave)))[:samples]
        return F.pad(wave, (0, samples - len(wave)))
    start = int(chance.integers(len(wave) - samples + 1))
    return wave[start : start + samples]


# The table --------------------------------------------------------------------------------------------------


def list_items(folder: Path, captioned: bool = True) -> list[Item]:
    """The sounds of a folder, in the order of its table; ValueError, a sentence, where that cannot be had."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in TABLES)
    if len(tables) > 1:
        raise ValueError(f"{folder} holds {some([table.name for table in tables])}; leave one table there.")
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
    """What the lines of a table say."""
    read_lines = _csv_lines if table.suffix.lower() == ".csv" else _json_lines
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a mark in front
            for number, row in read_lines(lines):
                if not isinstance(row, dict) or not all(
                    isinstance(row.get(field), str) and row[field].strip() for field in ("file", "caption")
                ):
                    raise ValueError(f"{table}, line {number}: 'file' and 'caption' have to be texts.")
                yield Item(table.parent / row["file"].strip(), row["caption"].strip())
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read as a table in UTF-8: {error}.") from error


def _csv_lines(lines) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(lines)
    absent = [field for field in ("file", "caption") if field not in (reader.fieldnames or ())]
    if absent:
        raise ValueError(
            f"{lines.name} has no column {some(absent)}; its first line has to name the columns."
        )
    for row in reader:
        yield reader.line_num, row


def _json_lines(lines) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, json.loads(line)


def _seconds(file: Path) -> float:
    """How long a sound file is; ValueError where it cannot be read, or is empty."""
    try:
        found = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} is not a sound file that can be read: {error}") from error
    if not found.frames:
        raise ValueError(f"{file} holds no sound: it has no samples.")
    return found.frames / found.samplerate
