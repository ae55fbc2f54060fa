"""The files of a sound: there whole or not at all, whenever the process is killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.command_line import posix
from tests.support.page import until

pytest.importorskip("PIL", reason="Gradio brings Pillow, which draws the pictures")
from PIL import Image

from audioldm2.ui.sounds import write


@pytest.fixture(scope="module")
def result(tiny_model):
    return tiny_model.generate("rain / <b>", audio_length_in_s=0.5, num_inference_steps=1, seed=7)


def test_a_sound_has_its_record_and_its_picture(result, tiny_model, tmp_path):
    sound = write(result, tiny_model.sound, tmp_path)
    assert sound.sound.name == "rain_b-7.wav" and len(soundfile.read(sound.sound)[0]) == 8000
    assert json.loads(sound.record_file.read_text()) == json.loads(json.dumps(sound.record))
    assert sound.record["file"] == "rain_b-7.wav"
    assert "rain / <b>" in sound.summary and "seed 7" in sound.summary
    picture = np.asarray(Image.open(sound.picture))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert write(result, tiny_model.sound, tmp_path).sound.parent != sound.sound.parent


def sounds(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


@posix
def test_a_kill_leaves_whole_sounds_only(result, tiny_model, tmp_path):
    whole = write(result, tiny_model.sound, tmp_path)
    expected = {path.name: path.read_bytes() for path in whole.sound.parent.iterdir()}
    draw = random.Random(0)
    for _ in range(5):
        before = len(sounds(tmp_path))
        pid = os.fork()
        if pid == 0:
            while True:
                write(result, tiny_model.sound, tmp_path)
        until(lambda before=before: len(sounds(tmp_path)) > before)
        time.sleep(0.1 * draw.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for folder in sounds(tmp_path):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
