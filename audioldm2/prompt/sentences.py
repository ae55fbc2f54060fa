"""Long texts in parts that fit: cut at sentence ends, else at commas and dashes, else between words."""

# ruff: noqa: RUF001 - quotes and dashes of every kind are meant

import re
from collections.abc import Callable
from itertools import pairwise

from audioldm2.errors import ArgumentError

CLOSING = "\"'”’»)]}"  # belong to the sentence that they follow
# Their dot ends no sentence, and they stay with the word after them.
SHORT = (
    "mr mrs ms dr drs prof st mt ft sr jr rev hon gen maj col capt lt cpl sgt adm gov sen rep pres "
    "co inc ltd corp dept univ assn bros vs etc al ca approx est esp incl eg ie cf "
    "jan feb mar apr jun jul aug sept oct nov dec mon tue tues wed thu thur thurs fri "
    "ave blvd rd"
)
SHORT_BEFORE_DIGITS = "no nos fig figs vol vols ch sec p pp art eq sat sun"  # words of their own elsewhere

_SENTENCE = re.compile(rf"(?P<marks>[.!?…]+)(?P<closing>[{re.escape(CLOSING)}]*)\s+|\s*\n\s*\n\s*")
_CLAUSE = re.compile(rf"[,;:…][{re.escape(CLOSING)}]*\s+|\.\.+\s+|\s-+\s+|\s*(?:[–—]|--+)\s*")
_SPACE = re.compile(r"\s+")
_SHORT = re.compile(rf"(?<!['’\w])(?:[^\W\d_]|{'|'.join(SHORT.split())})\.\s*$", re.IGNORECASE)
_SHORT_BEFORE_DIGITS = re.compile(rf"\b(?:{'|'.join(SHORT_BEFORE_DIGITS.split())})\.\s*$", re.IGNORECASE)
_LOOK_BACK = 20  # characters; more than an abbreviation has


def split(text: str, count: Callable[[str], int], most: int) -> list[str]:
    """Cuts a text into as few parts as fit, each of them counting at most `most`.

    Sentences stay whole where they fit, and as many as fit are one part. A sentence that does not fit is cut
    after commas, semicolons, colons and dashes, and what does not fit even then between words. Nothing parts
    "Dr." from "Smith", or cuts "3.14" and "U.S.".

    Args:
        text: any.
        count: how much a text counts, such as its phonemes. A part that counts nothing joins another.
        most: what a part may count.

    Returns:
        The parts with the spaces after them: joined, they are the text again.

    Raises:
        ArgumentError: a word alone counts more.
    """
    return _split(text, [_sentence_ends, _clause_ends, _word_ends], count, most)


def pause_after(part: str) -> str:
    """What a part ends: a "paragraph", a "sentence", a "clause", or only a "word"."""
    if re.search(r"\n\s*\n\s*$", part):
        return "paragraph"
    end = part.rstrip().rstrip(CLOSING)
    if re.search(r"[.!?…]$", end):
        return "sentence"
    return "clause" if re.search(r"[,;:–—-]$", end) else "word"


Cuts = Callable[[str], list[int]]


def _split(text: str, cuts: list[Cuts], count: Callable[[str], int], most: int) -> list[str]:
    if count(text) <= most:
        return [text]
    if not cuts:
        word = text.strip()
        raise ArgumentError(
            "transcription",
            text,
            f"have words that fit into a clip, which holds {most} phonemes",
            given=f"contains '{word[:20]}{'...' * (len(word) > 20)}', which has {count(text)} phonemes",
        )
    parts, held = [], ""
    for start, end in pairwise([0, *cuts[0](text), len(text)]):
        piece = text[start:end]
        if held and count(held) > 0 and count(held + piece) > most:
            parts.append(held)
            held = ""
        held += piece
    parts.append(held)
    return [smaller for part in parts for smaller in _split(part, cuts[1:], count, most)]


def _sentence_ends(text: str) -> list[int]:
    """Where sentences and paragraphs begin after the first."""
    return [found.end() for found in _SENTENCE.finditer(text) if _ends_sentence(found, text)]


def _ends_sentence(found: re.Match[str], text: str) -> bool:
    following = text[found.end() : found.end() + 1]
    if not following:
        return False
    if found["marks"] is None or "\n\n" in re.sub(r"[^\S\n]", "", found[0]):
        return True
    if found["marks"] == "." and _is_short(text, found.end("marks"), following):
        return False
    # "Well... maybe" and "'Stop!' she cried" go on; in "hello. how are you" a sentence ends.
    goes_on = found["closing"] or found["marks"].endswith(("..", "…"))
    return not (goes_on and following.islower())


def _is_short(text: str, end: int, following: str) -> bool:
    """Whether the text ends with an abbreviation before `end`."""
    before = text[max(0, end - _LOOK_BACK) : end]
    return bool(_SHORT.search(before) or (following.isdigit() and _SHORT_BEFORE_DIGITS.search(before)))


def _clause_ends(text: str) -> list[int]:
    """Where clauses begin after the first."""
    return [found.end() for found in _CLAUSE.finditer(text) if 0 < found.end() < len(text)]


def _word_ends(text: str) -> list[int]:
    """Where words begin after the first, but for those that belong to an abbreviation before them."""
    ends = [found.end() for found in _SPACE.finditer(text) if found.start() > 0 and found.end() < len(text)]
    return [end for end in ends if not _is_short(text, end, text[end])]
