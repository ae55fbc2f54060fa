"""Checks of a model that was trained on the demo world: do its sounds match what the captions ask for?

Every check counts or measures (sound_measures.py) over several seeds, with captions from the split "test",
whose wordings training has not seen. `scripts/evaluate.py` runs them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from audioldm2.audio import vae_log_mel
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import render
from scripts.demo_world.registry import ATTRIBUTES
from scripts.demo_world.sound_measures import (
    Classifier,
    dominant_frequency,
    mel_statistics,
    onset_rate,
    spectral_flatness,
    sweep_direction,
)
from scripts.demo_world.wordings import WORDINGS

PITCHED = [name for name, family in FAMILIES.items() if "pitch" in family.takes]
RHYTHMIC = [name for name, family in FAMILIES.items() if "tempo" in family.takes]
NOISES = ["noise", "rain", "wind", "waves"]
TONES = ["tone", "beep", "beeps", "siren"]
BATCH = 23  # prompts per call of the model
CLASSIFIER_SOUNDS = 60  # per family, to fit the classifier
FRESH_SEED = 7  # of the world, for reference sounds; training uses seed 0


class Judge(Protocol):
    """CLAP embeddings; `audioldm2.evaluation` has the implementation."""

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeds texts: (texts, dim), unit vectors."""
        ...

    def of_sounds(self, sounds: Sequence[Tensor], rate: int) -> Tensor:
        """Embeds sounds: (sounds, dim), unit vectors."""
        ...

    def families(self, sounds: Tensor, texts: Mapping[str, Sequence[str]]) -> list[str]:
        """Returns the family whose texts are closest to each embedded sound."""
        ...


class Figure(NamedTuple):
    """A measured value and the least (or most, if `at_most`) that it should be."""

    value: float
    target: float | None = None
    at_most: bool = False

    def __str__(self) -> str:
        if self.target is None:
            return f"{self.value:8.3f}"
        passed = self.value <= self.target if self.at_most else self.value >= self.target
        sign = "<=" if self.at_most else ">="
        return f"{self.value:8.3f}   {sign} {self.target:<6g} {'yes' if passed else 'NO'}"


class ModelChecks:
    """The checks of one model.

    Args:
        model: generates the sounds.
        judge: embeds sounds and texts.
        seeds: one sound per check and seed, roughly.
        settings: keyword arguments of `AudioLDM2.generate`.
    """

    def __init__(
        self, model: AudioLDM2, judge: Judge, seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> None:
        self.model, self.judge, self.seeds, self.settings = model, judge, seeds, dict(settings)
        self.rate = model.sample_rate
        self.seconds = settings.get("audio_length_in_s") or model.sound.default_seconds

    def generate(self, captions: Sequence[str], seeds: Sequence[int], **settings: Any) -> list[np.ndarray]:
        """Generates a sound (samples,) for each caption and its seed."""
        sounds: list[np.ndarray] = []
        for first in range(0, len(captions), BATCH):
            part = slice(first, first + BATCH)
            result = self.model.generate(
                list(captions[part]), seed=list(seeds[part]), **self.settings | settings
            )
            sounds += list(result.audio[:, 0].numpy())
        return sounds

    def caption(self, family: str, seed: int, **mentioned: str) -> str:
        """Composes a caption from the test wordings; the seed alone chooses the wording."""
        return describe(rng("question", seed), {family: mentioned}, split="test")

    def contrasting_pairs(
        self, families: Sequence[str], attribute: str, low: str, high: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Generates two sounds for each seed, one per word of an attribute; families take turns."""
        turns = [(families[place % len(families)], seed) for place, seed in enumerate(self.seeds)]
        captions = [
            self.caption(family, seed, **{attribute: word}) for word in (low, high) for family, seed in turns
        ]
        sounds = self.generate(captions, list(self.seeds) * 2)
        return list(zip(sounds[: len(turns)], sounds[len(turns) :], strict=True))

    # The checks ---------------------------------------------------------------------------------------------

    def pitch(self) -> dict[str, Figure]:
        """Is "high" at least an octave above "low"?"""
        passed = [
            dominant_frequency(high, self.rate) >= 2 * dominant_frequency(low, self.rate) > 0
            for low, high in self.contrasting_pairs(PITCHED, "pitch", "low", "high")
        ]
        return {"pitch: high at least twice low": Figure(float(np.mean(passed)), 0.9)}

    def tempo(self) -> dict[str, Figure]:
        """Is "fast" at least 1.5 times as fast as "slow"?"""
        passed = [
            onset_rate(fast, self.rate) >= 1.5 * onset_rate(slow, self.rate) > 0
            for slow, fast in self.contrasting_pairs(RHYTHMIC, "tempo", "slow", "fast")
        ]
        return {"tempo: fast at least 1.5 slow": Figure(float(np.mean(passed)), 0.8)}

    def noisiness(self) -> dict[str, Figure]:
        """Are noises noisy and tones tonal?"""
        turns = list(enumerate(self.seeds))
        captions = [
            self.caption(families[place % len(families)], seed)
            for families in (NOISES, TONES)
            for place, seed in turns
        ]
        sounds = self.generate(captions, list(self.seeds) * 2)
        flatness = [spectral_flatness(sound, self.rate) for sound in sounds]
        passed = [
            noise >= 3 * tone
            for noise, tone in zip(flatness[: len(turns)], flatness[len(turns) :], strict=True)
        ]
        return {"flatness: noise at least 3 tone": Figure(float(np.mean(passed)), 1.0)}

    def sweeps(self) -> dict[str, Figure]:
        """Does "rising" rise, and "falling" fall?"""
        turns = [(family, seed) for seed in self.seeds for family in ("rising", "falling")]
        sounds = self.generate([self.caption(*turn) for turn in turns], [seed for _, seed in turns])
        passed = [
            sweep_direction(sound, self.rate) == (1 if family == "rising" else -1)
            for sound, (family, _) in zip(sounds, turns, strict=True)
        ]
        return {"sweeps: the right direction": Figure(float(np.mean(passed)), 0.9)}

    def families(self, classifier_sounds: int = CLASSIFIER_SOUNDS) -> dict[str, Figure]:
        """Do CLAP and a classifier that knows no captions recognize the family?"""
        fresh, labels = self.rendered_sounds("fresh", len(self.seeds))
        turns = [(family, seed) for seed in self.seeds for family in FAMILIES]
        asked = [family for family, _ in turns]
        captions = [self.detailed_caption(*turn) for turn in turns]
        generated = self.generate(captions, [seed for _, seed in turns])
        texts = {name: [self.caption(name, wording) for wording in range(8)] for name in FAMILIES}
        of_fresh, of_generated = (
            self.judge.of_sounds([torch.from_numpy(sound) for sound in sounds], self.rate)
            for sounds in (fresh, generated)
        )
        known, known_labels = self.rendered_sounds("learnt", classifier_sounds)
        classifier = Classifier.fit(self.features(known), known_labels)
        recognized = self.judge.families(of_generated, texts)
        predicted = classifier.predict(self.features(generated))
        correct = {name: 0 for name in FAMILIES}
        for one, other, name in zip(recognized, predicted, asked, strict=True):
            correct[name] += (one == name) + (other == name)
        weakest = sorted(correct, key=correct.__getitem__)[:5]
        figures = {
            "CLAP: true sounds": Figure(accuracy(self.judge.families(of_fresh, texts), labels), 0.9),
            "CLAP: generated sounds": Figure(accuracy(recognized, asked), 0.75),
            "classifier: true sounds": Figure(accuracy(classifier.predict(self.features(fresh)), labels)),
            "classifier: generated sounds": Figure(accuracy(predicted, asked), 0.7),
        }
        return figures | {
            f"  weakest: {name}": Figure(correct[name] / (2 * len(self.seeds))) for name in weakest
        }

    def guidance(self, prompts: int = 2 * len(FAMILIES)) -> dict[str, Figure]:
        """Do guidance and choosing the best candidate raise the CLAP score?"""
        # Seeds lie further apart than four, since candidate i of seed s is that of seed s + i.
        seeds = [100 + 10 * place for place in range(prompts)]
        captions = [self.detailed_caption(*turn) for turn in zip(cycle(FAMILIES), seeds, strict=False)]
        results = [
            self.model.generate(
                captions[first : first + 6], seed=seeds[first : first + 6], num_waveforms_per_prompt=4,
                **self.settings,
            )
            for first in range(0, len(captions), 6)
        ]  # fmt: skip
        candidates = np.concatenate([result.scores.numpy() for result in results])
        alone = [  # the candidate of a prompt's own seed is the sound that it gets alone
            result.audio[place, own.index(min(own))].numpy()
            for result in results
            for place, own in enumerate(result.seeds)
        ]
        guided = self.scores(captions, alone)
        unguided = self.scores(captions, self.generate(captions, seeds, guidance_scale=1.0))
        return {
            "CLAP score, guidance 3.5": Figure(guided.mean()),
            "CLAP score, guidance 1": Figure(unguided.mean()),
            "gain from guidance": Figure(guided.mean() - unguided.mean(), 0.0),
            "gain from the best of four": Figure(candidates[:, 0].mean() - candidates.mean(), 0.0),
        }

    def vocoder(self) -> dict[str, Figure]:
        """How large is the error from mel to wave to mel, and does noise buzz at the frame rate?"""
        fresh, _ = self.rendered_sounds("vocoded", 2)
        wave = torch.from_numpy(np.stack(fresh))
        mel = vae_log_mel(wave)
        vocoded = self.model.vocode(mel)[:, : wave.shape[1]].float().cpu()
        error = (vae_log_mel(vocoded) - mel).abs()
        loud = mel > mel.amax(dim=(1, 2), keepdim=True) - 6.9  # the upper 60 dB
        decibel = 20 / np.log(10)
        # 20 s, because white noise itself has power at 100 Hz: within 0.8 Hz, only 40 dB below the total.
        noise = 0.1 * torch.randn(1, 20 * self.rate, generator=torch.Generator().manual_seed(0))
        hiss = self.model.vocode(vae_log_mel(noise))[0, : noise.shape[1]].float().cpu().numpy()
        power = np.abs(np.fft.rfft(hiss * np.hanning(len(hiss)))) ** 2
        hz = np.fft.rfftfreq(len(hiss), 1 / self.rate)
        line = 10 * np.log10(power.sum() / power[np.abs(hz - 100) <= 0.1].sum())
        return {
            "vocoder: mel error, dB, upper 60": Figure(decibel * error[loud].mean().item()),
            "vocoder: mel error, dB, all": Figure(decibel * error.mean().item()),
            "vocoder: loudest sample": Figure(vocoded.abs().max().item(), 0.999, at_most=True),
            "vocoder: DC offset": Figure(vocoded.mean(dim=1).abs().max().item(), 0.001, at_most=True),
            "vocoder: 100 Hz below noise, dB": Figure(float(line), 40.0),
        }

    # What they share ----------------------------------------------------------------------------------------

    def detailed_caption(self, family: str, seed: int) -> str:
        """Composes a caption that also mentions attributes; the seed chooses them."""
        attribute_rng = rng("attributes", seed, sorted(FAMILIES).index(family))
        takes = [name for name in FAMILIES[family].takes if attribute_rng.random() < 0.3]
        return self.caption(
            family, seed, **{name: str(attribute_rng.choice(list(ATTRIBUTES[name]))) for name in takes}
        )

    def rendered_sounds(self, purpose: str, count: int) -> tuple[list[np.ndarray], list[str]]:
        """Renders `count` true sounds of each family; returns them with their families."""
        labels = [name for name in FAMILIES for _ in range(count)]
        return [
            render(rng(purpose, FRESH_SEED, place), {name: {}}, "", self.seconds)
            for place, name in enumerate(labels)
        ], labels

    def features(self, sounds: Sequence[np.ndarray]) -> np.ndarray:
        """Computes the classifier's features: (sounds, features)."""
        return np.stack([mel_statistics(sound, self.rate) for sound in sounds])

    def scores(self, captions: Sequence[str], sounds: Sequence[np.ndarray]) -> np.ndarray:
        """Computes the CLAP score of each caption and its sound."""
        of_sounds = self.judge.of_sounds([torch.from_numpy(sound) for sound in sounds], self.rate)
        of_texts = self.judge.of_texts(captions)
        return (of_sounds * of_texts).sum(dim=1).numpy()


def accuracy(predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Returns the fraction of labels that were predicted."""
    return float(np.mean([one == other for one, other in zip(predicted, labels, strict=True)]))


def run_all(
    model: AudioLDM2,
    judge: Judge,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    report: Callable[[str], object],
) -> dict[str, float]:
    """Runs all checks and prints each figure as it is known.

    Args:
        model: as in `ModelChecks`.
        judge: as in `ModelChecks`.
        seeds: as in `ModelChecks`.
        settings: as in `ModelChecks`.
        report: called with each check's question.

    Returns:
        {figure: value}.
    """
    if set(WORDINGS) != set(FAMILIES):
        raise ValueError("WORDINGS and FAMILIES name different families.")
    checks, found = ModelChecks(model, judge, seeds, settings), {}
    for check in (
        checks.pitch, checks.tempo, checks.noisiness, checks.sweeps, checks.families, checks.guidance,
        checks.vocoder,
    ):  # fmt: skip
        report(check.__doc__ or "")
        for name, figure in check().items():
            print(f"{name:<36}{figure}", flush=True)
            found[name] = float(figure.value)
    return found
