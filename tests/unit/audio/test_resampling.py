"""Resampling, checked against its specification: pass band, stop band, length, linearity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioldm2.audio import PASS_BAND, resample
from audioldm2.errors import ArgumentError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(frequency: float, rate: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency / rate * torch.arange(samples, dtype=torch.float64)).float()


RATES = [(16_000, 48_000), (48_000, 16_000), (44_100, 48_000), (44_100, 16_000), (22_050, 16_000)]


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.9, PASS_BAND])
def test_resample_keeps_the_passband(from_rate, to_rate, part):
    frequency = part * min(from_rate, to_rate) / 2
    middle = slice(to_rate // 8, to_rate // 4)  # away from the silence beyond the ends
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


def test_resample_has_gradients():
    wave = noise(1, 200).requires_grad_()
    resample(wave, 16_000, 48_000).square().sum().backward()
    assert wave.grad.isfinite().all()


@pytest.mark.parametrize("rate", [0, -1, 2**31 - 1, 44_100.0, "44100", True])
def test_resample_rejects_absurd_rates(rate):
    for rates, name in (((rate, 48_000), "from_rate"), ((48_000, rate), "to_rate")):
        with pytest.raises(
            ArgumentError, match=f"{name} is .*; it has to be a whole number from 1 to 1536000"
        ):
            resample(noise(1, 200), *rates)


def test_resample_names_the_rate_when_memory_runs_out():
    wave = torch.zeros(1).expand(1 << 40)  # one sample of memory
    with pytest.raises(ArgumentError, match="samples at 1 Hz; it has to fit in memory at 48000 Hz"):
        resample(wave, 1, 48_000)


def test_resample_takes_numpy_rates_whatever_the_default_device():
    wave = noise(1, 200)
    expected = resample(wave, 16_000, 48_000)
    with torch.device("meta"):
        assert torch.equal(resample(wave, np.int64(16_000), np.int32(48_000)), expected)
