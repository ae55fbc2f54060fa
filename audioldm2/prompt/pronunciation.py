"""What a text sounds like: its phonemes, by a table of words where one has them all, else by espeak.

The speech models were trained on what the package phonemizer gives with espeak, `strip`,
`preserve_punctuation` and `with_stress`: a text is split at punctuation marks, espeak reads the parts, and
the marks return to their places. Marks between digits do not split: "3.14" and "1,000" are numbers.
"""

import re
from collections.abc import Mapping

from audioldm2.errors import ArgumentError
from audioldm2.prompt import espeak
from audioldm2.prompt.english import clean

BRACKETS = "(){}[]"  # split as well, but are no symbols of the models
_MARK = rf'[;:!?"{re.escape(BRACKETS)}]|(?<!\d)[,.]|[,.](?!\d)'
_MARKS = re.compile(rf"((?:\s*(?:{_MARK}))+\s*)")
_NO_BRACKETS = str.maketrans("", "", BRACKETS)


def pronounce(text: str, pronunciations: Mapping[str, str] | None = None) -> str:
    """The phonemes of an English text: IPA, with stress and punctuation marks; "" for an empty text.

    Args:
        text: any; see `english.clean` for what is left out.
        pronunciations: phonemes of words in lower case. Where it has every word of the text, espeak is not
            used and need not be there; otherwise espeak reads the whole text.

    Raises:
        ArgumentError: the text has letters of another alphabet, nothing to say, or a word that is too
            long for espeak.
        EspeakError: espeak is needed and not found.
    """
    if not isinstance(text, str):
        raise ArgumentError("transcription", text, "be a text")
    phrases, marks = _split(text)
    spoken = _by_table(phrases, pronunciations)
    if spoken is None:
        spoken = espeak.phonemes(phrases)
    pairs = zip(spoken, [*marks, ""], strict=True)
    found = " ".join("".join(phrase + mark for phrase, mark in pairs).split())
    if not found and text.strip():
        raise ArgumentError("transcription", text, "have words or punctuation marks")
    return found


def pronounced_by(text: str, pronunciations: Mapping[str, str] | None = None) -> str:
    """What `pronounce` takes the phonemes from: "table", or the espeak it finds, such as "espeak-ng 1.51".

    Raises:
        ArgumentError, EspeakError: as `pronounce`.
    """
    return "table" if _by_table(_split(text)[0], pronunciations) is not None else espeak.version()


def _split(text: str) -> tuple[list[str], list[str]]:
    """The phrases of a text, and the marks between them with the spaces around: one fewer."""
    parts = _MARKS.split(clean(text))
    return parts[::2], [mark.translate(_NO_BRACKETS) or " " for mark in parts[1::2]]


def _by_table(phrases: list[str], pronunciations: Mapping[str, str] | None) -> list[str] | None:
    """The phonemes of phrases by a table; None where it has not every word."""
    words = [phrase.split() for phrase in phrases]
    table = pronunciations or {}
    if not all(word in table for phrase in words for word in phrase):
        return None
    return [" ".join(table[word] for word in phrase) for phrase in words]
