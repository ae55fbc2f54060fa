"""The model in the box: it is small, it is the default, and its sounds are what the words say."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import audioldm2
from audioldm2 import hub, weights
from audioldm2.cli import main
from scripts.evaluate import Judge
from scripts.world_questions import World

pytestmark = pytest.mark.skipif(not hub.DEMO_FOLDER.is_dir(), reason="no model is in the box yet")


@pytest.fixture(scope="module")
def demo() -> audioldm2.AudioLDM2:
    return audioldm2.load("demo", device="cpu")


@pytest.fixture(scope="module")
def world(demo: audioldm2.AudioLDM2) -> World:
    return World(demo, Judge(demo), range(10), {})


def test_it_is_small_and_whole():
    files = [file for file in hub.DEMO_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    checkpoint = weights.read(hub.DEMO_FOLDER)
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
    model = weights.read(hub.DEMO_FOLDER)
    assert rate == 16_000 and len(wave) == model.seconds * rate and 0.01 < np.abs(wave).max() < 1
    assert json.loads(Path("beep.json").read_text())["model"] == "demo"


def test_a_model_that_is_named_is_not_announced(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["rain", "--model", "demo", "-o", "rain.wav", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("question", ["pitch", "tempo", "noisiness", "sweeps", "help"])
def test_its_sounds_are_what_the_words_say(question: str, world: World):
    """In wordings that training has not seen; all figures: scripts/evaluate.py."""
    for name, answer in getattr(world, question)().items():
        assert answer.wanted is None or "yes" in str(answer), f"{name}: {answer}"


def test_its_families_are_heard(world: World):
    for name, answer in world.families().items():
        assert answer.wanted is None or "yes" in str(answer), f"{name}: {answer}"


def test_its_vocoder_neither_clips_nor_hums(world: World):
    for name, answer in world.vocoder().items():
        assert answer.wanted is None or "yes" in str(answer), f"{name}: {answer}"
