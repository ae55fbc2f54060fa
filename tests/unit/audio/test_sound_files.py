"""Reading, writing and finding sound files."""

import errno
import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2.audio import READABLE_SUFFIXES, SOUND_FORMATS, find_sounds, read, require_waves, write_wav
from audioldm2.errors import ArgumentError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(frequency: float, rate: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency / rate * torch.arange(samples, dtype=torch.float64)).float()


@pytest.mark.parametrize(
    ("suffix", "error"), [(".wav", 1.01 / 32768), (".flac", 1.01 / 32768), (".ogg", 0.1)]
)
def test_reads_back_what_it_wrote(tmp_path, suffix, error):
    wave = 0.5 * tone(440, 16_000, 16_000)
    path = tmp_path / f"sound{suffix}"
    write_wav(path, wave, 16_000)
    back, rate = read(path)
    assert rate == 16_000
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, wave, atol=error, rtol=0)
    assert os.listdir(tmp_path) == [path.name]


def test_wav_is_clipped_16_bit_pcm(tmp_path):
    path = tmp_path / "SOUND.WAV"
    write_wav(str(path), np.array([0.0, 1.0, 1.5, -1.0, -7.0]), 48_000)
    assert soundfile.info(path).subtype == "PCM_16"
    samples, _ = soundfile.read(path, dtype="int16")
    assert samples[0] == 0
    assert (samples[1:3] >= 32766).all()
    assert (samples[3:] <= -32767).all()


@pytest.mark.slow
def test_writes_a_long_ogg(tmp_path):
    write_wav(tmp_path / "long.ogg", torch.zeros(16_000 * 600), 16_000)
    assert soundfile.info(tmp_path / "long.ogg").frames == 16_000 * 600


def test_read_averages_channels(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.array([[0.5, 0.0], [0.25, -0.25]]), 8000, subtype="FLOAT")
    wave, rate = read(tmp_path / "stereo.wav")
    torch.testing.assert_close(wave, torch.tensor([0.25, 0.0]))
    assert rate == 8000


@pytest.mark.parametrize("gain", [-1.0, -0.9])
def test_read_takes_the_louder_channel_of_antiphase_stereo(tmp_path, gain):
    left = 0.5 * tone(440, 8000, 800).numpy()
    soundfile.write(tmp_path / "a.wav", np.stack([gain * left, left], axis=1), 8000, subtype="FLOAT")
    wave, _ = read(tmp_path / "a.wav")
    np.testing.assert_array_equal(wave, left if gain != -1.0 else -left)  # of two equals, the first


def test_read_averages_channels_that_hardly_correlate(tmp_path):
    left, right = noise(800).numpy(), noise(800, seed=1).numpy()
    for first, second in ((left, right), (left, -0.7 * left), (left, 0 * left), (0 * left, 0 * left)):
        soundfile.write(tmp_path / "a.wav", np.stack([first, second], axis=1), 8000, subtype="FLOAT")
        np.testing.assert_allclose(read(tmp_path / "a.wav")[0], (first + second) / 2, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(soundfile.available_formats()) - {"RAW", "SD2"}))
def test_reads_every_format_of_libsndfile(tmp_path, name):
    encoding = soundfile.default_subtype(name) or next(iter(soundfile.available_subtypes(name)))
    path, wave = tmp_path / "sound.bin", 0.3 * tone(440, 16_000, 16_000)
    with soundfile.SoundFile(path, "w", 16_000, 1, encoding, format=name) as file:
        file.write(wave.numpy())
    found, rate = read(path)
    assert rate == {"WVE": 8000, "XI": 44_100}.get(name, 16_000)  # these two have a fixed rate
    torch.testing.assert_close(found[:16_000], wave, atol=0.03, rtol=0)


def test_readable_suffixes():
    assert {".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aif", ".aiff"} <= READABLE_SUFFIXES
    assert {".au", ".w64", ".caf", ".rf64", ".snd"} <= READABLE_SUFFIXES
    assert not {".raw", ".sd2", ".txt", ".json", ".csv", ""} & READABLE_SUFFIXES
    assert SOUND_FORMATS.keys() <= READABLE_SUFFIXES


def wav_bytes(samples: list[float], rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.array(samples), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a sound", "is not a sound file that can be read"),
        (wav_bytes([0.0] * 100)[:30], "is not a sound file that can be read"),
        (b"", "is an empty file; it has to be downloaded"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "is a web page; it has to be downloaded from a direct link"),
        (wav_bytes([]), "has no samples"),
        (wav_bytes([0.0, math.nan, math.inf]), "has 2 samples of 3 that are NaN or infinite"),
        (wav_bytes([0.0], rate=2**31 - 1), "has a sample rate of 2147483647 Hz"),
        (wav_bytes([0.0], rate=1), "has a sample rate of 1 Hz"),
    ],
    ids=[
        *("text", "cut header", "empty", "git lfs pointer", "web page"),
        *("no samples", "not finite", "fastest rate", "slowest rate"),
    ],  # the bytes hold the time of day, and the workers of pytest-xdist must agree on names
)
def test_read_names_the_file_and_what_is_wrong(tmp_path, content, words):
    for name in ("broken.wav", "broken.raw"):
        if name == "broken.raw" and content[:4] == b"RIFF":
            words = "is not a sound file that can be read"
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArgumentError, match=rf"broken\.\w+ {words}") as caught:
            read(tmp_path / name)
        assert caught.value.name == str(tmp_path / name)


def test_read_rejects_folders_and_passes_on_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ArgumentError, match=r"folder\.wav is a folder; it has to be a sound file"):
        read(str(tmp_path / "folder.wav"))


@pytest.mark.parametrize("frames", [1 << 46, 1 << 62])
def test_read_rejects_a_header_that_claims_more_than_memory(tmp_path, monkeypatch, frames):
    (tmp_path / "a.wav").write_bytes(wav_bytes([0.0] * 10))
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda self: frames))
    monkeypatch.setattr(soundfile.SoundFile, "_check_frames", lambda self, frames, fill: frames)
    with pytest.raises(ArgumentError, match=rf"a\.wav claims {frames} samples in 1 channels; .* memory"):
        read(tmp_path / "a.wav")


def test_find_sounds_ignores_case_and_hidden_files(tmp_path):
    names = ["a.wav", "B.OPUS", "deep/c.Flac", "deep/er/d.w64", "captions.csv", "deep/notes.txt", "e"]
    hidden = [".DS_Store", "._a.wav", ".x.wav", ".git/f.wav", "deep/._c.Flac", "__MACOSX/._a.wav"]
    for name in names + hidden:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    sounds, skipped = find_sounds(str(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in sounds] == sorted(names[:4])
    assert [path.relative_to(tmp_path).as_posix() for path in skipped] == sorted(names[4:])


def test_find_sounds_needs_a_folder(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"a\.wav is not a folder; it has to be a folder of sound files"):
        find_sounds(tmp_path / "a.wav")
    with pytest.raises(ArgumentError, match="nowhere does not exist"):
        find_sounds(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "wave", "rate", "message"),
    [
        ("sound.mp5", [0.0], 16_000, r"ends in '\.mp5'; it has to end in one of \.wav, \.flac, \.ogg"),
        ("sound", [0.0], 16_000, r"\.wav, \.flac, \.ogg"),
        ("sound.wav", [0.0, math.nan, math.inf], 16_000, "2 samples of 3 that are NaN or infinite"),
        ("sound.wav", [[0.0], [0.0]], 16_000, r"wave is float32 \(2, 1\); it has to be floats"),
        ("sound.wav", [], 16_000, "wave has no samples"),
        ("sound.wav", [1, 2], 16_000, r"wave is int64 \(2,\); it has to be floats"),
        ("sound.ogg", [0.0], 200_001, "sample_rate is 200001; it has to be a whole number from 1 to 192000"),
        ("sound.wav", [0.0], 0, "sample_rate is 0"),
        ("sound.flac", [0.0], 191_999, "cannot be encoded at 191999 Hz"),
    ],
)
def test_write_rejects_arguments(tmp_path, name, wave, rate, message):
    with pytest.raises(ArgumentError, match=message):
        write_wav(tmp_path / name, torch.tensor(wave), rate)
    assert os.listdir(tmp_path) == []


def test_write_passes_on_errors_of_the_system(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        write_wav(tmp_path / "nowhere" / "sound.wav", torch.zeros(10), 16_000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(OSError, match="is not a file"):
        write_wav(tmp_path / "folder.wav", torch.zeros(10), 16_000)
    whole = Path.write_bytes

    def full_disk(path, data):
        whole(path, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_wav(tmp_path / "sound.wav", torch.zeros(10), 16_000)
    assert os.listdir(tmp_path) == ["folder.wav"]


# Arrays of callers


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble"])
def test_numpy_arrays_of_any_float_become_float32(dtype):
    array = np.array([0.0, 0.5, -1.0], dtype=dtype)[::-1]
    array.flags.writeable = False
    assert require_waves("audio", array).tolist() == [-1.0, 0.5, 0.0]
    assert require_waves("audio", array).dtype == torch.float32


def test_tensors_pass_through():
    wave = torch.zeros(2, 10, dtype=torch.bfloat16, requires_grad=True)
    found = require_waves("audio", wave)
    assert found.dtype == torch.bfloat16 and found.data_ptr() == wave.data_ptr() and not found.requires_grad


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (np.zeros(9, dtype=np.int16), r"int16 \(9,\)"),
        (torch.zeros(9, dtype=torch.int16), r"int16 \(9,\)"),
        (torch.zeros(9, dtype=torch.complex64), r"complex64 \(9,\)"),
        (np.zeros((1, 1, 9)), r"float64 \(1, 1, 9\)"),
        (np.array(0.5), "a ndarray"),
        ([torch.zeros(3), None], "a list"),
        ("dog.wav", "'dog.wav'"),
        (None, "None"),
        ([[0.0], [0.0, 1.0]], "a list of unequal parts"),
    ],
)
def test_arrays_that_are_not_sounds_are_rejected(value, given):
    with pytest.raises(ArgumentError, match=rf"^audio is {given}.*; it has to be floats in \[-1, 1\], "):
        require_waves("audio", value)
