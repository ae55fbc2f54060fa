"""Front ends, resampling and sound files, against what they must do by definition."""

import errno
import math
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.audio import (
    CLAP_MEL,
    CLAP_WINDOW,
    PASS_BAND,
    VAE_FLOOR,
    VAE_MEL,
    clap_crops,
    clap_log_mel,
    mel_filters,
    read,
    resample,
    vae_log_mel,
    write_wav,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(frequency: float, rate: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency / rate * torch.arange(samples, dtype=torch.float64)).float()


# Log-mel spectrograms


@pytest.mark.parametrize("mel_settings", [VAE_MEL, CLAP_MEL], ids=["vae", "clap"])
def test_mel_bands_have_area_one(mel_settings):
    filters = mel_filters(mel_settings)
    assert filters.shape == (513, 64)
    areas = filters.sum(dim=0) * mel_settings.sample_rate / mel_settings.n_fft
    # Only bands of many bins: sampled at the bins, narrow triangles miss some of their area.
    torch.testing.assert_close(areas[-20:], torch.ones(20, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("samples", "frames"), [(433, 2), (16_000, 100), (163_840, 1024), (16_159, 100), (16_160, 101)]
)
def test_vae_log_mel_has_a_frame_every_160_samples(samples, frames):
    assert vae_log_mel(noise(2, samples)).shape == (2, frames, 64)


def test_vae_log_mel_of_silence_and_of_a_tone():
    torch.testing.assert_close(
        vae_log_mel(torch.zeros(1, 1600)), torch.full((1, 10, 64), math.log(VAE_FLOOR))
    )
    mel = vae_log_mel(tone(1000, 16_000, 16_000)[None])[0, 50]
    band = mel.argmax().item()
    centre = (
        (mel_filters(VAE_MEL)[:, band] * torch.arange(513)).sum()
        / mel_filters(VAE_MEL)[:, band].sum()
        * 15.625
    )
    assert abs(centre - 1000) < 50


def test_vae_log_mel_names_a_wave_too_short():
    with pytest.raises(ValueError, match="432 samples; at least 433"):
        vae_log_mel(noise(1, 432))
    with pytest.raises(ValueError, match="must be"):
        vae_log_mel(noise(1000))


def test_clap_log_mel_is_always_ten_seconds():
    for samples in (1, 7, 100_001, CLAP_WINDOW):
        mel = clap_log_mel(noise(2, samples))
        assert mel.shape == (2, 1001, 64)
        assert mel.dtype == torch.float32
    assert clap_log_mel(noise(1, 4800), replace(CLAP_MEL, hop=7900, mels=16)).shape == (1, 61, 16)
    torch.testing.assert_close(clap_log_mel(torch.zeros(1, 480)), torch.full((1, 1001, 64), -100.0))


def test_clap_log_mel_repeats_whole_clips_then_pads():
    clip = noise(1, 150_000)
    padded = torch.cat([clip, clip, clip, torch.zeros(1, 30_000)], dim=1)
    assert torch.equal(clap_log_mel(clip), clap_log_mel(padded))


def test_clap_log_mel_refuses_what_is_longer_or_empty():
    with pytest.raises(ValueError, match=r"480001 samples.*clap_crops"):
        clap_log_mel(torch.zeros(1, CLAP_WINDOW + 1))
    with pytest.raises(ValueError, match="0 samples"):
        clap_log_mel(torch.zeros(1, 0))


@pytest.mark.parametrize("front_end", [vae_log_mel, clap_log_mel])
def test_front_ends_are_differentiable_and_batched(front_end):
    wave = noise(3, 4800).requires_grad_()
    mel = front_end(wave)
    mel.mean().backward()
    assert wave.grad.isfinite().all()
    assert (wave.grad != 0).float().mean() > 0.99
    torch.testing.assert_close(mel[1:2], front_end(wave[1:2]), atol=1e-5, rtol=0)


def test_clap_crops_cover_the_clip_evenly():
    wave = torch.arange(25.0)[None]
    crops = clap_crops(wave, window=10)
    assert [crop[0, 0].item() for crop in crops] == [0, 8, 15]
    assert all(crop.shape == (1, 10) for crop in crops)
    assert [crop[0, 0].item() for crop in clap_crops(wave[:, :11], window=10)] == [0, 1]
    for samples in (3, 10):
        assert [crop.shape for crop in clap_crops(wave[:, :samples], window=10)] == [(1, samples)]


@given(st.integers(1, 200), st.integers(1, 30))
def test_clap_crops_leave_no_gap(samples, window):
    starts = [int(crop[0, 0]) for crop in clap_crops(torch.arange(samples)[None], window)]
    assert starts[0] == 0
    assert len(starts) == max(1, math.ceil(samples / window))
    assert all(second - first <= window for first, second in pairwise(starts))
    assert starts[-1] == max(0, samples - window)


# Resampling

RATES = [(16_000, 48_000), (48_000, 16_000), (44_100, 48_000), (44_100, 16_000), (22_050, 16_000)]


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.9, PASS_BAND])
def test_resample_keeps_the_passband(from_rate, to_rate, part):
    frequency = part * min(from_rate, to_rate) / 2
    middle = slice(to_rate // 8, to_rate // 4)  # away from the ends, where the silence outside is heard
    resampled = resample(tone(frequency, from_rate, from_rate // 2), from_rate, to_rate)[middle].double()
    expected = tone(frequency, to_rate, to_rate // 2)[middle].double()
    gain = (resampled @ expected) / (expected @ expected)
    assert abs(20 * math.log10(gain)) < 0.001  # dB of ripple
    assert (
        10 * math.log10((resampled - expected).square().mean() / 0.5) < -90
    )  # dB: no images, no shift in time


@pytest.mark.parametrize("from_rate, to_rate", [(16_000, 48_000), (44_100, 16_000), (48_000, 16_000)])
def test_resample_in_blocks_is_the_same(monkeypatch, from_rate, to_rate):
    wave = torch.randn(2, 5001)
    whole = resample(wave, from_rate, to_rate)
    monkeypatch.setattr("audioldm2.audio.resampling._PERIODS", 7)
    torch.testing.assert_close(resample(wave, from_rate, to_rate), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48_000, 16_000), (44_100, 16_000), (22_050, 16_000)])
@pytest.mark.parametrize("part", [1.0, 1.02, 1.1, 1.3])
def test_resample_keeps_aliases_out(from_rate, to_rate, part):
    aliased = resample(tone(part * to_rate / 2, from_rate, from_rate // 2), from_rate, to_rate)
    middle = aliased[to_rate // 8 : to_rate // 4].double()
    assert 10 * math.log10(middle.square().mean() / 0.5 + 1e-30) < -100  # dB


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 200))
def test_resample_length_is_rounded_up(from_rate, to_rate, samples):
    resampled = resample(noise(samples), from_rate, to_rate)
    assert resampled.shape == (-(-samples * to_rate // from_rate),)
    assert resampled.isfinite().all()


def test_resample_shapes_types_and_linearity():
    wave = noise(2, 3, 1000)
    resampled = resample(wave, 16_000, 48_000)
    assert resampled.shape == (2, 3, 3000)
    torch.testing.assert_close(resample(wave[1, 2], 16_000, 48_000), resampled[1, 2], atol=1e-6, rtol=0)
    assert resample(wave.half(), 16_000, 48_000).dtype == torch.float16
    assert resample(wave, 16_000, 16_000) is wave
    assert resample(torch.zeros(1, 0), 16_000, 48_000).shape == (1, 0)
    # Every third sample up is a sample of the wave, but for what lies above the pass band.
    low = resample(resample(wave, 48_000, 16_000), 16_000, 48_000)
    torch.testing.assert_close(
        resample(low, 16_000, 48_000)[..., 600:-600:3], low[..., 200:-200], atol=1e-5, rtol=0
    )


def test_resample_has_gradients_and_refuses_rates():
    wave = noise(1, 200).requires_grad_()
    resample(wave, 16_000, 48_000).square().sum().backward()
    assert wave.grad.isfinite().all()
    with pytest.raises(ValueError, match="rates are 0 and 48000"):
        resample(wave, 0, 48_000)


# Sound files


@pytest.mark.parametrize(
    ("suffix", "error"), [(".wav", 1.01 / 32768), (".flac", 1.01 / 32768), (".ogg", 0.1)]
)
def test_what_is_written_is_read(tmp_path, suffix, error):
    wave = 0.5 * tone(440, 16_000, 16_000)
    path = tmp_path / f"sound{suffix}"
    write_wav(path, wave, 16_000)
    back, rate = read(path)
    assert rate == 16_000
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, wave, atol=error, rtol=0)
    assert os.listdir(tmp_path) == [path.name]


def test_wav_is_16_bit_pcm_and_clips(tmp_path):
    path = tmp_path / "SOUND.WAV"
    write_wav(str(path), np.array([0.0, 1.0, 1.5, -1.0, -7.0]), 48_000)
    assert soundfile.info(path).subtype == "PCM_16"
    samples, _ = soundfile.read(path, dtype="int16")
    assert samples[0] == 0
    assert (samples[1:3] >= 32766).all()
    assert (samples[3:] <= -32767).all()


def test_long_ogg(tmp_path):
    write_wav(tmp_path / "long.ogg", noise(16_000 * 600), 16_000)
    assert soundfile.info(tmp_path / "long.ogg").frames == 16_000 * 600


def test_read_averages_channels(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.array([[0.5, 0.0], [0.25, -0.25]]), 8000, subtype="FLOAT")
    wave, rate = read(tmp_path / "stereo.wav")
    torch.testing.assert_close(wave, torch.tensor([0.25, 0.0]))
    assert rate == 8000


def test_read_tells_a_missing_file_from_a_broken_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.wav")
    (tmp_path / "broken.wav").write_text("not a sound")
    with pytest.raises(ValueError, match=r"broken\.wav is not a sound file"):
        read(tmp_path / "broken.wav")


@pytest.mark.parametrize(
    ("name", "wave", "rate", "message"),
    [
        ("sound.mp5", [0.0], 16_000, r"'\.mp5'; sounds can be written as \.wav, \.flac, \.ogg"),
        ("sound", [0.0], 16_000, r"\.wav, \.flac, \.ogg"),
        ("sound.wav", [0.0, math.nan, math.inf], 16_000, "2 of 3 samples are not finite"),
        ("sound.wav", [[0.0], [0.0]], 16_000, r"shape \(2, 1\)"),
        ("sound.wav", [], 16_000, r"shape \(0,\)"),
        ("sound.ogg", [0.0], 200_001, "sample_rate is 200001; allowed are 1 to 192000 Hz"),
        ("sound.wav", [0.0], 0, "sample_rate is 0"),
        ("sound.flac", [0.0], 191_999, "cannot be encoded at 191999 Hz"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(tmp_path, name, wave, rate, message):
    with pytest.raises(ValueError, match=message):
        write_wav(tmp_path / name, torch.tensor(wave), rate)
    assert os.listdir(tmp_path) == []


def test_the_systems_errors_stay_os_errors(tmp_path, monkeypatch):
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
