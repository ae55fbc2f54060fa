"""The small model that speaks: its size, its words without espeak, and that its digits are the asked ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audioldm2
from audioldm2.checkpoints import hub, storage
from audioldm2.cli.main import main
from audioldm2.prompt import espeak
from scripts.speech_demo.judges import NearestClip
from scripts.speech_demo.vocabulary import DIGITS, VOICES, WORDS
from tests.support.sizes import full_or

FINGERPRINTS = Path(__file__).with_name("spoken_digits.json")  # of true digits: make_fingerprints.py
FOLDER = hub.IN_PACKAGE[hub.SPEECH_DEMO]


@pytest.fixture(scope="module")
def speaker() -> audioldm2.AudioLDM2:
    return audioldm2.load("demo-speech", device="cpu")


@pytest.fixture
def no_espeak(monkeypatch):
    def fail(*arguments: object) -> None:
        raise AssertionError("espeak is asked")

    monkeypatch.setattr(espeak, "phonemes", fail)


def test_it_is_small_and_knows_its_words():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert set(storage.read(FOLDER).pronunciations or {}) == {*DIGITS, *WORDS}
    assert not any(str(Path.home()) in file.read_text() for file in files if file.suffix == ".json")


def test_the_command_line_speaks_without_espeak(tmp_path: Path, monkeypatch, no_espeak):
    monkeypatch.chdir(tmp_path)
    command = ["a woman speaks", "--model", "demo-speech", "--transcription", "three seven one"]
    assert main([*command, "--steps", "4", "-o", "said.wav", "--quiet"]) == 0
    wave, rate = soundfile.read("said.wav")
    assert rate == 16_000 and len(wave) == 1.92 * rate and 0.01 < np.abs(wave).max() <= 1
    assert json.loads(Path("said.wav.json").read_text())["model"] == "demo-speech"


@pytest.mark.slow
def test_digits_are_the_asked_ones(speaker: audioldm2.AudioLDM2, no_espeak):
    """In each voice, the nearest true digit is the one that was asked for."""
    table, steps = json.loads(FINGERPRINTS.read_text()), full_or(15, 6)
    right = 0
    for voice in VOICES:
        prints = {digit: torch.tensor(numbers) / 10 for digit, numbers in table[voice].items()}
        nearest = NearestClip(prints, tuple(next(iter(prints.values())).shape))
        result = speaker.generate(
            [f"a {voice} speaks"] * len(DIGITS),
            transcription=list(DIGITS),
            num_inference_steps=steps,
            seed=3,
        )
        right += sum(
            nearest(wave) == digit for wave, digit in zip(result.audio[:, 0].numpy(), DIGITS, strict=True)
        )
    assert right >= 24  # of 30; measured: 30 in 15 steps, 29 in 6
