"""Checks of a model on the demo world, with true and with opposite sounds in place of a model."""

from collections.abc import Callable, Sequence

import numpy as np

from audioldm2.training.randomness import rng
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import render
from scripts.demo_world.model_checks import NOISES, TONES, Figure, ModelChecks
from scripts.demo_world.wordings import WORDINGS

Request = tuple[str, dict[str, str]]  # a family and its attributes


class RenderedChecks(ModelChecks):
    """Renders procedural sounds in place of a model; `alter` changes what is rendered for a request."""

    def __init__(self, alter: Callable[[str, dict[str, str]], Request]) -> None:
        self.seeds, self.rate, self.seconds, self.alter = range(10), 16_000, 2.56, alter
        self.requests: dict[str, Request] = {}

    def caption(self, family: str, seed: int, **mentioned: str) -> str:
        caption = f"{family} {seed} {mentioned}"
        self.requests[caption] = family, mentioned
        return caption

    def generate(self, captions: Sequence[str], seeds: Sequence[int], **settings: object) -> list[np.ndarray]:
        sounds = []
        for place, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
            family, attributes = self.alter(*self.requests[caption])
            sounds.append(render(rng("told", seed, place), {family: attributes}, "", self.seconds))
        return sounds


def figures_of(checks: ModelChecks) -> dict[str, Figure]:
    return checks.pitch() | checks.tempo() | checks.noisiness() | checks.sweeps()


def test_true_sounds_pass_every_check():
    figures = figures_of(RenderedChecks(lambda family, attributes: (family, attributes)))
    assert len(figures) == 4 and all("yes" in str(figure) for figure in figures.values()), figures


OPPOSITE_WORD = {"low": "high", "high": "low", "slow": "fast", "fast": "slow"}
OPPOSITE_FAMILY = {"rising": "falling", "falling": "rising"} | dict(
    zip(NOISES + TONES, TONES + NOISES, strict=True)
)


def test_opposite_sounds_fail_every_check():
    def opposite(family: str, attributes: dict[str, str]) -> Request:
        attributes = {name: OPPOSITE_WORD[word] for name, word in attributes.items()}
        return (family if attributes else OPPOSITE_FAMILY[family]), attributes

    figures = figures_of(RenderedChecks(opposite))
    assert all("NO" in str(figure) and figure.value < 0.2 for figure in figures.values()), figures


def test_captions_use_wordings_that_training_has_not_seen():
    checks = ModelChecks.__new__(ModelChecks)
    phrases = [phrase for words in WORDINGS.values() for phrase in words["train"].nouns]
    for family in FAMILIES:
        for seed in range(10):
            assert checks.caption(family, seed).lower().rstrip(".") not in phrases
