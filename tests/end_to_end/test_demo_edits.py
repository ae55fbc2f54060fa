"""Editing by text with the demo model: high bells become low ones and keep their loudness over time.

Measured with AUDIOLDM2_TESTS=full and a high bell of the demo world for each seed, 0 to 9 (an octave lower;
envelope; CLAP score):

    edit                       10 of 10    0.89    0.65
    audio-to-audio, 0.96                   0.89    0.47
    audio-to-audio, 1.0                    0.80    0.57
"""

from functools import cache

import numpy as np
import pytest
import torch

import audioldm2
from scripts.demo_world.sound_measures import dominant_frequency, levels
from tests.support.demo_world import make
from tests.support.sizes import full_or

pytestmark = pytest.mark.slow
SOURCE, TARGET = "a high bell", "a low bell"
SEEDS, STEPS = range(full_or(10, 5)), {"num_inference_steps": full_or(25, 16)}
RATE = 16_000


@cache
def demo() -> audioldm2.AudioLDM2:
    return audioldm2.load("demo", device="cpu", dtype="float32")


@cache
def bells() -> list[np.ndarray]:
    return [make("bell", seed, {"pitch": "high"}) for seed in SEEDS]


@cache
def edited() -> list[np.ndarray]:
    return [
        demo().edit(bell, TARGET, source_prompt=SOURCE, seed=seed, **STEPS).audio[0, 0].numpy()
        for seed, bell in zip(SEEDS, bells(), strict=True)
    ]


def varied(strength: float) -> list[np.ndarray]:
    """Audio-to-audio."""
    return [
        demo().generate(TARGET, audio=bell, strength=strength, seed=seed, **STEPS).audio[0, 0].numpy()
        for seed, bell in zip(SEEDS, bells(), strict=True)
    ]


def envelope_correlations(sounds: list[np.ndarray]) -> np.ndarray:
    """Of the amplitudes over time of each sound and its source."""
    pairs = zip(sounds, bells(), strict=True)
    return np.array([np.corrcoef([10 ** (levels(each, RATE) / 20) for each in pair])[0, 1] for pair in pairs])


def octaves_lower(sounds: list[np.ndarray]) -> np.ndarray:
    pairs = zip(sounds, bells(), strict=True)
    return np.array([np.log2(dominant_frequency(b, RATE) / dominant_frequency(a, RATE)) for a, b in pairs])


def score(sounds: list[np.ndarray]) -> float:
    return demo().score(TARGET, torch.from_numpy(np.stack(sounds))).mean().item()


def test_high_bells_become_low_ones_and_keep_their_envelope():
    passed = (octaves_lower(edited()) >= 1) & (envelope_correlations(edited()) >= 0.8)
    assert passed.mean() >= 0.8, (octaves_lower(edited()), envelope_correlations(edited()))


def test_audio_to_audio_keeps_less_of_the_sound_or_fits_the_text_less():
    """Even at strength 1 its score is lower, and there it has lost the envelope."""
    wanted, kept = score(edited()), envelope_correlations(edited()).mean()
    for strength, lost in ((0.96, -0.02), (1.0, 0.05)):
        sounds = varied(strength)
        assert score(sounds) < wanted - 0.03
        assert envelope_correlations(sounds).mean() < kept - lost
