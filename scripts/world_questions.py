"""What the procedural world asks of a model that was trained on it: is what the words say in the sound?

Every question is answered by counting or measuring (sound_measures.py), over seeds and over captions in the
wordings of the split "test", which training has not seen. Each has the least that a good answer has.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioldm2.audio import vae_log_mel
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.randomness import rng
from scripts.demo_sounds import ATTRIBUTES, FAMILIES
from scripts.make_demo_data import WORDINGS, describe, render
from scripts.sound_measures import (
    Classifier,
    dominant_frequency,
    mel_statistics,
    onset_rate,
    spectral_flatness,
    sweep_direction,
)

PITCHED = [name for name, family in FAMILIES.items() if "pitch" in family.takes]
IN_TIME = [name for name, family in FAMILIES.items() if "tempo" in family.takes]
NOISES = ["noise", "rain", "wind", "waves"]
TONES = ["tone", "beep", "beeps", "siren"]
AT_ONCE = 23  # sounds in a batch
LEARNT_FROM = 60  # sounds of each family, for the independent classifier
FRESH = 7  # seed of the world for sounds that are not made by the model; training has seed 0


class Answer(NamedTuple):
    """One figure, and the least (or, where so said, the most) that it should be."""

    value: float
    wanted: float | None = None
    at_most: bool = False

    def __str__(self) -> str:
        if self.wanted is None:
            return f"{self.value:8.3f}"
        right = self.value <= self.wanted if self.at_most else self.value >= self.wanted
        sign = "<=" if self.at_most else ">="
        return f"{self.value:8.3f}   {sign} {self.wanted:<6g} {'yes' if right else 'NO'}"


class World:
    """A model and a judge (of evaluate.py), and the sounds that were made already."""

    def __init__(self, model: AudioLDM2, judge: Any, seeds: Sequence[int], settings: Mapping[str, Any]):
        self.model, self.judge, self.seeds, self.settings = model, judge, seeds, dict(settings)
        self.rate = model.sample_rate
        self.seconds = settings.get("audio_length_in_s") or model.sound.default_seconds

    def make(self, captions: Sequence[str], seeds: Sequence[int], **settings: Any) -> list[np.ndarray]:
        """One sound (samples,) for each caption and its seed."""
        sounds: list[np.ndarray] = []
        for first in range(0, len(captions), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            result = self.model.generate(
                list(captions[part]), seed=list(seeds[part]), **self.settings | settings
            )
            sounds += list(result.audio[:, 0].numpy())
        return sounds

    def caption(self, family: str, seed: int, **said: str) -> str:
        """One of the wordings that training has not seen; the same one whatever is said."""
        return describe(rng("question", seed), {family: said}, split="test")

    def pairs(
        self, families: Sequence[str], attribute: str, low: str, high: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each seed, a family in turn, once with each of two words."""
        turns = [(families[place % len(families)], seed) for place, seed in enumerate(self.seeds)]
        captions = [
            self.caption(family, seed, **{attribute: word}) for word in (low, high) for family, seed in turns
        ]
        sounds = self.make(captions, list(self.seeds) * 2)
        return list(zip(sounds[: len(turns)], sounds[len(turns) :], strict=True))

    # The questions ------------------------------------------------------------------------------------------

    def pitch(self) -> dict[str, Answer]:
        """Is "high" at least an octave above "low"?"""
        right = [
            dominant_frequency(high, self.rate) >= 2 * dominant_frequency(low, self.rate) > 0
            for low, high in self.pairs(PITCHED, "pitch", "low", "high")
        ]
        return {"pitch: high at least twice low": Answer(np.mean(right), 0.9)}

    def tempo(self) -> dict[str, Answer]:
        """Is "fast" at least half as fast again as "slow"?"""
        right = [
            onset_rate(fast, self.rate) >= 1.5 * onset_rate(slow, self.rate) > 0
            for slow, fast in self.pairs(IN_TIME, "tempo", "slow", "fast")
        ]
        return {"tempo: fast at least 1.5 slow": Answer(np.mean(right), 0.8)}

    def noisiness(self) -> dict[str, Answer]:
        """Are noises noisy, and tones not?"""
        turns = list(enumerate(self.seeds))
        captions = [
            self.caption(families[place % len(families)], seed)
            for families in (NOISES, TONES)
            for place, seed in turns
        ]
        flatness = [spectral_flatness(each, self.rate) for each in self.make(captions, list(self.seeds) * 2)]
        right = [
            noise >= 3 * tone
            for noise, tone in zip(flatness[: len(turns)], flatness[len(turns) :], strict=True)
        ]
        return {"flatness: noise at least 3 tone": Answer(np.mean(right), 1.0)}

    def sweeps(self) -> dict[str, Answer]:
        """Does "rising" rise, and "falling" fall?"""
        turns = [(family, seed) for seed in self.seeds for family in ("rising", "falling")]
        sounds = self.make([self.caption(*turn) for turn in turns], [seed for _, seed in turns])
        right = [
            sweep_direction(sound, self.rate) == (1 if family == "rising" else -1)
            for sound, (family, _) in zip(sounds, turns, strict=True)
        ]
        return {"sweeps: the right direction": Answer(np.mean(right), 0.9)}

    def families(self) -> dict[str, Answer]:
        """Does one hear what it is? CLAP answers, and a classifier that has never seen a word."""
        fresh, labels = self.true_sounds("fresh", len(self.seeds))
        turns = [(family, seed) for seed in self.seeds for family in FAMILIES]
        made = self.make([self.attributed(*turn) for turn in turns], [seed for _, seed in turns])
        asked = [family for family, _ in turns]
        texts = {name: [self.caption(name, wording) for wording in range(8)] for name in FAMILIES}
        of_fresh, of_made = (
            self.judge.of_sounds([torch.from_numpy(sound) for sound in sounds], self.rate)
            for sounds in (fresh, made)
        )
        classifier = Classifier.fit(*self.features(*self.true_sounds("learnt", LEARNT_FROM)))
        heard = self.judge.families(of_made, texts)
        predicted = classifier.predict(self.features(made, asked)[0])
        right = {name: 0 for name in FAMILIES}
        for one, other, name in zip(heard, predicted, asked, strict=True):
            right[name] += (one == name) + (other == name)
        worst = sorted(right, key=right.get)[:5]
        answers = {
            "CLAP: true sounds of each family": Answer(
                share(self.judge.families(of_fresh, texts), labels), 0.9
            ),
            "CLAP: made sounds of each family": Answer(share(heard, asked), 0.75),
            "classifier: true sounds": Answer(
                share(classifier.predict(self.features(fresh, labels)[0]), labels)
            ),
            "classifier: made sounds": Answer(share(predicted, asked), 0.7),
        }
        return answers | {f"  weakest: {name}": Answer(right[name] / (2 * len(self.seeds))) for name in worst}

    def help(self) -> dict[str, Answer]:
        """Do guidance and candidates help? Above 0, they do."""
        seeds = [100 + 10 * place for place in range(2 * len(FAMILIES))]  # four apart at least: candidates
        turns = list(zip([*FAMILIES] * 2, seeds, strict=True))
        captions = [self.attributed(*turn) for turn in turns]
        guided = self.scores(captions, self.make(captions, seeds))
        free = self.scores(captions, self.make(captions, seeds, guidance_scale=1.0))
        four = np.concatenate(
            [
                self.model.generate(
                    captions[first : first + 6], seed=seeds[first : first + 6], num_waveforms_per_prompt=4,
                    **self.settings,
                ).scores.numpy()
                for first in range(0, len(captions), 6)
            ]
        )  # fmt: skip
        return {
            "CLAP score, guidance 3.5": Answer(guided.mean()),
            "CLAP score, guidance 1": Answer(free.mean()),
            "what guidance adds": Answer(guided.mean() - free.mean(), 0.0),
            "what the best of four adds": Answer(four[:, 0].mean() - four.mean(), 0.0),
        }

    def vocoder(self) -> dict[str, Answer]:
        """What is lost from mel to wave to mel, and does it buzz at 100 frames a second?"""
        fresh, _ = self.true_sounds("vocoded", 2)
        wave = torch.from_numpy(np.stack(fresh))
        mel = vae_log_mel(wave)
        made = self.model.vocode(mel)[:, : wave.shape[1]].float().cpu()
        error = (vae_log_mel(made) - mel).abs()
        heard = mel > mel.amax(dim=(1, 2), keepdim=True) - 6.9  # the upper 60 dB
        decibel = 20 / np.log(10)
        # Long, because the noise has power near 100 Hz too: within 0.8 Hz, it is only 40 dB below the whole.
        noise = 0.1 * torch.randn(1, 20 * self.rate, generator=torch.Generator().manual_seed(0))
        hiss = self.model.vocode(vae_log_mel(noise))[0, : noise.shape[1]].float().cpu().numpy()
        power = np.abs(np.fft.rfft(hiss * np.hanning(len(hiss)))) ** 2
        hz = np.fft.rfftfreq(len(hiss), 1 / self.rate)
        line = 10 * np.log10(power.sum() / power[np.abs(hz - 100) <= 0.1].sum())
        return {
            "vocoder: mel error, dB, upper 60": Answer(decibel * error[heard].mean().item()),
            "vocoder: mel error, dB, all": Answer(decibel * error.mean().item()),
            "vocoder: loudest sample": Answer(made.abs().max().item(), 0.999, at_most=True),
            "vocoder: constant part": Answer(made.mean(dim=1).abs().max().item(), 0.001, at_most=True),
            "vocoder: 100 Hz below noise, dB": Answer(float(line), 40.0),
        }

    # What they share ----------------------------------------------------------------------------------------

    def attributed(self, family: str, seed: int) -> str:
        """A caption that also says something of the sound, drawn by the seed."""
        chance = rng("attributes", seed, sorted(FAMILIES).index(family))
        takes = [name for name in FAMILIES[family].takes if chance.random() < 0.3]
        return self.caption(
            family, seed, **{name: str(chance.choice(list(ATTRIBUTES[name]))) for name in takes}
        )

    def true_sounds(self, purpose: str, count: int) -> tuple[list[np.ndarray], list[str]]:
        """So many fresh sounds of each family, and the family of each."""
        labels = [name for name in FAMILIES for _ in range(count)]
        return [
            render(rng(purpose, FRESH, place), {name: {}}, "", self.seconds)
            for place, name in enumerate(labels)
        ], labels

    def features(self, sounds: Sequence[np.ndarray], labels: list[str]) -> tuple[np.ndarray, list[str]]:
        return np.stack([mel_statistics(sound, self.rate) for sound in sounds]), labels

    def scores(self, captions: Sequence[str], sounds: Sequence[np.ndarray]) -> np.ndarray:
        heard = self.judge.of_sounds([torch.from_numpy(sound) for sound in sounds], self.rate)
        told: Tensor = self.judge.of_texts(captions)
        return (heard * told).sum(dim=1).numpy()


def share(found: Sequence[str], right: Sequence[str]) -> float:
    return float(np.mean([one == other for one, other in zip(found, right, strict=True)]))


def ask_all(
    model: AudioLDM2,
    judge: Any,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    say: Callable[[str], object],
) -> dict[str, float]:
    """Ask all questions, print the answers as they come; returns {figure: value}."""
    if set(WORDINGS) != set(FAMILIES):
        raise ValueError("the world has families without words.")
    world, found = World(model, judge, seeds, settings), {}
    for question in (
        world.pitch, world.tempo, world.noisiness, world.sweeps, world.families, world.help, world.vocoder
    ):  # fmt: skip
        say(question.__doc__)
        for name, answer in question().items():
            print(f"{name:<36}{answer}", flush=True)
            found[name] = float(answer.value)
    return found
