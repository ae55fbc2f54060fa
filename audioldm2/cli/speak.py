"""Transcriptions on the command line: from a file, and those that are too long for one clip."""

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from audioldm2.audio import MelSettings
from audioldm2.cli.output_files import Job, require_places, write
from audioldm2.cli.streams import print_path, report
from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError, shown
from audioldm2.options import GenerationOptions
from audioldm2.pipeline import AudioLDM2
from audioldm2.speaking import clips_of, seeded, speak


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


def clips_asked(
    model: AudioLDM2,
    options: GenerationOptions | EditOptions,
    job: Job,
    given: argparse.Namespace,
) -> list[str] | None:
    """The texts of the clips that a transcription takes; None where it is one clip, or there is none.

    Args:
        model: any.
        options: with the transcription.
        job: the sound to generate.
        given: the arguments of the command. With `join` all clips become one file; where `output` is a folder
            that exists, each becomes one.

    Raises:
        ArgumentError: the text is longer than the model can speak, and neither is asked for; or `join` has
            nothing to join.
        ValueError: a file of a clip cannot be written.
    """
    text = options.transcription if isinstance(options, GenerationOptions) else None
    if not model.speaks or not isinstance(text, str):
        if given.join:
            raise ArgumentError("join", True, "come with --transcription and a speech model", given="is set")
        return None
    assert isinstance(options, GenerationOptions)
    texts = clips_of(model, text, options.audio_length_in_s)
    if len(texts) == 1 or given.join:
        return texts if len(texts) > 1 else None
    if given.output is not None and given.output.is_dir():
        files = clip_jobs(job, len(texts))
        require_places(files, with_record=given.json, with_picture=given.plot, replace=given.replace)
        return texts
    advice = "--join makes one file of several clips, -o FOLDER a file of each"
    unspoken = "".join(clips_of(model, text, float("inf"))[1:]).strip()
    if unspoken:
        allowed = f"fit into a clip, or come with --join or with -o FOLDER: {advice}"
        given_words = f"is too long for one clip, which would leave out {shown(unspoken)}"
        raise ArgumentError("transcription", text, allowed, given=given_words)
    warnings.warn(f"the transcription may be too long for one clip; {advice}", stacklevel=2)
    return None


def clip_jobs(job: Job, clips: int) -> list[Job]:
    """One job for each clip: `name-1.wav`, `name-2.wav`, ... with numbers of equal width."""
    stem, width = job.sound.stem, len(str(clips))
    names = [f"{stem}-{place:0{width}}" for place in range(1, clips + 1)]
    return [Job(job.prompt, job.sound.with_stem(name)) for name in names]


def speak_job(
    model: AudioLDM2,
    job: Job,
    options: GenerationOptions | EditOptions,
    texts: Sequence[str],
    given: argparse.Namespace,
    front_end: MelSettings | None,
    follow: dict[str, Any],
) -> None:
    """Speak a long transcription, and write and list its files as they are finished.

    Args:
        model: a speech model.
        job: its prompt describes the voice.
        options: with the whole transcription.
        texts: as `clips_asked` returns them.
        given: the arguments of the command.
        front_end: of the pictures; None for none.
        follow: the two callbacks of `generate`.
    """
    assert isinstance(options, GenerationOptions)
    options = seeded(options)

    def on_part(place: int, texts: Sequence[str]) -> None:
        if not given.quiet:
            report(f"clip {place + 1} of {len(texts)}: {texts[place].strip()}")

    if given.join:
        rest = replace(options, transcription=None)
        speech = speak(model, job.prompt, "".join(texts), options=rest, on_part=on_part, **follow)
        write(speech, job, with_record=given.json, front_end=front_end)
        print_path(job.sound)
        return
    for place, clip in enumerate(clip_jobs(job, len(texts))):
        on_part(place, texts)
        own = replace(options, transcription=texts[place].strip())
        result = model.generate(job.prompt, options=own, **follow)
        write(result, clip, with_record=given.json, front_end=front_end)
        print_path(clip.sound)
