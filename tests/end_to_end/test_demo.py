"""The model in the box: it is small, it is the default, and its sounds are what the words say."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import audioldm2
from audioldm2.checkpoints import hub, storage
from audioldm2.cli.main import main
from scripts.evaluate import Judge
from scripts.world_questions import World

SLACK = 0.11
FOUND = {  # by scripts/evaluate.py --model demo; what is asked for and not reached: README
    "pitch: high at least twice low": 0.9,
    "tempo: fast at least 1.5 slow": 1,
    "flatness: noise at least 3 tone": 1,
    "sweeps: the right direction": 0.95,
    "CLAP: true sounds of each family": 1,
    "CLAP: made sounds of each family": 0.822,
    "classifier: made sounds": 0.752,
    "what guidance adds": 0.055,
    "what the best of four adds": 0.041,
    "vocoder: mel error, dB, upper 60": 3.605,
    "vocoder: loudest sample": 0.6647,
    "vocoder: constant part": 0.000434,
    "vocoder: 100 Hz below noise, dB": 46.49,
}


@pytest.fixture(scope="module")
def demo() -> audioldm2.AudioLDM2:
    return audioldm2.load("demo", device="cpu")


@pytest.fixture(scope="module")
def world(demo: audioldm2.AudioLDM2) -> World:
    return World(demo, Judge(demo), range(10), {})


def test_it_is_small_and_whole():
    files = [file for file in hub.DEMO_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    checkpoint = storage.read(hub.DEMO_FOLDER)
    dtypes = {
        str(tensor.dtype) for open_state in checkpoint.states.values() for tensor in open_state().values()
    }
    assert dtypes == {"torch.float16", "torch.float32"}  # T5's few that float16 does not hold
    assert not any(str(Path.home()) in file.read_text() for file in files if file.suffix == ".json")


def test_it_is_what_a_command_without_a_model_takes(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of the same name changes nothing
    assert main(["a high beep", "-o", "beep.wav"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "beep.wav\n"
    first, *_ = printed.err.splitlines()
    assert "small demo model" in first and "--model cvssp/audioldm2" in first
    wave, rate = soundfile.read("beep.wav")
    model = storage.read(hub.DEMO_FOLDER)
    assert rate == 16_000 and len(wave) == model.seconds * rate and 0.01 < np.abs(wave).max() < 1
    assert json.loads(Path("beep.wav.json").read_text())["model"] == "demo"


def test_a_model_that_is_named_is_not_announced(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["rain", "--model", "demo", "-o", "rain.wav", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("question", ["pitch", "tempo", "noisiness", "sweeps", "families", "help", "vocoder"])
def test_its_sounds_are_what_the_readme_says(question: str, world: World):
    """In wordings that training has not seen. Another machine rounds otherwise: one sound in ten may turn."""
    for name, answer in getattr(world, question)().items():
        if name in FOUND:
            at_most = answer.at_most or "error" in name
            worst = FOUND[name] + (SLACK if at_most else -SLACK) * scale_of(name)
            assert answer.value <= worst if at_most else answer.value >= worst, f"{name}: {answer}"


def scale_of(name: str) -> float:
    """Of a figure: shares are from 0 to 1, decibels some tens, what a score gains some hundredths."""
    if name.endswith("dB"):
        return 30.0
    return 0.1 if name.startswith("what") else 0.0015 if "constant" in name else 1.0
