"""Families of procedural sounds: well formed, reproducible, and as their attributes say."""

from collections.abc import Callable

import numpy as np
import pytest

from audioldm2.audio import SAMPLE_RATE
from scripts.demo_world import sound_measures as measure
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.registry import ATTRIBUTES
from scripts.demo_world.synthesis import PEAK
from scripts.demo_world.wordings import ATTRIBUTE_PHRASES, WORDINGS
from tests.support.demo_world import make, random_attributes
from tests.support.sizes import full_or

SEEDS = range(full_or(25, 8))
MORE_SEEDS = range(full_or(25, 20))  # one of them may fail
TONES = ("tone", "beep", "beeps", "bell")
NOISES = ("noise", "wind", "rain", "waves")


def test_every_family_and_attribute_has_wordings():
    assert len(FAMILIES) >= 16
    assert list(FAMILIES) == list(dict.fromkeys(FAMILIES)) and set(FAMILIES) == set(WORDINGS)
    assert {(name, word) for name in ATTRIBUTES for word in ATTRIBUTES[name]} == set(ATTRIBUTE_PHRASES)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_sounds_are_finite_levelled_and_faded(family):
    for seed in range(full_or(10, 4)):
        rng = np.random.default_rng(seed)
        seconds = 10.0 if seed == 0 else 0.64 if seed == 1 else float(np.round(rng.uniform(0.64, 4), 3))
        wave = FAMILIES[family](rng, seconds, random_attributes(rng, family))
        assert wave.dtype == np.float32 and wave.shape == (round(seconds * SAMPLE_RATE),)
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() <= PEAK + 1e-6
        assert abs(wave.mean()) <= 1e-6
        assert measure.loudness(wave, SAMPLE_RATE) > -41
        assert np.abs(wave[[0, -1]]).max() < 0.01, "a hard edge clicks"


@pytest.mark.parametrize("family", FAMILIES)
def test_generator_determines_the_sound(family):
    np.testing.assert_array_equal(make(family, 3), make(family, 3))
    assert not np.array_equal(make(family, 3), make(family, 4))


def pass_rate(family: str, name: str, word: str, check: Callable[..., bool]) -> float:
    """Fraction of a family's sounds that pass the check of an attribute."""
    seconds = 1.28 if name in ("pitch", "level") else 2.56
    passed = [check(make(family, seed, {name: word}, seconds), SAMPLE_RATE) for seed in MORE_SEEDS]
    return float(np.mean(passed))


CHECKS = {  # the bounds lie midway between the ranges of an attribute
    ("pitch", "low"): lambda *sound: measure.dominant_frequency(*sound) < 297,
    ("pitch", "middle"): lambda *sound: 297 < measure.dominant_frequency(*sound) < 990,
    ("pitch", "high"): lambda *sound: measure.dominant_frequency(*sound) > 990,
    ("tempo", "slow"): lambda *sound: measure.onset_rate(*sound) < 2.2,
    ("tempo", "fast"): lambda *sound: 3.6 < measure.onset_rate(*sound) < 8,
    ("level", "quiet"): lambda *sound: measure.loudness(*sound) < -34,
    ("level", "loud"): lambda *sound: measure.loudness(*sound) > -18,
    ("length", "short"): lambda *sound: measure.active_seconds(*sound) < 0.6,
    ("length", "long"): lambda *sound: measure.active_seconds(*sound) > 2.2,
    ("room", "dry"): lambda *sound: measure.steepest_fall(*sound) > 25,
    ("room", "reverberant"): lambda *sound: measure.steepest_fall(*sound) < 25,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "word"), CHECKS)
def test_attributes_are_measurable(name, word):
    for family in FAMILIES:
        if name in FAMILIES[family].takes:
            assert pass_rate(family, name, word, CHECKS[name, word]) >= 0.95, family


@pytest.mark.parametrize("family", [name for name in FAMILIES if "tempo" in FAMILIES[name].takes])
def test_fast_is_faster_than_slow_in_noise_and_in_a_hall(family):
    attributes = {"room": "reverberant"} if "room" in FAMILIES[family].takes else {}
    rates = {}
    for word in ATTRIBUTES["tempo"]:
        sounds = [make(family, seed, {"tempo": word, "level": "loud"} | attributes) for seed in SEEDS]
        hiss = [0.01 * np.random.default_rng(seed).standard_normal(len(sounds[0])) for seed in SEEDS]
        rates[word] = np.array(
            [measure.onset_rate(a + b, SAMPLE_RATE) for a, b in zip(sounds, hiss, strict=True)]
        )
    assert np.mean(rates["fast"] >= 1.5 * rates["slow"]) >= 0.95


def test_noises_are_flatter_than_tones():
    flatness = {
        family: [measure.spectral_flatness(make(family, seed), SAMPLE_RATE) for seed in SEEDS]
        for family in (*TONES, *NOISES)
    }
    assert min(min(flatness[family]) for family in NOISES) > 3 * max(
        max(flatness[family]) for family in TONES
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("attributes", [{}, {"length": "short"}, {"length": "long"}], ids=str)
def test_sweeps_have_the_right_direction(attributes):
    for family, direction in [("rising", 1), ("falling", -1)]:
        found = [measure.sweep_direction(make(family, seed, attributes), SAMPLE_RATE) for seed in SEEDS]
        assert np.mean(np.array(found) == direction) >= 0.95


@pytest.mark.slow
def test_classifier_distinguishes_all_families():
    def sounds(first: int, count: int) -> tuple[np.ndarray, list[str]]:
        features, names = [], []
        for family in FAMILIES:
            for seed in range(first, first + count):
                attributes = random_attributes(np.random.default_rng(seed + 1), family)
                features.append(measure.mel_statistics(make(family, seed, attributes, 1.28), SAMPLE_RATE))
                names.append(family)
        return np.array(features), names

    classifier = measure.Classifier.fit(*sounds(0, full_or(25, 12)))
    count = full_or(8, 5)
    features, names = sounds(1000, count)
    correct = np.array(classifier.predict(features)) == names
    assert correct.mean() >= 0.9
    assert min(correct.reshape(-1, count).mean(axis=1)) >= 0.6, "two families sound alike"
