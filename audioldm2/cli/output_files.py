"""The files of a sound: where they go, what they may replace, and how they are written.

Beside `x.wav` stand its record, `x.wav.json`, and its picture, `x.wav.png`. A sound replaces a file of its
name; a record and a picture replace only what this program wrote for that name.
"""

import json
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm2.audio import SOUND_FORMATS, MelSettings
from audioldm2.cli.prompt_lists import Line, read_lines, text_of
from audioldm2.files import atomic_write, safe_name
from audioldm2.result import Result
from audioldm2.speaking import Speech

PNG_HEADER = 33  # bytes of the signature and of the first chunk, which has a fixed size
PNG_MARK = b"Software\0audioldm2"  # a PNG text chunk: keyword, zero, text
LONGEST_FILE_NAME = 255  # bytes, on all common file systems


@dataclass(frozen=True)
class Job:
    """One prompt and the sound file that it becomes."""

    prompt: str
    sound: Path
    line: Line | None = None  # of the list that it comes from

    @property
    def record(self) -> Path:
        return self.sound.with_name(self.sound.name + ".json")

    @property
    def picture(self) -> Path:
        return self.sound.with_name(self.sound.name + ".png")


# Where sounds go --------------------------------------------------------------------------------------------


def plan_jobs(
    prompt: str | None, prompts: Path | None, output: Path | None, audio_prompt: Path | str | None = None
) -> list[Job]:
    """The sounds to generate; nothing is written yet.

    Args:
        prompt: the only prompt, or None.
        prompts: a list (see `prompt_lists`), or None.
        output: a sound file; a folder; or None for the current folder.
        audio_prompt: a sound file as the prompt, beside the text or in its place.
    """
    if prompts is not None and prompt is None:
        return _jobs_from_file(prompts, output)
    if prompts is not None or (prompt is None and audio_prompt is None):
        raise ValueError(
            'give either one prompt in quotes, as in audioldm2 "rain on a tin roof", '
            "or a file with one prompt a line, as in audioldm2 --prompts prompts.txt."
        )
    prompt = prompt or ""
    if not prompt.strip() and audio_prompt is None:
        raise ValueError("the prompt is empty; describe a sound.")
    name = prompt if prompt.strip() else text_of(audio_prompt)
    return [Job(prompt, _sound_path(output, name))]


def _sound_path(output: Path | None, prompt: str) -> Path:
    if output is None:
        return Path(f"{safe_name(prompt)}.wav")
    if output.is_dir():
        return output / f"{safe_name(prompt)}.wav"
    if output.suffix.lower() not in SOUND_FORMATS:
        raise ValueError(
            f"-o {output} is neither a folder that exists nor a sound file; its name has to end in one of "
            f"{', '.join(SOUND_FORMATS)}."
        )
    require_place(output)
    return output


def _jobs_from_file(prompts: Path, folder: Path | None) -> list[Job]:
    """One job for each line of a list. A number tells equal names apart."""
    lines = read_lines(prompts)
    folder = folder or Path()
    if not folder.is_dir() and (folder.exists() or folder.suffix.lower() in SOUND_FORMATS):
        raise ValueError(f"-o {folder}: with --prompts this is the folder for all sounds, not a file.")
    jobs, taken = [], set()
    for line in lines:
        name, count = safe_name(line.text), 1
        while name.casefold() in taken:  # some file systems ignore case
            count += 1
            name = f"{safe_name(line.text)}-{count}"
        taken.add(name.casefold())
        jobs.append(Job(line.prompt, folder / f"{name}.wav", line))
    return jobs


# What may be replaced ---------------------------------------------------------------------------------------


def require_places(jobs: list[Job], *, with_record: bool, with_picture: bool, replace: bool) -> None:
    """Raise ValueError, or OSError from the system, unless every file can be written.

    Called before a model is loaded: a sound that took an hour must not be lost to the name of a file.
    """
    for folder in {job.sound.parent for job in jobs}:
        require_writable(folder)
    for job in jobs:
        beside = [job.record] * with_record + [job.picture] * with_picture
        for path in (job.sound, *beside):
            if len(path.name.encode(errors="surrogateescape")) > LONGEST_FILE_NAME:
                raise ValueError(f"{path.name} is too long for the name of a file; give another with -o.")
            if path.is_dir():
                raise ValueError(f"{path}, the name of a file to write, is a folder; give another with -o.")
            if path.exists() and not replace:
                raise ValueError(f"{path} exists already, and --no-clobber replaces no file.")
        if with_record and job.record.exists() and not is_record(job.record, job.sound.name):
            raise ValueError(
                f"{job.record} exists and is not a record of {job.sound.name}; move it, give another name "
                "with -o, or leave the record out with --no-json."
            )
        if with_picture and job.picture.exists() and not is_picture(job.picture):
            raise ValueError(
                f"{job.picture} exists and is not a picture by audioldm2; move it, give another name "
                "with -o, or leave out --plot."
            )


def require_others(jobs: list[Job], given: Iterable[Path | None]) -> None:
    """Raise ValueError where a sound would replace a file that is given to begin with, or as a prompt."""
    kept = {path.resolve() for path in given if path}
    for job in jobs:
        if kept and job.sound.resolve() in kept:
            raise ValueError(
                f"{job.sound}, the file to write, is a sound that is given; name another with -o."
            )


def require_place(path: Path) -> None:
    """Raise ValueError unless a file can be written at a path, in a folder that exists."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"the output folder {path.parent} does not exist; make it, or give another.")
    require_writable(path.parent)


def require_writable(folder: Path) -> None:
    """Raise ValueError unless files can be created in a folder, or in the closest one above that exists."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # os.access says yes to root, whatever the folder is
    except OSError as error:
        raise ValueError(
            f"the output folder {folder} cannot be written to ({error.strerror}); give another."
        ) from error


def is_record(path: Path, sound: str) -> bool:
    """Whether a file is a record that this program wrote for a sound of that file name."""
    return read_record(path, sound) is not None


def read_record(path: Path, sound: str) -> dict[str, Any] | None:
    """The record that this program wrote for a sound of that file name; None where a file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return None
    ours = isinstance(found, dict) and "audioldm2" in found and found.get("file") == sound
    return found if ours else None


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG that this program wrote."""
    try:
        with open(path, "rb") as file:
            return PNG_MARK in file.read(PNG_HEADER + len(PNG_MARK) + 12)
    except OSError:
        return False


# Writing ----------------------------------------------------------------------------------------------------


def write(
    result: Result | Speech,
    job: Job,
    *,
    with_record: bool,
    front_end: MelSettings | None,
    for_list: Mapping[str, Any] | None = None,
) -> None:
    """Write the best sound of a result, and what belongs to it; each completely or not at all.

    Args:
        result: of one prompt.
        job: where to.
        with_record: whether to write the record.
        front_end: of the spectrogram, for a picture; None for no picture.
        for_list: more entries of the record, for a sound of a list. The sound is then written last, so that
            where a sound and its record are, both are whole, whenever the process was killed.
    """
    job.sound.parent.mkdir(parents=True, exist_ok=True)
    if for_list is not None:
        with naming(job.sound):
            job.sound.unlink(missing_ok=True)
        if with_record:
            _write_record(job, {**result.record(), **for_list})
    with naming(job.sound):
        result.save(job.sound)
    if for_list is None and with_record:
        _write_record(job, result.record())
    if front_end is not None:
        with naming(job.picture), atomic_write(job.picture) as draft:
            _draw(result, draft, front_end)


def _write_record(job: Job, record: Mapping[str, Any]) -> None:
    with naming(job.record), atomic_write(job.record) as draft:
        text = json.dumps({"file": job.sound.name, **record}, indent=2, ensure_ascii=False) + "\n"
        # Half a surrogate pair, from a name that is not UTF-8, becomes the escape that JSON has for it.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def _draw(result: Result | Speech, path: Path, front_end: MelSettings) -> None:
    from audioldm2.audio.plot import save_plot

    title = result.request.prompts[0]
    save_plot(result.audio[0, 0], result.sample_rate, result.mel[0], front_end, title, path)
    png = path.read_bytes()
    chunk = struct.pack(">I", len(PNG_MARK)) + b"tEXt" + PNG_MARK
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    path.write_bytes(png[:PNG_HEADER] + chunk + png[PNG_HEADER:])


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name the file to be written, not its draft or nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
