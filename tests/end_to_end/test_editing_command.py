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
        "a cat", "--audio", sound, "--model", tiny_folder, "--steps", 4, "--extend-before", 0.2,
        "--extend", 0.4, "-o", tmp_path / "long.wav",
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
        (
            ["--audio", "dog.wav", "--strength", "0.05", "--steps", "10"],
            "--strength is 0.05; it has to be 0, or at least 0.1: one of 10 steps.",
        ),
        (["--audio", "dog.wav", "--mask", "0.2", "0.2"], "--mask is 0.2; it has to be above"),
        (["--audio", "dog.wav", "--mask-hz", "9000", "9500"], "--mask-hz"),
        (["--audio", "dog.wav", "--extend", "0"], "--extend is 0.0; it has to be the seconds to add"),
        (["--extend-before", "1"], "--extend-before is 1.0; it has to be left out without --audio."),
        (["--audio", "dog.wav", "--duration", "3"], "--duration is 3.0; it has to be left out with audio"),
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


def test_frequencies_above_8_khz_are_not_refused_before_the_model_is_known(run, sound, tmp_path, tiny_folder):
    """The model at 48 kHz has them. The tiny one has not, and says so once it is loaded."""
    out = tmp_path / "wide.wav"
    code, _, errors = run("a cat", "--audio", sound, "--model", tmp_path / "none", "--mask-hz", 8000, 24000)
    assert code == 2 and "--mask-hz" not in errors and "none" in errors
    code, _, errors = run(
        "a cat", "--audio", sound, "--model", tiny_folder, "--mask-hz", 7000, 24000, "-o", out
    )
    assert code == 2 and "--mask-hz is 24000.0; it has to be at most 8000 Hz, where the sound ends." in errors
    assert not out.exists()


@pytest.mark.parametrize(
    ("rate", "channels", "encoding"), [(8_000, 1, "PCM_U8"), (96_000, 6, "PCM_16"), (44_100, 2, "FLOAT")]
)
def test_files_of_any_kind_are_extended_in_frequency(run, tmp_path, tiny_folder, rate, channels, encoding):
    path, out = tmp_path / "given.wav", tmp_path / "wide.wav"
    t = np.arange(rate // 2) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype=encoding)
    code, _, errors = run(
        "a cat", "--audio", path, "--model", tiny_folder, "--steps", 3, "--mask-hz", 4000, 8000, "-o", out
    )
    assert code == 0, errors
    found, expected = read(out)[0].numpy(), 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    own, made = (np.abs(np.fft.rfft(each * np.hanning(RATE // 2))) for each in (expected, found))
    assert found.shape == expected.shape and made[220] == pytest.approx(own[220], rel=0.01)
    record = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    assert record["remade_hz"] == [[3633.1, 8000.0]]


def test_stereo_in_antiphase_is_edited_by_its_louder_channel(run, tmp_path, tiny_folder):
    path, out = tmp_path / "antiphase.wav", tmp_path / "out.wav"
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    soundfile.write(path, np.stack([wave, -0.999 * wave], axis=1), RATE)
    code, _, errors = run(
        "a cat", "--audio", path, "--model", tiny_folder, "--steps", 2, "--mask", 0.2, 0.3, "-o", out
    )
    assert code == 0, errors
    assert np.abs(read(out)[0].numpy()[:3000] - wave[:3000]).max() < 1e-3


def test_mask_that_covers_all_is_generate(run, sound, tmp_path, tiny_folder):
    common = ["a cat", "--model", tiny_folder, "--steps", 3, "--quiet"]
    assert run(*common, "--duration", 1, "-o", tmp_path / "plain.wav")[0] == 0
    mask = ["--audio", sound, "--mask", 0, 1, "--mask-hz", 0, 8000]
    assert run(*common, *mask, "-o", tmp_path / "all.wav")[0] == 0
    assert read(tmp_path / "all.wav")[0].equal(read(tmp_path / "plain.wav")[0])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("empty", "empty.wav has no samples; it has to have at least one."),
        ("nan", "nan.wav has 900 samples of 900 that are NaN or infinite; it has to be finite."),
        ("silent", "silent.wav is silent; it has to be louder than -120 dB."),
        ("nothing", "nothing.wav is an empty file; it has to be downloaded or copied again."),
    ],
)
def test_file_that_cannot_be_edited_is_one_sentence(run, tmp_path, monkeypatch, tiny_folder, name, sentence):
    monkeypatch.chdir(tmp_path)
    soundfile.write("empty.wav", np.zeros(0), RATE)
    soundfile.write("nan.wav", np.full(900, np.nan, dtype=np.float32), RATE, subtype="FLOAT")
    soundfile.write("silent.wav", np.zeros(900), RATE)
    Path("nothing.wav").write_bytes(b"")
    code, printed, errors = run("a cat", "--model", tiny_folder, "--audio", f"{name}.wav", "-o", "out.wav")
    assert (code, printed) == (2, "") and sentence in errors and len(errors.strip().splitlines()) == 1
    assert not Path("out.wav").exists()


@pytest.mark.parametrize("strength", ["0.5", "0"])
def test_sound_longer_than_memory_is_one_sentence(run, sound, tmp_path, tiny_folder, monkeypatch, strength):
    monkeypatch.setattr("audioldm2.runtime.memory.available_bytes", lambda *_: 10_000)
    code, printed, errors = run(
        "a cat", "--model", tiny_folder, "--audio", sound, "--strength", strength, "-o", tmp_path / "out.wav",
        "--quiet",
    )  # fmt: skip
    assert (code, printed) == (2, "")
    assert "--audio lasts 1 seconds; it has to last at most about 0 seconds" in errors
    assert len(errors.strip().splitlines()) == 1 and not (tmp_path / "out.wav").exists()
