"""Both log-mel front ends, checked against their definitions."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audioldm2.audio import (
    CLAP_MEL,
    CLAP_WINDOW,
    VAE_FLOOR,
    VAE_MEL,
    VAE_MEL_48K,
    clap_crops,
    clap_log_mel,
    mel_edges,
    mel_filters,
    vae_front_end,
    vae_log_mel,
)
from audioldm2.errors import ArgumentError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(frequency: float, rate: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency / rate * torch.arange(samples, dtype=torch.float64)).float()


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


def test_vae_log_mel_rejects_a_short_wave():
    with pytest.raises(ArgumentError, match="wave has 432 samples; it has to have at least 433"):
        vae_log_mel(noise(1, 432))
    with pytest.raises(ArgumentError, match=r"wave has shape \(1000,\); it has to be \(batch, samples\)"):
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


def test_clap_log_mel_rejects_long_and_empty_waves():
    with pytest.raises(ArgumentError, match=r"480001 samples.*clap_crops"):
        clap_log_mel(torch.zeros(1, CLAP_WINDOW + 1))
    with pytest.raises(ArgumentError, match="0 samples"):
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


@pytest.mark.parametrize("mel_settings", [VAE_MEL, CLAP_MEL], ids=["vae", "clap"])
def test_mel_edges_frame_the_filters(mel_settings):
    edges, filters = mel_edges(mel_settings), mel_filters(mel_settings)
    assert edges[0] == mel_settings.f_min and edges[-1].item() == pytest.approx(mel_settings.f_max)
    assert (edges.diff() > 0).all()
    bins = torch.arange(513) * mel_settings.sample_rate / mel_settings.n_fft
    for band in (0, 20, 63):
        nonzero = bins[filters[:, band] > 0]
        assert edges[band] < nonzero[0] and nonzero[-1] < edges[band + 2]


@pytest.mark.parametrize("front_end", [vae_log_mel, clap_log_mel])
def test_front_ends_ignore_the_default_device_and_dtype(front_end):
    wave = noise(1, 4800)
    expected = front_end(wave)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(front_end(wave), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_front_end_follows_the_sample_rate():
    assert vae_front_end(16_000, 160, 64) == VAE_MEL
    assert vae_front_end(48_000, 480, 256) == VAE_MEL_48K
    with pytest.raises(ValueError, match="the vocoder runs at 24000 Hz"):
        vae_front_end(24_000, 160, 64)
