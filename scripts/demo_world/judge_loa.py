"""Judge the models of train_on_loa.py: does a sound as a prompt act, and does the paper's order pay?

    python scripts/demo_world/judge_loa.py --runs runs/loa

A classifier that knows no captions (sound_measures.py) names sounds, fitted on true ones. No model has met
the sounds that serve as prompts. For each model and family, with the same seeds:

- caption: the family's caption, in wordings that training has not seen
- sound: a true sound of the family, and no text
- both: that caption and that sound
- shuffled: that caption and a sound of another family; named as the caption's, and as the sound's
- its own: results that are nearer, in the classifier's features, to that true sound than to another of its
  family; half of them are by chance
- resynthesis: the true sound itself through VAE and vocoder, which is as good as it gets

Besides: how near GPT-2's vectors are to LOA, on fresh sounds, beside the mean of all LOA and a shuffled one;
and how CLAP scores mixtures of a caption and a sound of another family against the captions of both. The CLAP
of the demo model, which conditions these models, is the judge of that part alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2.audio import SAMPLE_RATE
from audioldm2.pipeline import AudioLDM2
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import SECONDS, render
from scripts.demo_world.sound_measures import Classifier, mel_statistics

SEED = 11  # of the world, for sounds that no model has met
KNOWN = 60  # true sounds of each family that the classifier is fitted on
BATCH = 23
SAMPLING: dict[str, Any] = {"sampler": "dpmpp_2m", "num_inference_steps": 25}
MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Questions:
    """For each family and seed a caption, a true sound, and a sound of another family."""

    def __init__(self, first_seed: int, count: int) -> None:
        names = list(FAMILIES)
        asked = [(name, seed) for seed in range(first_seed, first_seed + count) for name in names]
        self.families, self.seeds = [name for name, _ in asked], [seed for _, seed in asked]
        self.captions = [describe(rng("question", seed), {name: {}}, split="test") for name, seed in asked]
        self.sounds = [render(rng("heard", SEED, seed, names.index(name)), {name: {}}, "", SECONDS)
                       for name, seed in asked]  # fmt: skip
        # Another family for each question, a different step through the list for each seed.
        self.others = [
            seed_place * len(names) + (place + 1 + (seed_place * 5) % (len(names) - 1)) % len(names)
            for seed_place in range(count)
            for place in range(len(names))
        ]

    def __len__(self) -> int:
        return len(self.families)


class Naming:
    """The classifier, and how often it names sounds right."""

    def __init__(self) -> None:
        labels = [name for name in FAMILIES for _ in range(KNOWN)]
        known = [
            render(rng("learnt", SEED, place), {name: {}}, "", SECONDS) for place, name in enumerate(labels)
        ]
        self.classifier = Classifier.fit(features(known), labels)

    def share(self, sounds: Sequence[np.ndarray], families: Sequence[str]) -> float:
        """Returns the share of sounds that are named as their family."""
        named = self.classifier.predict(features(sounds))
        return round(float(np.mean([one == other for one, other in zip(named, families, strict=True)])), 3)

    def share_nearer(self, sounds: Sequence[np.ndarray], asked: "Questions") -> float:
        """Returns the share of those nearer to their own true sound than to another of the family."""
        true = self.scaled(asked.sounds)
        other = np.roll(true, -len(FAMILIES), axis=0)  # of the next seed
        found = self.scaled(sounds)
        nearer = ((found - true) ** 2).sum(axis=1) < ((found - other) ** 2).sum(axis=1)
        return round(float(nearer.mean()), 3)

    def scaled(self, sounds: Sequence[np.ndarray]) -> np.ndarray:
        return (features(sounds) - self.classifier.mean) / self.classifier.scale


def features(sounds: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([mel_statistics(sound, SAMPLE_RATE) for sound in sounds])


def generate(
    model: AudioLDM2, captions: Sequence[str], seeds: Sequence[int], sounds: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """Generates a sound (samples,) for each caption, like a sound where those are given."""
    found: list[np.ndarray] = []
    for first in range(0, len(captions), BATCH):
        rows = slice(first, first + BATCH)
        heard = {} if sounds is None else {"audio_prompt": [torch.from_numpy(each) for each in sounds[rows]]}
        result = model.generate(
            list(captions[rows]), seed=list(seeds[rows]), audio_length_in_s=SECONDS, **SAMPLING, **heard
        )
        found += list(result.audio[:, 0].numpy())
    return found


def judge_prompts(model: AudioLDM2, asked: Questions, naming: Naming) -> dict[str, float]:
    """Returns how often each kind of prompt gives the family, as a share of the questions."""
    none = [""] * len(asked)
    other_sounds = [asked.sounds[place] for place in asked.others]
    others = [asked.families[place] for place in asked.others]
    of_captions = generate(model, asked.captions, asked.seeds, None)
    figures = {"caption": naming.share(of_captions, asked.families)}
    figures["caption, its own"] = naming.share_nearer(of_captions, asked)
    if not model.hears:
        return figures
    of_sounds = generate(model, none, asked.seeds, asked.sounds)
    figures["sound"] = naming.share(of_sounds, asked.families)
    figures["sound, its own"] = naming.share_nearer(of_sounds, asked)
    figures["both"] = naming.share(generate(model, asked.captions, asked.seeds, asked.sounds), asked.families)
    shuffled = generate(model, asked.captions, asked.seeds, other_sounds)
    figures["shuffled, as the caption"] = naming.share(shuffled, asked.families)
    figures["shuffled, as the sound"] = naming.share(shuffled, others)
    return figures


def judge_vectors(model: AudioLDM2, asked: Questions) -> dict[str, float]:
    """Returns L1 errors of vectors against LOA of the sounds: GPT-2's, the mean's, another sound's."""
    loa = model.hear([torch.from_numpy(each) for each in asked.sounds], SAMPLE_RATE)
    generated = model.encode_prompt(asked.captions, guided=False).tensors["gpt2_context"].to(loa)
    guesses = {"GPT-2": generated, "mean": loa.mean(dim=0), "another sound": loa[torch.tensor(asked.others)]}
    return {name: round((guess - loa).abs().mean().item(), 4) for name, guess in guesses.items()}


def judge_mixtures(model: AudioLDM2, asked: Questions, count: int) -> list[dict[str, float]]:
    """Returns CLAP scores of mixtures of a caption and another family's sound, against both captions."""
    rows = range(min(count, len(asked)))
    captions = [asked.captions[row] for row in rows]
    others = [asked.captions[asked.others[row]] for row in rows]
    loa = model.hear([torch.from_numpy(asked.sounds[asked.others[row]]) for row in rows], SAMPLE_RATE)
    text = model.encode_prompt(captions)
    sound = model.encode_prompt([""] * len(captions), loa=loa)
    found = []
    for amount in MIXTURES:
        waves = denoised(model, text.mix(sound, amount), [asked.seeds[row] for row in rows])
        scores = {
            "caption": model.score(captions, waves).mean(), "sound": model.score(others, waves).mean()
        }  # fmt: skip
        found.append({"mixture": amount} | {name: round(x.item(), 3) for name, x in scores.items()})
    return found


def denoised(model: AudioLDM2, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
    """Generates sounds (count, samples) from a conditioning."""
    frames = model.sound.latent_frames(SECONDS)
    noise = torch.cat([
        torch.randn(model.sound.latents(1, frames), generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ])  # fmt: skip
    waves = model.vocode(model.decode(model.denoise(conditioning, noise, **SAMPLING)))
    return waves[:, : model.sound.samples(SECONDS)].float().cpu()


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--runs", type=Path, required=True, help="what train_on_loa.py has written")
    add("--first-seed", type=int, default=0, help="of the questions (default: %(default)s)")
    add("--questions", type=int, default=10, help="for each family (default: %(default)s)")
    given = made.parse_args(arguments)
    naming, asked = Naming(), Questions(given.first_seed, given.questions)
    figures: dict[str, Any] = {"questions": len(asked)}
    demo = audioldm2.load("demo", dtype="float32")
    latents = demo.encode_audio(torch.from_numpy(np.stack(asked.sounds)), SAMPLE_RATE)
    back = demo.vocode(demo.decode(latents))[:, : len(asked.sounds[0])].numpy()
    figures["true sounds"] = naming.share(asked.sounds, asked.families)
    figures["resynthesis"] = naming.share(list(back), asked.families)
    for name in ("pretrained", "joint", "text"):
        model = audioldm2.load(given.runs / name / "model", dtype="float32")
        figures[name] = judge_prompts(model, asked, naming)
        print(name, json.dumps(figures[name]), flush=True)
    model = audioldm2.load(given.runs / "joint" / "model", dtype="float32")
    figures["vectors of joint"] = judge_vectors(model, asked)
    figures["vectors of loa"] = judge_vectors(audioldm2.load(given.runs / "loa" / "model"), asked)
    figures["mixtures of joint"] = judge_mixtures(model, asked, 2 * len(FAMILIES))
    text = json.dumps(figures, indent=2)
    (given.runs / "judgement.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
