"""Sound measures, on sounds with known answers."""

import numpy as np
import pytest

from audioldm2.audio import SAMPLE_RATE
from scripts.demo_world import sound_measures as measure
from tests.support.demo_world import make


def tone_of(*hz: float, seconds: float = 1.0) -> np.ndarray:
    """A tone that changes its frequency at equal intervals."""
    curve = np.repeat(hz, round(seconds * SAMPLE_RATE / len(hz)))
    return 0.1 * np.sin(2 * np.pi * np.cumsum(curve) / SAMPLE_RATE)


def tones_at(times: list[float], seconds: float) -> np.ndarray:
    """Short high blips at the given times, in s."""
    wave = np.zeros(round(seconds * SAMPLE_RATE))
    blip = np.hanning(800) * np.sin(np.arange(800))
    for time in times:
        start = round(time * SAMPLE_RATE)
        wave[start : start + 800] += blip
    return wave


def test_loudness_ignores_pauses():
    wave = np.concatenate([np.zeros(8000), 0.1 * np.sign(tone_of(500)), np.zeros(8000)])
    assert measure.loudness(wave, SAMPLE_RATE) == pytest.approx(-20, abs=0.01)
    assert measure.loudness(np.zeros(8000), SAMPLE_RATE) == pytest.approx(-100)
    assert measure.active_seconds(wave, SAMPLE_RATE) == pytest.approx(1, abs=0.03)
    assert len(measure.levels(wave[:100], SAMPLE_RATE)) == 1


@pytest.mark.parametrize("hz", [60, 123.4, 440, 1000, 2600, 7000])
def test_dominant_frequency_of_a_tone(hz):
    wave = tone_of(hz) + 0.02 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    assert measure.dominant_frequency(wave, SAMPLE_RATE) == pytest.approx(hz, rel=0.01)


def test_flatness_of_a_tone_and_of_noise():
    assert measure.spectral_flatness(tone_of(1000), SAMPLE_RATE) < 1e-3
    white = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    assert measure.spectral_flatness(white, SAMPLE_RATE) > 0.9


def test_sweep_direction_ignores_trailing_silence():
    up = tone_of(*np.geomspace(200, 1600, 100))
    for wave, direction in [(up, 1), (up[::-1], -1), (tone_of(700), 0)]:
        assert measure.sweep_direction(wave, SAMPLE_RATE) == direction
        assert measure.sweep_direction(np.append(wave, np.zeros(20_000)), SAMPLE_RATE) == direction


@pytest.mark.parametrize("rate", [1.0, 2.5, 7.0])
def test_onset_rate_of_regular_blips_in_noise(rate):
    wave = tones_at(list(np.arange(0.02, 3.9, 1 / rate)), seconds=4)
    wave += 0.01 * np.random.default_rng(0).standard_normal(len(wave))
    assert measure.onset_rate(wave, SAMPLE_RATE) == pytest.approx(rate, rel=0.05)


def test_onsets_are_where_events_start():
    found = measure.onsets(tones_at([0.3, 0.8, 1.7], seconds=2), SAMPLE_RATE)
    np.testing.assert_allclose(found, [0.3, 0.8, 1.7], atol=0.03)
    assert measure.onset_rate(tones_at([0.5], seconds=2), SAMPLE_RATE) == 0.5  # one event in two seconds


def test_silence_has_no_pitch_no_direction_and_no_events():
    silence = np.zeros(SAMPLE_RATE)
    assert measure.dominant_frequency(silence, SAMPLE_RATE) == 0
    assert measure.sweep_direction(silence, SAMPLE_RATE) == 0
    assert measure.onset_rate(silence, SAMPLE_RATE) == 0
    assert np.isfinite(measure.mel_statistics(silence, SAMPLE_RATE)).all()


def test_mel_statistics_do_not_depend_on_the_level():
    wave = make("birds", 0)
    loud, quiet = (measure.mel_statistics(gain * wave, SAMPLE_RATE) for gain in (1, 0.01))
    np.testing.assert_allclose(loud, quiet, atol=0.01)
