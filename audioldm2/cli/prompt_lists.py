"""Lists of sounds to generate (`--prompts`): a text file with a prompt a line, or a table.

    .csv .tsv .jsonl .json    the column prompt, and where wanted COLUMNS' others; an empty field, or null,
                              means the command's own setting, and beside an audio_prompt no text
    any other                 a prompt a line; for a model that speaks, "description | words"

Every row is checked before anything runs. Empty lines are passed over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from audioldm2.errors import ArgumentError, some
from audioldm2.options import GenerationOptions
from audioldm2.table_files import TABLES, is_text, read_rows

COLUMNS = ("prompt", "transcription", "phonemes", "audio_prompt", "seed", "duration", "negative_prompt")
EXAMPLE = '{"prompt": "rain on a tin roof", "seed": 3}'
# column -> the option that it sets for its line
OPTIONS = {"seed": "seed", "duration": "audio_length_in_s", "negative_prompt": "negative_prompt"}
RULES = {each.name: each.metadata["rule"] for each in fields(GenerationOptions)}


@dataclass(frozen=True)
class Line:
    """A sound of a list; None stands for the command's own setting."""

    where: str  # file and line, for messages
    prompt: str
    text: str  # what names the sound's file
    transcription: str | None = None
    phonemes: str | None = None
    audio_prompt: Path | None = None
    seed: int | None = None
    duration: float | None = None  # seconds
    negative_prompt: str | None = None

    @property
    def speaks(self) -> bool:
        """Whether it says what is spoken."""
        return self.transcription is not None or self.phonemes is not None


def read_lines(path: Path) -> list[Line]:
    """Read the lines of a list.

    Raises:
        ValueError: the list is unusable; the message names the file and the row.
        OSError: from the system.
    """
    lines = list(_rows(path) if path.suffix.lower() in TABLES else _text_lines(path))
    if not lines:
        raise ValueError(f"--prompts {path}: the file has no prompt; write one a line.")
    return lines


def require_distinct(lines: Sequence[Line], seed: Any) -> None:
    """Raise ValueError for a line that asks for the very sound of another.

    Args:
        lines: of a list.
        seed: the command's; None draws one a line, which makes equal lines different sounds.
    """
    first: dict[Line, str] = {}
    for line in lines:
        if line.seed is None and seed is None:
            continue
        same = replace(line, where="", seed=seed if line.seed is None else line.seed)
        before = first.setdefault(same, line.where)
        if before != line.where:
            raise ValueError(
                f"{line.where} repeats {before.rpartition(', ')[2]}: the same seed would give the same sound "
                "twice. Take it out, give it another seed in a table, or draw seeds with --seed random."
            )


def for_model(lines: Sequence[Line], speaks: bool, path: Path) -> list[Line]:
    """The lines as a model reads them: one that speaks finds words behind the "|" of a text file's line.

    Raises:
        ValueError: a line has words for a model that does not speak, or none for one that does.
    """
    if not speaks:
        for line in lines:
            if line.speaks:
                raise ValueError(f"{line.where} has words to speak, and this model makes sounds and music.")
        return list(lines)
    if path.suffix.lower() not in TABLES:
        lines = [_with_words(line) for line in lines]
    for line in lines:
        if not line.speaks:
            raise ValueError(
                f"{line.where} has no words to speak; a line of text is 'description | words', and a table "
                "has the column transcription or phonemes."
            )
    return list(lines)


def _with_words(line: Line) -> Line:
    prompt, _, words = (part.strip() for part in line.prompt.partition("|"))
    return replace(line, prompt=prompt, transcription=words or None)


def _text_lines(path: Path) -> Iterator[Line]:
    try:
        with open(path, encoding="utf-8-sig") as lines:  # editors on Windows begin with a mark
            for number, line in enumerate(lines, start=1):
                text = line.strip()
                if text:
                    yield Line(f"{path}, line {number}", text, text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompts {path}: the file is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error


def _rows(path: Path) -> Iterator[Line]:
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    for place, row in read_rows(path, EXAMPLE):
        where = f"{path}, {place}"
        for name in row:
            if name not in COLUMNS:
                raise ValueError(_unknown(str(path) if is_csv else where, name))
        if not {"prompt", "audio_prompt"} & row.keys():
            raise ValueError(f"{path if is_csv else where} has no column 'prompt'.")
        values = {name: _value(name, value, where, is_csv) for name, value in row.items()}
        prompt, sound = (values.pop(name, None) for name in ("prompt", "audio_prompt"))
        if prompt is None and sound is None:
            allowed = "be a text that is not empty, unless there is an audio_prompt"
            raise ArgumentError(f"{where}: prompt", row.get("prompt"), allowed)
        file = None if sound is None else _file_of(sound, path.parent)
        yield Line(where, prompt or "", prompt or text_of(file), audio_prompt=file, **values)


def _file_of(name: str, folder: Path) -> Path:
    """A file named in a table: beside the table, or else in the current folder."""
    beside = folder / name
    return Path(name) if not beside.exists() and Path(name).exists() else beside


def text_of(audio_prompt: Path | str | None) -> str:
    """What names a sound that has no text: not what names its sound prompt, which it would replace."""
    return f"like {Path(audio_prompt or '').stem}"


def _unknown(where: str, name: str) -> str:
    close = get_close_matches(name, COLUMNS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {some(list(COLUMNS), len(COLUMNS))}."
    return f"{where} has the unknown column '{name}'; {hint}"


def _value(name: str, value: Any, where: str, is_csv: bool) -> Any:
    """A value of a row by the rule of its column; None where the row says nothing."""
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "":
        return None
    if name in OPTIONS and name != "negative_prompt":
        if isinstance(value, list):  # which the option of all prompts may be
            raise ArgumentError(f"{where}: {name}", value, "be a number")
        return RULES[OPTIONS[name]](f"{where}: {name}", _number(value, name) if is_csv else value)
    if not is_text(value):
        raise ArgumentError(f"{where}: {name}", value, "be a text")
    return value


def _number(text: str, name: str) -> Any:
    """The number of a field; the text itself, which the rule refuses, where it is none."""
    try:
        return int(text) if name == "seed" else float(text)
    except ValueError:
        return text
