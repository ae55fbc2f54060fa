"""Caption tables: which sounds a data set has, with which captions, from any table that people have.

`table_files` reads their rows, folders.py finds the tables of a folder. Columns are found by name, in either
case: AUDIO_COLUMNS, CAPTION_COLUMNS, "caption_1", "caption_2" and so on (Clotho), "split", and of speech
"transcription" or "phonemes". Without a column of sounds, files are found by the ids of AudioCaps. Rows of
the same sound are one item with several captions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audioldm2.audio import find_sounds
from audioldm2.errors import ArgumentError, some
from audioldm2.table_files import folded, is_text, read_rows
from audioldm2.training.spoken import Spoken

AUDIO_COLUMNS = ("file", "file_name", "filename", "audio", "wav", "path")
CAPTION_COLUMNS = ("caption", "text", "captions")
SPOKEN_COLUMNS = ("transcription", "phonemes")
NUMBERED_CAPTION = re.compile(r"caption[ _]?\d+")
# AudioCaps names sounds by one of these columns: the prefix that people's downloads put before the id.
ID_COLUMNS = (("youtube_id", ""), ("youtube_id", "Y"), ("audiocap_id", ""))
EXAMPLE = '{"file": "dog.wav", "caption": "a dog barks"}'

TRAIN, VALIDATION, LEFT_OUT = "train", "validation", "left out"
SPLITS = {
    **dict.fromkeys(("train", "training", "development"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), LEFT_OUT),
}


@dataclass(frozen=True)
class Item:
    """A sound of a data set."""

    file: Path
    captions: tuple[str, ...]
    split: str = TRAIN  # or VALIDATION, or LEFT_OUT
    transcription: str = ""  # of speech: the words, or
    phonemes: str = ""  # the same in IPA, or both

    def __post_init__(self) -> None:
        if self.transcription or self.phonemes:
            spoken = (Spoken(each, self.transcription, self.phonemes) for each in self.captions)
            object.__setattr__(self, "captions", tuple(spoken))

    @property
    def caption(self) -> str:
        """The first caption; "" where there is none."""
        return self.captions[0] if self.captions else ""


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a user names; None: found by their usual names."""

    audio: str | None = None
    caption: str | None = None


@dataclass
class _Found:
    """The columns of one table by their role."""

    audio: str | None  # None: sounds are found by `ids`
    ids: list[tuple[str, str]]
    captions: list[str]
    split: str | None
    spoken: list[str]  # of SPOKEN_COLUMNS


def read_table(table: Path, columns: Columns | None = None, captioned: bool = True) -> list[Item]:
    """Read a table's items, in its order.

    Sounds are looked up relative to the table's folder. A bare name that is not there is looked up in the
    folders inside. Files that cannot be found are returned too; whoever opens them reports them.

    Args:
        table: its suffix is one of TABLES.
        columns: names of columns.
        captioned: whether captions are required.

    Raises:
        ValueError: the table is unusable; the message names the row.
    """
    columns = columns or Columns()
    files = _Files(table.parent)
    captions: dict[Path, list[str]] = {}
    splits: dict[Path, str] = {}
    spoken: dict[Path, dict[str, str]] = {}
    found: _Found | None = None
    for where, row in read_rows(table, EXAMPLE):
        if found is None:
            found = _find_columns(table, list(row), columns, captioned)
        file = _file_of(row, found, files, f"{table}, {where}")
        of_file = captions.setdefault(file, [])
        of_file += [each for each in _captions_of(row, found, f"{table}, {where}") if each not in of_file]
        split = _split_of(row, found, f"{table}, {where}")
        if splits.setdefault(file, split) != split:
            raise ValueError(f"{table}, {where}: '{file.name}' is in the splits {splits[file]} and {split}.")
        says = _spoken_of(row, found, f"{table}, {where}")
        if spoken.setdefault(file, says) != says:
            raise ValueError(f"{table}, {where}: '{file.name}' says {says} here, and {spoken[file]} above.")
    if not captions:
        raise ValueError(f"{table} lists no sounds.")
    return [Item(file, tuple(texts), splits[file], **spoken[file]) for file, texts in captions.items()]


# Columns ----------------------------------------------------------------------------------------------------


def _find_columns(table: Path, present: list[str], columns: Columns, captioned: bool) -> _Found:
    have = f"its columns are {some(present, 9)}"
    audio = _column(table, present, columns.audio, AUDIO_COLUMNS, "--audio-column")
    ids = [each for each in ID_COLUMNS if each[0] in present] if audio is None else []
    if audio is None and not ids:
        usual = "', '".join(AUDIO_COLUMNS)
        raise ValueError(
            f"{table} has no column of sound files; {have}. Name theirs with --audio-column, or '{usual}'."
        )
    captions = [name for name in present if NUMBERED_CAPTION.fullmatch(name)]
    if columns.caption or not captions:
        caption = _column(table, present, columns.caption, CAPTION_COLUMNS, "--caption-column")
        captions = [caption] if caption else []
    if captioned and not captions:
        usual = "', '".join(CAPTION_COLUMNS)
        raise ValueError(
            f"{table} has no column of captions; {have}. Name theirs with --caption-column, or '{usual}'."
        )
    spoken = [name for name in SPOKEN_COLUMNS if name in present] if captioned else []
    return _Found(audio, ids, captions, "split" if "split" in present else None, spoken)


def _column(
    table: Path, present: list[str], asked: str | None, usual: Sequence[str], flag: str
) -> str | None:
    if asked is not None:
        if folded(asked) not in present:
            raise ValueError(f"{table} has no column '{asked}' ({flag}); its columns are {some(present, 9)}.")
        return folded(asked)
    found = [name for name in usual if name in present]
    if len(found) > 1:
        raise ValueError(f"{table} has the columns {some(found, 9)}; choose one with {flag}.")
    return found[0] if found else None


# Values of a row --------------------------------------------------------------------------------------------


def _file_of(row: Mapping[str, Any], found: _Found, files: "_Files", where: str) -> Path:
    if found.audio is None:
        ids = {f"{prefix}{str(row.get(column, '')).strip()}": None for column, prefix in found.ids}
        named = [each for each in ids if each not in ("", "Y")]
        start = str(row.get("start_time") or "").strip()
        return files.with_id([*named, *(f"{each}_{start}" for each in named if start)], where)
    name = row.get(found.audio)
    if isinstance(name, dict):  # Hugging Face's audio objects
        name = name.get("path")
    if not is_text(name) or not name.strip() or "\0" in name:
        raise ValueError(f"{where}: '{found.audio}' has to be the name of a sound file.")
    return files.named(name.strip(), where)


def _captions_of(row: Mapping[str, Any], found: _Found, where: str) -> list[str]:
    texts: list[Any] = []
    for name in found.captions:
        value = row.get(name)
        texts += value if isinstance(value, list) else [value]
    texts = [text for text in texts if text is not None and text != ""]
    if not all(is_text(text) for text in texts):
        raise ValueError(f"{where}: {some(found.captions)} has to be a text.")
    texts = [text.strip() for text in texts if text.strip()]
    if found.captions and not texts:
        raise ValueError(f"{where}: {some(found.captions)} has to be a non-empty text.")
    return texts


def _spoken_of(row: Mapping[str, Any], found: _Found, where: str) -> dict[str, str]:
    says = {}
    for name in found.spoken:
        value = row.get(name)
        if value is not None and not is_text(value):
            raise ValueError(f"{where}: '{name}' has to be a text.")
        says[name] = (value or "").strip()
    if says and not any(says.values()):
        raise ValueError(f"{where}: {some(found.spoken)} has to be a non-empty text.")
    return says


def _split_of(row: Mapping[str, Any], found: _Found, where: str) -> str:
    if found.split is None:
        return TRAIN
    value = row.get(found.split)
    if not isinstance(value, str) or folded(value) not in SPLITS:
        raise ArgumentError(f"{where}: 'split'", value, f"be one of {', '.join(SPLITS)}")
    return SPLITS[folded(value)]


@dataclass
class _Files:
    """Where the sounds of a table are."""

    folder: Path
    by_name: dict[str, list[Path]] = field(default_factory=dict)  # and by stem; filled at the first miss

    def named(self, name: str, where: str) -> Path:
        """The file of a name; the place where it should be if there is none."""
        file = self.folder / name
        if file.is_file() or Path(name).name != name:
            return file
        return self._inside([name], where) or file

    def with_id(self, ids: list[str], where: str) -> Path:
        """The sound file whose stem is one of some ids."""
        if not ids:
            raise ValueError(f"{where}: the row has no id.")
        return self._inside(ids, where) or self.folder / f"{ids[0]}.wav"

    def _inside(self, names: list[str], where: str) -> Path | None:
        if not self.by_name:
            for sound in find_sounds(self.folder)[0]:
                for name in {sound.name, sound.stem}:
                    self.by_name.setdefault(name, []).append(sound)
        found = next((self.by_name[name] for name in names if name in self.by_name), [])
        if len(found) > 1:
            places = some([str(each.relative_to(self.folder)) for each in found])
            raise ValueError(f"{where}: '{names[0]}' may be {places}; keep one, or write its folder too.")
        return found[0] if found else None
