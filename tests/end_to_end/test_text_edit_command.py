"""Editing by text on the command line: the flags, the record, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audioldm2.audio import read
from tests.support.command_line import assert_refused, names

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The folder that a test runs in, with a sound, a silent one and a text."""
    monkeypatch.chdir(tmp_path)
    t = np.arange(RATE // 4) / RATE
    soundfile.write("dog.wav", 0.3 * np.sin(2 * np.pi * 440 * t), RATE)
    soundfile.write("silent.wav", np.zeros(900), RATE)
    Path("captions.txt").write_text("a cat\na horse\n")
    return tmp_path


def test_flags_reach_the_edit_and_the_record(run, folder, tiny_folder, tiny_model):
    words = ["a cat meows", "--audio", "dog.wav", "--source", "a dog barks", "--method", "direct",
             "--skip", "0.5", "--source-guidance", "3", "--guidance", "5",
             "--steps", "4", "--seed", "7"]  # fmt: skip
    code, out, err = run(*words, "--model", tiny_folder, "-o", "cat.wav", "--quiet")
    assert (code, out, err) == (0, "cat.wav\n", "")
    record = json.loads(Path("cat.wav.json").read_text(encoding="utf-8"))
    expected = dict(prompt="a cat meows", source_prompt="a dog barks", method="direct", skip=0.5, seed=7,
                    source_guidance_scale=3.0, guidance_scale=5.0, num_inference_steps=4)  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["audio"]["file"] == "dog.wav" and len(record["audio"]["sha256"]) == 64
    by_hand = tiny_model.edit(
        "dog.wav", "a cat meows", source_prompt="a dog barks", method="direct", skip=0.5, seed=7,
        source_guidance_scale=3, guidance_scale=5, num_inference_steps=4,
    )  # fmt: skip
    wave = read(Path("cat.wav"))[0]
    assert wave.shape == read(Path("dog.wav"))[0].shape
    assert (wave - by_hand.audio[0, 0].clamp(-1, 1)).abs().max() < 1e-3


def test_only_source_turns_a_sound_into_an_edit(run, folder, tiny_folder):
    """An empty text is a source too: nothing is known of the sound."""
    common = ["--audio", "dog.wav", "--model", tiny_folder, "--steps", 2, "--quiet"]
    for words, edits in (([], False), (["--source", ""], True)):
        assert run("a cat", *common, *words, "-o", "cat.wav")[0] == 0
        record = json.loads(Path("cat.wav.json").read_text(encoding="utf-8"))
        assert ("method" in record, "strength" in record) == (edits, not edits)


def test_each_prompt_of_a_file_edits_the_sound(run, folder, tiny_folder):
    words = ["--prompts", "captions.txt", "--audio", "dog.wav", "--source", "a dog", "--model", tiny_folder]
    code, out, _ = run(*words, "--steps", 2, "--no-json", "-o", "out")
    assert (code, out.split()) == (0, ["out/a_cat.wav", "out/a_horse.wav"])


EDIT = ["--audio", "dog.wav", "--source", "a dog"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--source", "a dog"],
         "--source is 'a dog'; it has to be left out without --audio, the sound that it describes."),
        (["--audio", "dog.wav", "--skip", "0.5"], "--skip is 0.5; it has to be left out without --source"),
        (["--audio", "dog.wav", "--method", "direct"], "--method is 'direct'; it has to be left out without"),
        (["--audio", "dog.wav", "--source-guidance", "3"], "--source-guidance is 3.0; it has to be left out"),
        ([*EDIT, "--strength", "0.5"], "--strength is 0.5; it has to be left out of an edit"),
        ([*EDIT, "--mask", "0", "0.1"], "--mask is [0.0, 0.1]; it has to be left out of an edit"),
        ([*EDIT, "--mask-hz", "0", "100"], "--mask-hz is [0.0, 100.0]; it has to be left out of an edit"),
        ([*EDIT, "--extend", "1"], "--extend is 1.0; it has to be left out of an edit"),
        ([*EDIT, "--duration", "3"], "--duration is 3.0; it has to be left out of an edit"),
        ([*EDIT, "--resample-times", "2"], "--resample-times is 2; it has to be left out of an edit"),
        ([*EDIT, "--skip", "1"], "--skip is 1.0; it has to be below 1, so that a step is left."),
        ([*EDIT, "--skip", "-1"], "--skip is -1.0; it has to be a finite number of at least 0."),
        ([*EDIT, "--skip", "half"], "--skip is 'half'; it has to be a finite number of at least 0."),
        ([*EDIT, "--skip", "0.9", "--steps", "5"],
         "--skip is 0.9; it has to be at most 0.8, so that one of 5 steps is left."),
        ([*EDIT, "--method", "best"], "--method is 'best'; it has to be one of ddpm, direct."),
        ([*EDIT, "--sampler", "heun"], "--sampler is 'heun'; it has to be one of auto, dpmpp_2m_sde, ddim"),
        ([*EDIT, "--eta", "0.3"], "--eta is 0.3; it has to be left out for"),
        (["--audio", "none.wav", "--source", "a dog"], "none.wav: No such file or directory"),
        (["--audio", "silent.wav", "--source", "a dog"], "silent.wav is silent; it has to be louder"),
        (["--audio", "captions.txt", "--source", "a dog"], "captions.txt is not a sound file"),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_and_writes_nothing(run, folder, tiny_folder, words, sentence):
    before = names(folder)
    assert_refused(run("a cat", "--model", tiny_folder, *words, "-o", "out.wav"), sentence)
    assert names(folder) == before
