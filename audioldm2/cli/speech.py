"""--transcription-file of the command line: the words to speak, from a text file."""

import argparse
from pathlib import Path

from audioldm2.errors import ArgumentError


def take_transcription_file(given: argparse.Namespace) -> None:
    """Set `given.transcription` to the text of --transcription-file, if that is given.

    Raises:
        ArgumentError: what is spoken is given twice.
        ValueError: the file is not text, or empty.
        OSError: it cannot be opened.
    """
    path: Path | None = given.transcription_file
    if path is None:
        return
    if given.transcription is not None or given.phonemes is not None:
        allowed = "be left out with --transcription or --phonemes, which say the same"
        raise ArgumentError("transcription_file", str(path), allowed)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()  # editors on Windows begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--transcription-file {path}: the file is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error
    if not text:
        raise ValueError(f"--transcription-file {path}: the file is empty; write the words to speak.")
    given.transcription = " ".join(text.split())
