"""Transcriptions that are too long for one clip, on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

import audioldm2
from tests.support.command_line import CODE, ERR, OUT, Outcome, names
from tests.support.speaking import SECONDS, write_speech_model

LONG = "one two three. seven seven, yes one two."  # three clips of the tiny model
TOO_LONG = "seven " * 60


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory, tiny_folder) -> Path:
    return write_speech_model(tmp_path_factory.mktemp("speech") / "speech", tiny_folder)


@pytest.fixture
def say(run, folder, speech_folder) -> Callable[..., Outcome]:
    """Runs a command that speaks, in an empty folder."""
    return lambda *rest: run("a voice", "--model", speech_folder, "--steps", "1", *rest)


@pytest.mark.slow
def test_joined_clips_are_one_file_with_a_record_of_all(say: Callable[..., Outcome], folder: Path):
    found = say("--transcription", LONG, "--join", "-o", "x.wav", "--seed", "5")
    assert found[CODE] == 0 and found[OUT] == "x.wav\n" and "clip 3 of 3: yes one two." in found[ERR]
    assert names(folder) == ["x.wav", "x.wav.json"]
    record = json.loads((folder / "x.wav.json").read_text(encoding="utf-8"))
    assert record["file"] == "x.wav" and record["transcription"] == LONG and record["seed"] == 5
    assert {each["pronounced_by"] for each in record["clips"]} == {"table"}
    assert [each["transcription"] for each in record["clips"]] == [
        *("one two three.", "seven seven,", "yes one two.")
    ]
    assert soundfile.info(folder / "x.wav").duration == pytest.approx(record["seconds"], abs=1e-3)


def test_a_folder_has_a_file_of_each_clip(say: Callable[..., Outcome], folder: Path):
    (folder / "out").mkdir()
    found = say("--transcription", LONG, "-o", "out", "--no-json")
    assert found[CODE] == 0 and found[OUT].split("\n")[:3] == [
        str(Path("out") / f"a_voice-{place}.wav") for place in (1, 2, 3)
    ]
    assert names(folder / "out") == ["a_voice-1.wav", "a_voice-2.wav", "a_voice-3.wav"]
    again = say("--transcription", LONG, "-o", "out", "--no-json", "--no-clobber")
    assert again[CODE] == 2 and "a_voice-1.wav exists already" in again[ERR]


def test_a_text_that_fits_is_one_clip_with_join_and_without(
    say: Callable[..., Outcome], folder: Path, speech_folder: Path
):
    for name, more in (("a.wav", ["--join"]), ("b.wav", [])):
        assert say("--transcription", "one two.", "-o", name, *more)[CODE] == 0
    assert (folder / "a.wav").read_bytes() == (folder / "b.wav").read_bytes()
    assert soundfile.info(folder / "a.wav").duration == pytest.approx(SECONDS)


def test_a_text_beyond_the_model_is_an_error_that_shows_what_is_not_spoken(
    say: Callable[..., Outcome], folder: Path
):
    found = say("--transcription", TOO_LONG + "yes", "-o", "x.wav")
    assert found[CODE] == 2 and names(folder) == []
    for words in (
        "--transcription is too long for one clip, which would leave out 'seven",
        "--join",
        "-o FOLDER",
    ):
        assert words in found[ERR]


def test_a_text_that_may_be_too_long_for_the_clip_is_a_note(say: Callable[..., Outcome], folder: Path):
    found = say("--transcription", LONG, "-o", "x.wav")
    assert found[CODE] == 0 and names(folder) == ["x.wav", "x.wav.json"]
    assert "the transcription may be too long for one clip" in found[ERR] and "--join" in found[ERR]


def test_join_needs_a_transcription(say: Callable[..., Outcome]):
    found = say("--join", "--phonemes", "wˈʌn")  # noqa: RUF001
    assert found[CODE] == 2 and "--join is set; it has to come with --transcription" in found[ERR]


def test_speak_gives_the_sound_of_generate_where_the_text_fits(speech_folder: Path):
    model: Any = audioldm2.load(speech_folder, device="cpu")
    quick = {"num_inference_steps": 1, "seed": 2}
    expected = model.generate("a voice", transcription="one, two.", **quick)
    assert audioldm2.speak(model, "a voice", "one, two.", **quick).audio.equal(expected.audio)
