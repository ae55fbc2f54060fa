"""Sounds that the model in the box has never met, to teach it, and a judge that names what it then generates.

The judge is a classifier that knows no captions. It is fitted on true sounds of the 23 old families and of
the new one, none of which a model is taught with.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audioldm2.audio import SAMPLE_RATE as RATE
from audioldm2.audio import write_wav
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import SECONDS, render, sample
from scripts.demo_world.registry import Family, Voice
from scripts.demo_world.sound_measures import Classifier, mel_statistics
from scripts.demo_world.synthesis import Wave, fade, harmonics, place_events, times

KNOWN = 60  # true sounds of each family that the judge is fitted on
SEED_OF_SOUNDS, SEED_OF_JUDGE = 0, 7
BATCH = 24  # prompts per call of the model
SAMPLING = {"sampler": "dpmpp_2m", "num_inference_steps": 25}  # quick: hundreds of sounds are judged


@dataclass(frozen=True)
class NewSound:
    """A kind of sound and its captions; a model is asked in other words than it is taught in."""

    name: str
    family: Family
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A prompt, its seed, and the family that it asks for."""

    family: str
    text: str
    seed: int


# The sounds -------------------------------------------------------------------------------------------------


def telephone(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """An electronic bell: two tones that alternate 20 times a second, in rings with pauses."""
    ring = round(rng.uniform(0.45, 0.6) * RATE)
    pitch = rng.uniform(850, 1000)
    alternating = np.where(np.arange(ring) * 40 // RATE % 2, pitch, 1.28 * pitch)
    sound = fade(harmonics(alternating, ring, [1, 0.3, 0.2]))
    starts = np.arange(round(rng.uniform(0.02, 0.1) * RATE), n, round(1.5 * ring))
    return place_events(n, starts, [sound])


def zorp(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """A square wave that warbles, nearly the same each time, so that log-mels can be compared."""
    pitch = rng.uniform(485, 515) * 2 ** (0.4 * np.sin(2 * np.pi * 3 * times(n)))
    return fade(harmonics(pitch, n, [1, 0, 1 / 3, 0, 1 / 5, 0, 1 / 7]))


TELEPHONE = NewSound(
    "telephone",
    Family(telephone, ("level",)),
    ("a telephone rings", "a ringing telephone", "the telephone is ringing", "telephone ringing"),
    ("a telephone is ringing", "the ringing of a telephone", "a telephone that rings"),
)
ZORP = NewSound("zorp", Family(zorp, ("level",)), ("a zorp", "zorp", "the sound of a zorp"), ("the zorp",))


def write_sounds(folder: Path, sound: NewSound, count: int) -> None:
    """Write sounds of a new kind, with captions.csv."""
    waves = [sound.family(rng("taught", SEED_OF_SOUNDS, place), SECONDS) for place in range(count)]
    _write(folder, [(sound.train[place % len(sound.train)], wave) for place, wave in enumerate(waves)])


def write_old_sounds(folder: Path, count: int) -> None:
    """Write sounds of the demo world, with captions.csv: scenes, and as many sounds of one family each."""
    found = []
    for place in range(count // 2):
        scene = sample(SEED_OF_SOUNDS, place)
        of_family, name = rng("old sound", SEED_OF_SOUNDS, place), list(FAMILIES)[place % len(FAMILIES)]
        caption = describe(of_family, {name: {}})
        found += [(scene.caption, scene.audio), (caption, render(of_family, {name: {}}, "", SECONDS))]
    _write(folder, found)


def _write(folder: Path, sounds: Sequence[tuple[str, np.ndarray]]) -> None:
    folder.mkdir(parents=True)
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "caption"))
        for place, (caption, wave) in enumerate(sounds):
            write_wav(folder / f"{place}.wav", torch.from_numpy(wave), RATE)
            table.writerow((f"{place}.wav", caption))


# The judge --------------------------------------------------------------------------------------------------


def true_sounds(sound: NewSound, count: int) -> list[np.ndarray]:
    """Sounds of a new kind that no model is taught with."""
    return [sound.family(rng("learnt", SEED_OF_JUDGE, place), SECONDS) for place in range(count)]


def fit_judge(new: NewSound) -> Classifier:
    """Fit the classifier on true sounds of all families and of the new kind."""
    sounds, labels = true_sounds(new, KNOWN), [new.name] * KNOWN
    for place in range(KNOWN * len(FAMILIES)):
        name = list(FAMILIES)[place % len(FAMILIES)]
        sounds.append(render(rng("learnt old", SEED_OF_JUDGE, place), {name: {}}, "", SECONDS))
        labels.append(name)
    return Classifier.fit(_features(sounds), labels)


def questions(new: NewSound, seeds: Sequence[int]) -> list[Question]:
    """For each seed a question about every family and about the new kind, in the wordings of the test."""
    asked = []
    for seed in seeds:
        for name in FAMILIES:
            asked.append(Question(name, describe(rng("question", seed), {name: {}}, split="test"), seed))
        asked.append(Question(new.name, new.test[seed % len(new.test)], seed))
    return asked


def answers(model: AudioLDM2, asked: Sequence[Question]) -> list[np.ndarray]:
    """Generate a sound (samples,) for each question."""
    sounds: list[np.ndarray] = []
    for first in range(0, len(asked), BATCH):
        part = asked[first : first + BATCH]
        texts, seeds = [each.text for each in part], [each.seed for each in part]
        result = model.generate(texts, seed=seeds, **SAMPLING)
        sounds += list(result.audio[:, 0].numpy())
    return sounds


def named_right(judge: Classifier, asked: Sequence[Question], sounds: Sequence[np.ndarray]) -> list[bool]:
    """For each sound, whether the judge names it as the family that was asked for."""
    named = judge.predict(_features(sounds))
    return [each.family == name for each, name in zip(asked, named, strict=True)]


def count_by_family(asked: Sequence[Question], right: Sequence[bool]) -> dict[str, int]:
    """How many questions of each family are answered right."""
    counts = dict.fromkeys((each.family for each in asked), 0)
    for each, is_right in zip(asked, right, strict=True):
        counts[each.family] += is_right
    return counts


def _features(sounds: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([mel_statistics(sound, RATE) for sound in sounds])
