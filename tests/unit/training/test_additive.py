"""The vocoder without a network: its waves have the spectrograms they were made of, as near as lines can."""

import math

import numpy as np
import pytest
import torch

from audioldm2.audio import VAE_MEL, MelSettings, vae_log_mel
from audioldm2.training.additive import FRAMES_APART, additive_wave, line_amplitudes, line_count, wave_of
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
    assert (line_amplitudes(mel, VAE_MEL) < 0).float().mean() > 0.2  # turned over
    error = (vae_log_mel(additive_wave(mel, VAE_MEL)) - mel).abs()[:, 5:-5]
    assert error.mean() < 0.4  # nepers: 3.5 dB


def test_it_moves_with_the_spectrogram_as_a_vocoder_does():
    mel = vae_log_mel(torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)))
    whole, later = additive_wave(mel, VAE_MEL), additive_wave(mel[:, 30:], VAE_MEL)
    heard = 160 * (FRAMES_APART + 1)  # what is around a frame, and the one before it
    assert (whole[:, 30 * 160 + heard :] - later[:, heard:]).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_has_no_line_at_any_multiple_of_the_frame_rate(seed: int):
    """White noise itself has 47 dB; without turning lines over, these are 16 to 20."""
    noise = 0.1 * torch.randn(1, 20 * 16_000, generator=torch.Generator().manual_seed(10 + seed))
    made = additive_wave(vae_log_mel(noise), VAE_MEL)[0].double().numpy()
    power = np.abs(np.fft.rfft(made * np.hanning(len(made)))) ** 2
    hz = np.fft.rfftfreq(len(made), 1 / 16_000)
    lines = range(100, 8000, 100)
    below = [10 * np.log10(power.sum() / power[np.abs(hz - line) <= 0.1].sum()) for line in lines]
    assert np.mean(below) > 44 and min(below) > 34


def test_a_tone_is_never_turned_over():
    mel = vae_log_mel(tone(1200)[None])
    amplitudes = line_amplitudes(mel, VAE_MEL)[0, 6:-6]
    assert amplitudes.abs().argmax(dim=1).tolist() == [11] * len(amplitudes)  # 1200 Hz
    assert (amplitudes[:, 11] > 0).all()


def test_amplitudes_are_heard_from_the_middle_of_their_frame_to_the_next():
    amplitudes = torch.zeros(1, 5, line_count(VAE_MEL))
    amplitudes[0, 2, 9] = 0.5
    made = wave_of(amplitudes, VAE_MEL)[0]
    assert made[: 160 + 80].abs().max() == 0 == made[4 * 160 - 80 :].abs().max()
    assert made.abs().argmax() // 160 == 2 and 0.4 < made.abs().max() <= 0.5
    steady = wave_of(torch.full((1, 5, line_count(VAE_MEL)), 0.1), VAE_MEL)[0]
    torch.testing.assert_close(steady[:160], steady[-160:])


def test_other_front_ends_have_lines_too():
    wide = MelSettings(48_000, n_fft=2048, hop=480, mels=256, f_min=20.0, f_max=24_000.0)
    noise = 0.1 * torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    made = additive_wave(vae_log_mel(noise, wide), wide)
    assert line_count(wide) == 239 and made.shape == (1, 48_000)
    assert 0.05 < made.std() < 0.2


def test_silence_stays_silent():
    mel = vae_log_mel(torch.zeros(1, 4000))
    assert additive_wave(mel, VAE_MEL).abs().max() < 1e-3
