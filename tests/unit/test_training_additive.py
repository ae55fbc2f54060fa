"""The vocoder without a network: its waves have the spectrograms they were made of, as near as lines can."""

import math

import pytest
import torch

from audioldm2.audio import VAE_MEL, vae_log_mel
from audioldm2.training.additive import additive_wave
from scripts.sound_measures import dominant_frequency


def tone(hz: float, amplitude: float = 0.1, seconds: float = 0.64) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * 16_000)) / 16_000)


@pytest.mark.parametrize("hz", [300, 700, 1200, 2500, 5000])
@pytest.mark.parametrize("amplitude", [0.003, 0.1])
def test_a_tone_on_a_line_has_its_pitch_and_loudness(hz: int, amplitude: float):
    made = additive_wave(vae_log_mel(tone(hz, amplitude)[None]), VAE_MEL)[0]
    assert made.shape == (10_240,)
    assert dominant_frequency(made.numpy(), 16_000) == pytest.approx(hz, abs=5)
    assert made[2000:-2000].std() == pytest.approx(amplitude / math.sqrt(2), rel=0.25)


@pytest.mark.parametrize("hz", [437, 1660, 3141])
def test_a_tone_between_lines_is_that_of_its_neighbours(hz: int):
    made = additive_wave(vae_log_mel(tone(hz)[None]), VAE_MEL)[0]
    assert abs(dominant_frequency(made.numpy(), 16_000) - hz) < 100


def test_noise_comes_back_within_a_few_decibels():
    wave = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    mel = vae_log_mel(wave)
    error = (vae_log_mel(additive_wave(mel, VAE_MEL)) - mel).abs()[:, 5:-5]
    assert error.mean() < 0.35  # nepers: 3 dB


def test_it_moves_with_the_spectrogram_as_a_vocoder_does():
    mel = vae_log_mel(torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)))
    whole, later = additive_wave(mel, VAE_MEL), additive_wave(mel[:, 30:], VAE_MEL)
    assert (whole[:, 30 * 160 + 80 :] - later[:, 80:]).abs().max() < 1e-4


def test_silence_stays_silent():
    mel = vae_log_mel(torch.zeros(1, 4000))
    assert additive_wave(mel, VAE_MEL).abs().max() < 1e-3
