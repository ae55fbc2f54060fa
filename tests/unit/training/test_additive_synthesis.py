"""Additive synthesis: its waves have the spectrograms that they were synthesized from, within its limits."""

import math

import numpy as np
import pytest
import torch

from audioldm2.audio import VAE_MEL, MelSettings, vae_log_mel
from audioldm2.training.additive_synthesis import (
    NEIGHBOUR_FRAMES,
    oscillator_bank,
    partial_amplitudes,
    partial_count,
    synthesize,
)
from scripts.demo_world.sound_measures import dominant_frequency


def tone(hz: float, amplitude: float = 0.1, seconds: float = 0.64) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * 16_000)) / 16_000)


@pytest.mark.parametrize("hz", [300, 700, 1200, 2500, 5000])
@pytest.mark.parametrize("amplitude", [0.003, 0.1])
def test_tone_at_a_partial_keeps_pitch_and_level(hz: int, amplitude: float):
    output = synthesize(vae_log_mel(tone(hz, amplitude)[None]), VAE_MEL)[0]
    assert output.shape == (10_240,)
    assert dominant_frequency(output.numpy(), 16_000) == pytest.approx(hz, abs=5)
    assert output[2000:-2000].std() == pytest.approx(amplitude / math.sqrt(2), rel=0.25)


@pytest.mark.parametrize("hz", [437, 1660, 3141])
def test_tone_between_partials_moves_to_a_neighbour(hz: int):
    output = synthesize(vae_log_mel(tone(hz)[None]), VAE_MEL)[0]
    assert abs(dominant_frequency(output.numpy(), 16_000) - hz) < 100


def test_noise_keeps_its_spectrogram_within_a_few_decibels():
    wave = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    mel = vae_log_mel(wave)
    assert (partial_amplitudes(mel, VAE_MEL) < 0).float().mean() > 0.2  # flipped
    error = (vae_log_mel(synthesize(mel, VAE_MEL)) - mel).abs()[:, 5:-5]
    assert error.mean() < 0.4  # nepers: 3.5 dB


def test_synthesis_is_local_in_time():
    mel = vae_log_mel(torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)))
    whole, later = synthesize(mel, VAE_MEL), synthesize(mel[:, 30:], VAE_MEL)
    context = 160 * (NEIGHBOUR_FRAMES + 1)  # the neighbours of a frame and of the one before it
    assert (whole[:, 30 * 160 + context :] - later[:, context:]).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_does_not_buzz_at_multiples_of_the_frame_rate(seed: int):
    """Lines of white noise lie 47 dB below the total; without sign flips, these lie at 16 to 20 dB."""
    noise = 0.1 * torch.randn(1, 20 * 16_000, generator=torch.Generator().manual_seed(10 + seed))
    output = synthesize(vae_log_mel(noise), VAE_MEL)[0].double().numpy()
    power = np.abs(np.fft.rfft(output * np.hanning(len(output)))) ** 2
    hz = np.fft.rfftfreq(len(output), 1 / 16_000)
    lines = range(100, 8000, 100)
    below = [10 * np.log10(power.sum() / power[np.abs(hz - line) <= 0.1].sum()) for line in lines]
    assert np.mean(below) > 44 and min(below) > 34


def test_tone_is_never_flipped():
    mel = vae_log_mel(tone(1200)[None])
    amplitudes = partial_amplitudes(mel, VAE_MEL)[0, 6:-6]
    assert amplitudes.abs().argmax(dim=1).tolist() == [11] * len(amplitudes)  # 1200 Hz
    assert (amplitudes[:, 11] > 0).all()


def test_amplitudes_are_interpolated_between_frame_centres():
    amplitudes = torch.zeros(1, 5, partial_count(VAE_MEL))
    amplitudes[0, 2, 9] = 0.5
    output = oscillator_bank(amplitudes, VAE_MEL)[0]
    assert output[: 160 + 80].abs().max() == 0 == output[4 * 160 - 80 :].abs().max()
    assert output.abs().argmax() // 160 == 2 and 0.4 < output.abs().max() <= 0.5
    steady = oscillator_bank(torch.full((1, 5, partial_count(VAE_MEL)), 0.1), VAE_MEL)[0]
    torch.testing.assert_close(steady[:160], steady[-160:])


@pytest.mark.slow
def test_other_front_ends():
    wide = MelSettings(48_000, n_fft=2048, hop=480, mels=256, f_min=20.0, f_max=24_000.0)
    noise = 0.1 * torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    output = synthesize(vae_log_mel(noise, wide), wide)
    assert partial_count(wide) == 239 and output.shape == (1, 48_000)
    assert 0.05 < output.std() < 0.2


def test_silence_stays_silent():
    mel = vae_log_mel(torch.zeros(1, 4000))
    assert synthesize(mel, VAE_MEL).abs().max() < 1e-3
