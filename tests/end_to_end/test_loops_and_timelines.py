"""The model in the box, by measures that stand in for ears: the seams of loops, and the halves of timelines.

Measured with this test and AUDIOLDM2_TESTS=full, seeds 0 to 9, 10 steps: how many of ten joints jump no more
than 95 % of the places inside true sounds, in the wave and in the spectrum.

    siren   loop 10 and 10   clip that is no loop 10 and 0
    tone    loop 10 and 7    clip that is no loop 0 and 0

True tones are steadier than generated ones, also away from the seam. Halves of a timeline that are named
rightly: 10 and 8 of ten.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import audioldm2
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.sound_measures import Classifier, mel_statistics
from tests.support.demo_world import make
from tests.support.sizes import full_or

RATE, SEEDS, STEPS = 16_000, range(full_or(10, 5)), full_or(10, 5)
FRAME = 1024  # samples, 64 ms, on either side of a joint
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> audioldm2.AudioLDM2:
    return audioldm2.load("demo", device="cpu")


def caption(family: str, seed: int, **attributes: str) -> str:
    return describe(rng("question", seed), {family: attributes}, split="test")


# The seam of a loop.


def steps(sound: np.ndarray) -> np.ndarray:
    """From each sample to the next, and from the last to the first, relative to the level of the sound."""
    return np.abs(np.roll(sound, -1) - sound) / np.sqrt(np.mean(sound**2))


def fluxes(sound: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How much the spectrum before a place differs from that after it: root mean square of log bands."""
    windows = np.hanning(FRAME) * np.stack(
        [np.take(sound, np.arange(at, at + FRAME), mode="wrap") for at in (*(places - FRAME), *places)]
    )
    power = np.abs(np.fft.rfft(windows)) ** 2
    edges = np.unique(np.searchsorted(np.fft.rfftfreq(FRAME, 1 / RATE), np.geomspace(60, 7800, 25)))
    widths = np.diff(edges)
    bands = np.log(np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1) / widths + 1e-6)
    before, after = np.split(bands, 2)
    return np.sqrt(np.mean((before - after) ** 2, axis=1))


@cache
def limits(family: str, pitch: str | None) -> tuple[float, float]:
    """What 95 % of the places inside true sounds do not exceed: the step of the wave, and the flux."""
    true = [make(family, 100 + seed, {"pitch": pitch} if pitch else {}) for seed in range(20)]
    inside = np.arange(2 * FRAME, len(true[0]) - 2 * FRAME, FRAME // 2)
    waves = np.concatenate([steps(sound)[2 * FRAME : -2 * FRAME] for sound in true])
    spectra = np.concatenate([fluxes(sound, inside) for sound in true])
    return float(np.quantile(waves, 0.95)), float(np.quantile(spectra, 0.95))


def passes(demo: audioldm2.AudioLDM2, family: str, pitch: str | None, loop: bool) -> list[tuple[bool, bool]]:
    """Per seed: does the wave, and does the spectrum, jump no more at the seam than inside true sounds?"""
    text = caption(family, 0, **({"pitch": pitch} if pitch else {}))
    texts, seeds = [text] * len(SEEDS), list(SEEDS)
    sounds = demo.generate(texts, seed=seeds, loop=loop, num_inference_steps=STEPS).audio[:, 0]
    wave, spectrum = limits(family, pitch)
    return [
        (bool(steps(sound)[-1] <= wave), bool(fluxes(sound, np.array([0]))[0] <= spectrum))
        for sound in sounds.numpy().astype(np.float64)
    ]


@pytest.mark.parametrize(("family", "pitch"), [("siren", None), ("tone", "low")])
def test_seam_of_a_loop_jumps_no_more_than_true_sounds(demo, family, pitch):
    looped, clip = (passes(demo, family, pitch, loop) for loop in (True, False))
    assert sum(wave for wave, _ in looped) >= len(SEEDS) - 1
    assert sum(all(both) for both in looped) >= 0.7 * len(SEEDS)
    assert sum(all(both) for both in clip) <= 1, "a clip that is no loop jumps"


# The halves of a timeline.


def test_halves_of_a_timeline_are_named_rightly(demo):
    """By a classifier that knows no captions, of all families: seed by seed another pair of them."""
    names, seeds = sorted(FAMILIES), range(full_or(10, 7))
    pairs = [(names[2 * seed], names[2 * seed + 1]) for seed in seeds]
    labels = [name for name in names for _ in range(full_or(20, 10))]
    known = np.stack([mel_statistics(make(name, 1000 + i), RATE) for i, name in enumerate(labels)])
    classifier = Classifier.fit(known, labels)
    timelines = [
        [(caption(first, seed), 0, 2.56), (caption(second, seed + 50), 2.56, 5.12)]
        for seed, (first, second) in zip(seeds, pairs, strict=True)
    ]
    result = demo.generate(timelines, seed=list(seeds), window_seconds=2.56, num_inference_steps=STEPS)
    halves = np.split(result.audio[:, 0].numpy(), 2, axis=1)
    for place, sounds in enumerate(halves):
        found = classifier.predict(np.stack([mel_statistics(sound, RATE) for sound in sounds]))
        right = sum(name == pair[place] for name, pair in zip(found, pairs, strict=True))
        assert right >= 0.7 * len(seeds)


def test_lines_of_the_readme_run():
    text = (Path(audioldm2.__file__).parent / "runtime" / "README.md").read_text(encoding="utf-8")
    section = text.split("## Windows, loops and timelines")[1]
    [python] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:1]
    assert "num_inference_steps=10" in python
    exec(python.replace("num_inference_steps=10", "num_inference_steps=2"), {})
