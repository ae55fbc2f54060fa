"""Sounds from sounds on the command line: strength, masks, continuation, the record, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2.audio import read

RATE = 16000


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "dog.wav"
    t = np.arange(RATE) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * t), RATE)
    return path


def test_strength_and_masks_reach_the_model_and_the_record(run, sound, tmp_path, tiny_folder):
    common = ["--audio", sound, "--model", tiny_folder, "--steps", 4]
    out = tmp_path / "cat.wav"
    code, printed, _ = run("a cat", *common, "--mask", 0.2, 0.4, "--mask-hz", 1000, 3000, "-o", out)
    assert (code, printed.split()) == (0, [str(out)])
    record = json.loads((tmp_path / "cat.wav.json").read_text(encoding="utf-8"))
    assert record["strength"] == 1.0
    before, after = (read(path)[0] for path in (sound, out))
    assert len(before) == len(after)
    assert (before[: int(0.15 * RATE)] - after[: int(0.15 * RATE)]).abs().max() < 1e-4
    assert (before - after).abs().max() > 0.01


def test_extension_makes_the_sound_longer(run, sound, tmp_path, tiny_folder):
    code, _, _ = run(
        "a cat", "--audio", sound, "--model", tiny_folder, "--steps", 4, "--extend-before", 0.2, "--extend", 0.4,
        "-o", tmp_path / "long.wav",
    )  # fmt: skip
    assert code == 0
    assert abs(len(read(tmp_path / "long.wav")[0]) - 1.6 * RATE) <= 640


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--strength", "2", "--audio", "dog.wav"], "--strength is 2.0; it has to be a number from 0 to 1"),
        (["--strength", "0.5"], "--strength"),
        (["--audio", "none.wav"], "none.wav"),
        (["--audio", "dog.wav", "--mask", "3", "4"], "--mask"),
        (["--audio", "dog.wav", "--mask", "0.4", "0.2"], "--mask"),
        (["--audio", "captions.txt"], "captions.txt"),
    ],
)
def test_mistake_is_one_sentence_and_writes_nothing(
    run, sound, tmp_path, tiny_folder, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("a dog\n")
    code, printed, errors = run("a cat", "--model", tiny_folder, *words, "-o", "out.wav")
    assert (code, printed) == (2, "")
    assert sentence in errors and len(errors.strip().splitlines()) == 1
    assert not Path("out.wav").exists()
