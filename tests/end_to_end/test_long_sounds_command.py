"""Loops, windows and timelines on the command line: the record, mistakes."""

import json
from pathlib import Path

import pytest

from audioldm2.audio import read

RATE = 16000


def record(path: Path) -> dict:
    return json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))


def test_prompts_take_over_at_their_times(run, tiny_folder, tmp_path):
    out = tmp_path / "storm.wav"
    code, printed, _ = run(
        "rain", "--at", 0.9, "wind", "--at", 0.4, "thunder", "--duration", 1.2, "--window", 0.4,
        "--overlap", 0.3, "--steps", 2, "--model", tiny_folder, "-o", out,
    )  # fmt: skip
    assert (code, printed.split()) == (0, [str(out)])
    assert len(read(out)[0]) == 1.2 * RATE
    found = record(out)
    assert found["prompt"] == [["rain", 0, 0.4], ["thunder", 0.4, 0.9], ["wind", 0.9, 1.2]]
    assert (found["window_seconds"], found["overlap"], found["loop"]) == (0.4, 0.3, False)


def test_timeline_lasts_as_long_as_the_models_sounds(run, tiny_folder, tmp_path):
    out = tmp_path / "storm.wav"
    code, _, _ = run("rain", "--at", 8, "thunder", "--steps", 1, "--model", tiny_folder, "-o", out)
    assert code == 0 and record(out)["prompt"] == [["rain", 0, 8], ["thunder", 8, 10]]


def test_loop_is_recorded(run, tiny_folder, tmp_path):
    out = tmp_path / "drums.flac"
    code, _, _ = run("drums", "--loop", "--duration", 0.5, "--steps", 2, "--model", tiny_folder, "-o", out)
    assert code == 0
    assert record(out)["loop"] is True and record(out)["audio_length_in_s"] == 0.52
    assert len(read(out)[0]) == 0.52 * RATE


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--at", "x", "wind"],
         "--at is 'x'; it has to begin with a time in seconds above 0, each time once."),
        (["--at", "nan", "wind"], "--at is 'nan'; it has to begin with a time"),
        (["--at", "1", "a", "--at", "1.0", "b"], "--at is '1.0'; it has to begin with a time"),
        (["--at", "9", "wind", "--duration", "3"],
         "--at is 9.0; it has to be below 3 seconds, where the sound ends (--duration)."),
        (["--at", "10", "wind"], "--at is 10.0; it has to be below 10 seconds"),
        (["--at", "1"], "--at: expected 2 arguments"),
        (["--loop", "--window", "9", "--duration", "3"], "--loop is a sound of 3 s; it has to be at least"),
        (["--window", "0"], "--window is 0.0; it has to be above 0"),
        (["--overlap", "0.9"], "--overlap is 0.9; it has to be above 0 and at most 0.5"),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_and_writes_nothing(run, folder, tiny_folder, words, sentence):
    code, printed, errors = run("rain", "--model", tiny_folder, *words, "-o", "out.wav")
    assert (code, printed) == (2, "")
    assert sentence in errors and "Traceback" not in errors
    assert not list(folder.iterdir())


def test_times_are_for_one_prompt(run, folder, tiny_folder):
    Path("prompts.txt").write_text("rain\nwind\n")
    code, _, errors = run("--prompts", "prompts.txt", "--at", 1, "wind", "--model", tiny_folder)
    assert code == 2 and "--at is set; it has to be left out with --prompts." in errors
