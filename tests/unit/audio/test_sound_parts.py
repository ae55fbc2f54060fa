"""Sound files measured in one pass and read in parts; the level of the published models."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2.audio import PEAK, examine, mean_and_peak, read, read_part, resample
from audioldm2.editing.input_sound import InputSound
from audioldm2.errors import ArgumentError

FORMATS = [
    ("WAV", "PCM_16", 44_100), ("FLAC", "PCM_24", 48_000), ("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 24_000),
    ("MP3", "MPEG_LAYER_III", 32_000), ("WAV", "FLOAT", 16_000), ("AIFF", "PCM_16", 11_025),
]  # fmt: skip


def write(
    path: Path, samples: np.ndarray, rate: int, container: str = "WAV", encoding: str = "FLOAT"
) -> Path:
    channels = samples.shape[1] if samples.ndim == 2 else 1
    with soundfile.SoundFile(path, "w", rate, channels, encoding, format=container) as file:
        for first in range(0, len(samples), 1 << 16):  # the Vorbis encoder overflows its stack at once
            file.write(samples[first : first + (1 << 16)])
    return path


def stereo(seconds: float, rate: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(0).standard_normal((round(seconds * rate), 2))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("container", "encoding", "rate"), FORMATS)
def test_part_equals_the_part_of_the_whole_sound(tmp_path, container, encoding, rate):
    path = write(tmp_path / "sound", stereo(9, rate), rate, container, encoding)
    facts, (whole, _) = examine(path), read(path)
    assert (facts.frames, facts.rate, facts.channel) == (len(whole), rate, None)
    whole = resample(whole, rate, 16_000)
    last = len(whole) - 16_000
    for start in (0, 1, 77, 50_000, last - 5585, last - 1, last):
        part = read_part(path, facts, start, 16_000, 16_000)
        torch.testing.assert_close(part, whole[start : start + 16_000], atol=1e-6, rtol=0)


def test_part_in_the_last_page_of_an_ogg_file(tmp_path):
    """libsndfile's seeks into the last page of Vorbis land elsewhere: here, in the last 11,000 samples."""
    samples = 0.2 * np.random.default_rng(0).standard_normal(7 * 16_000)
    path = write(tmp_path / "a.ogg", samples, 16_000, "OGG", "VORBIS")
    facts, (whole, _) = examine(path), read(path)
    for start in range(len(whole) - 12_000, len(whole) - 500, 499):
        part = read_part(path, facts, start, 500, 16_000)
        torch.testing.assert_close(part, whole[start : start + 500], atol=1e-6, rtol=0)


def test_part_of_a_long_file_decodes_little(tmp_path, monkeypatch):
    path = write(tmp_path / "long.wav", stereo(120, 8000), 8000)
    facts, frames = examine(path), []
    whole = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda file, n, **named: frames.append(n) or whole(file, n, **named)
    )
    read_part(path, facts, 700_000, 16_000, 16_000)
    assert sum(frames) < 9000


@pytest.mark.parametrize("name", sorted(set(soundfile.available_formats()) - {"RAW", "SD2"}))
def test_examines_every_format_of_libsndfile(tmp_path, name):
    encoding = soundfile.default_subtype(name) or next(iter(soundfile.available_subtypes(name)))
    path = write(tmp_path / "sound.bin", 0.3 * np.sin(np.arange(16_000) / 6), 16_000, name, encoding)
    facts = examine(path)
    assert facts.frames >= 16_000 and facts.peak == pytest.approx(0.3, abs=0.05)
    assert read_part(path, facts, 0, 1000, 8000).shape == (1000,)


def test_facts_tell_the_loudest_sample_without_the_mean(tmp_path):
    samples = np.full(1000, 0.25)
    samples[700], samples[300] = -0.5, 0.9
    facts = examine(write(tmp_path / "a.wav", samples, 8000))
    mean = samples.mean()
    assert facts.loudest == 700 and facts.peak == pytest.approx(mean + 0.5, abs=1e-6)


def test_antiphase_stereo_is_examined_as_it_is_read(tmp_path):
    """The choice of the channel is the file's, also where a part of it alone would choose otherwise."""
    left = 0.4 * np.sin(np.arange(80_000) / 9)
    right = -0.9 * left
    path = write(tmp_path / "a.wav", np.stack([right, left], axis=1), 8000)
    facts, (whole, _) = examine(path), read(path)
    assert facts.channel == 1
    assert torch.equal(read_part(path, facts, 1000, 500, 8000), whole[1000:1500])
    right[:40_000] = left[:40_000]
    path = write(tmp_path / "b.wav", np.stack([right, left], axis=1), 8000)
    facts, (whole, _) = examine(path), read(path)
    assert facts.channel is None
    assert torch.equal(read_part(path, facts, 60_000, 500, 8000), whole[60_000:60_500])


def content(container: str, encoding: str, share: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, stereo(2, 16_000), 16_000, format=container, subtype=encoding)
    return file.getvalue()[: int(share * len(file.getvalue()))]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (content("WAV", "PCM_16", 0.5), "is cut off: .* bytes of"),
        (content("AIFF", "PCM_16", 0.5), "is cut off: .* bytes of"),
        (content("FLAC", "PCM_16", 0.5), "is not a sound file that can be read"),
        (content("MP3", "MPEG_LAYER_III", 0.5), r"is cut off: \d+ samples of 32000 are there"),
        (content("WAV", "PCM_16", 0.0001), "is not a sound file that can be read"),
        (b"", "is an empty file"),
    ],
    ids=["wav", "aiff", "flac", "mp3", "header", "empty"],
)
def test_cut_files_are_found(tmp_path, data, words):
    (tmp_path / "cut").write_bytes(data)
    with pytest.raises(ArgumentError, match=words) as caught:
        examine(tmp_path / "cut")
    assert caught.value.name == str(tmp_path / "cut")


def test_wav_from_a_pipe_is_not_cut(tmp_path):
    """Programs that write to a pipe cannot go back to the header and leave the largest size there."""
    data = bytearray(content("WAV", "PCM_16", 1.0))
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert examine(tmp_path / "a.wav").frames == 32_000


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_found(tmp_path, value):
    samples = np.zeros((1 << 18, 1)) + 0.1
    samples[-5] = value
    with pytest.raises(ArgumentError, match=f"has 1 samples of {1 << 18} that are NaN or infinite"):
        examine(write(tmp_path / "a.wav", samples, 8000))


def test_part_of_a_file_that_became_shorter(tmp_path):
    path = write(tmp_path / "a.wav", stereo(2, 8000), 8000)
    facts = examine(path)
    write(path, stereo(1, 8000), 8000)
    with pytest.raises(ArgumentError, match=r"a\.wav has fewer than .* samples"):
        read_part(path, facts, 10_000, 4000, 8000)


def test_editing_and_training_share_the_level():
    wave = 0.03 * torch.sin(torch.arange(8000) / 7) + 0.2
    mean, peak = mean_and_peak(wave)
    assert mean == pytest.approx(0.2, abs=1e-3) and peak == pytest.approx(0.03, rel=0.05)
    sound = InputSound.prepare(wave, 16_000, 16_000, "wave")
    assert torch.equal(sound.normalized, (wave - mean) * (PEAK / peak))
    # upstream: wave - mean, then / (max |wave| + 1e-8), then * 0.5
    reference = wave.numpy() - wave.numpy().mean()
    reference = reference / (np.abs(reference).max() + 1e-8) * 0.5
    torch.testing.assert_close(sound.normalized, torch.from_numpy(reference), atol=1e-6, rtol=0)
