"""Checks of all sounds before training: what is found, what is kept, what is refused or left out."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2.training import sound_checks
from audioldm2.training.sound_checks import cache_folder, check_sounds, sift


def tone(path: Path, seconds: float = 0.2) -> Path:
    soundfile.write(path, 0.3 * np.sin(np.arange(round(16_000 * seconds)) / 9), 16_000)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return cache_folder()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two good files and one of each kind that is bad."""
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.flac")
    nan = np.array([0.1, np.nan])
    soundfile.write(tmp_path / "nan.wav", nan, 16_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "empty.wav").touch()
    cut = tone(tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(cut[: len(cut) // 2])
    return tmp_path


def checked(folder: Path, **named) -> dict[str, str]:
    files = [*sorted(folder.iterdir()), folder / "gone.wav"]
    return {file.name: each.reason for file, each in check_sounds(files, folder, **named).items()}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_kind_of_bad_file_is_found(folder, workers):
    reasons = checked(folder, workers=workers)
    assert reasons["a.wav"] == reasons["b.flac"] == ""
    assert reasons["nan.wav"] == "has 1 samples of 2 that are NaN or infinite"
    assert reasons["text.wav"].startswith("is not a sound file that can be read")
    assert reasons["empty.wav"] == "is an empty file"
    assert reasons["cut.wav"].startswith("is cut off: ")
    assert reasons["gone.wav"] == "cannot be found"


def test_unchanged_files_are_decoded_once(folder, monkeypatch):
    first, decoded = checked(folder), []
    examine = sound_checks.examine
    monkeypatch.setattr(sound_checks, "examine", lambda file: decoded.append(file.name) or examine(file))
    assert checked(folder) == first and decoded == []
    tone(folder / "text.wav")  # mended
    os.utime(folder / "a.wav", ns=(1, 1))
    again = checked(folder)
    assert sorted(decoded) == ["a.wav", "text.wav"] and again["text.wav"] == ""


def test_nothing_is_written_among_the_sounds(folder, cache):
    before = sorted(folder.rglob("*"))
    checked(folder)
    assert sorted(folder.rglob("*")) == before
    assert len(list((cache / "sounds").iterdir())) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 1}', "half"])
def test_damaged_cache_is_made_anew(folder, cache, damage):
    first = checked(folder)
    (file,) = (cache / "sounds").iterdir()
    whole = file.read_text()
    file.write_text(damage if damage != "half" else whole[: len(whole) // 2])
    assert checked(folder) == first
    assert json.loads(file.read_text()) == json.loads(whole)


def test_cache_that_cannot_be_written_is_reported(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "a.wav"))
    lines: list[str] = []
    assert checked(folder, report=lines.append)["a.wav"] == ""
    assert len(lines) == 1 and "could not be written" in lines[0] and "the next run checks" in lines[0]


def test_interrupted_checks_are_kept(folder, monkeypatch):
    decoded: list[str] = []
    check = sound_checks.check

    def interrupted(file: Path):
        if file.name == "cut.wav":
            raise KeyboardInterrupt
        decoded.append(file.name)
        return check(file)

    monkeypatch.setattr(sound_checks, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checked(folder)
    monkeypatch.setattr(sound_checks, "check", lambda file: decoded.append(file.name) or check(file))
    decoded.clear()
    checked(folder)
    assert "a.wav" not in decoded and "cut.wav" in decoded


def test_progress_is_reported(folder, monkeypatch):
    monkeypatch.setattr(sound_checks, "PROGRESS_SECONDS", -1.0)
    lines: list[str] = []
    checked(folder, report=lines.append)
    assert len(lines) == 7 and lines[0].startswith("checked 1/7 sounds, ") and lines[0].endswith(" s left")


def test_bad_files_are_refused_with_the_way_out(tmp_path):
    reasons = {tmp_path / f"{name}.wav": "is cut off" for name in "abcde"}
    with pytest.raises(ValueError) as error:
        sift(reasons, 9, tmp_path, skip=False, report=print)
    first = "a.wav is cut off; b.wav is cut off; c.wav is cut off; and 2 more."
    assert str(error.value) == (
        f"5 of 9 sounds of {tmp_path} cannot be used: {first} Mend or remove them, or leave them out with "
        "--skip-bad."
    )


def test_bad_files_are_left_out_and_each_is_listed(tmp_path):
    lines: list[str] = []
    reasons = {tmp_path / f"{name}.wav": "is cut off" for name in "abcde"}
    sift(reasons, 9, tmp_path, skip=True, report=lines.append)
    assert lines[0] == f"5 of 9 sounds of {tmp_path} cannot be used and are left out:"
    assert lines[1:] == [f"  {name}.wav is cut off" for name in "abcde"]
    with pytest.raises(ValueError, match="5 of 5 sounds"):
        sift(reasons, 5, tmp_path, skip=True, report=lines.append)
