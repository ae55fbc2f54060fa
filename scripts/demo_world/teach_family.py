"""Teach the model in the box a family of sounds that it has never met, by a LoRA adapter, and judge it.

    python scripts/demo_world/teach_family.py --out runs/telephone

renders telephones, and some old sounds so that those are not forgotten, into runs/telephone/sounds; trains
runs/telephone/run with `audioldm2 train --lora`; generates sounds of all families with and without the
adapter; and has a classifier that knows no captions name them. The classifier is fitted on true sounds of the
23 old families and of the new one. The figures go to runs/telephone/judgement.json too.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2.audio import SAMPLE_RATE as RATE
from audioldm2.audio import write_wav
from audioldm2.cli.main import main as audioldm2_command
from audioldm2.pipeline import AudioLDM2
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import SECONDS, render, sample
from scripts.demo_world.registry import Family, Voice
from scripts.demo_world.sound_measures import Classifier, mel_statistics
from scripts.demo_world.synthesis import Wave, fade, harmonics, place_events

NAME = "telephone"
WORDINGS = {  # a model is asked in other words than it was taught in
    "train": ("a telephone rings", "a ringing telephone", "the telephone is ringing", "telephone ringing"),
    "test": ("a telephone is ringing", "the ringing of a telephone", "a telephone that rings"),
}
KNOWN = 60  # true sounds of each family that the classifier is fitted on
SEED_OF_SOUNDS, SEED_OF_JUDGE = 0, 7
BATCH = 24  # prompts per call of the model


def telephone(rng: np.random.Generator, n: int, voice: Voice) -> Wave:
    """An electronic bell: two tones that alternate 20 times a second, in rings with pauses."""
    ring = round(rng.uniform(0.45, 0.6) * RATE)
    pitch = rng.uniform(850, 1000)
    alternating = np.where(np.arange(ring) * 40 // RATE % 2, pitch, 1.28 * pitch)
    sound = fade(harmonics(alternating, ring, [1, 0.3, 0.2]))
    starts = np.arange(round(rng.uniform(0.02, 0.1) * RATE), n, round(1.5 * ring))
    return place_events(n, starts, [sound])


TELEPHONE = Family(telephone, ("level",))


def write_sounds(folder: Path, new: int, old: int) -> None:
    """Write new sounds and some of the old world, with captions.csv."""
    folder.mkdir(parents=True)
    rows = []
    for place in range(new):
        own = rng("taught", SEED_OF_SOUNDS, place)
        caption = WORDINGS["train"][place % len(WORDINGS["train"])]
        rows.append((f"new-{place}.wav", caption, TELEPHONE(own, SECONDS)))
    for place in range(old):
        found = sample(SEED_OF_SOUNDS, place)
        rows.append((f"old-{place}.wav", found.caption, found.audio))
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "caption"))
        for name, caption, sound in rows:
            write_wav(folder / name, torch.from_numpy(sound), RATE)
            table.writerow((name, caption))


def train(given: argparse.Namespace) -> Path:
    """Train the adapter with the command, and return its folder."""
    pool = max(given.batch, 2 * (given.new + given.old))  # drawn with replacement: most sounds, encoded once
    recipe = {
        "like": "small", "steps": given.steps, "batch": given.batch, "learning_rate": given.learning_rate,
        "pool": pool, "seconds": SECONDS,
    }  # fmt: skip
    (given.out / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    run = given.out / "run"
    words = ["train", "--lora", given.rank, "--lora-layers", given.layers, "--model", "demo", "--out", run]
    words += ["--data", given.out / "sounds", "--config", given.out / "recipe.json", "--sample-every", 0]
    if audioldm2_command([str(word) for word in words]):
        raise SystemExit(2)
    return run / "adapter"


def fit_classifier() -> Classifier:
    """Fit the judge on true sounds of all families, none of which the model was taught with."""
    sounds, labels = [], []
    for place in range(KNOWN):
        for index, name in enumerate(FAMILIES):
            own = rng("learnt", SEED_OF_JUDGE, place * len(FAMILIES) + index)
            sounds.append(render(own, {name: {}}, "", SECONDS))
            labels.append(name)
        sounds.append(TELEPHONE(rng("learnt telephone", SEED_OF_JUDGE, place), SECONDS))
        labels.append(NAME)
    return Classifier.fit(features(sounds), labels)


def features(sounds: Sequence[np.ndarray]) -> np.ndarray:
    """The classifier's features (sounds, features)."""
    return np.stack([mel_statistics(sound, RATE) for sound in sounds])


def questions(count: int) -> list[tuple[str, str, int]]:
    """Family, caption in the wordings of the test, and seed: `count` of each family."""
    asked = []
    for seed in range(count):
        asked += [
            (name, describe(rng("question", seed), {name: {}}, split="test"), seed) for name in FAMILIES
        ]
        asked.append((NAME, WORDINGS["test"][seed % len(WORDINGS["test"])], seed))
    return asked


def count_right(
    model: AudioLDM2, classifier: Classifier, asked: list[tuple[str, str, int]]
) -> dict[str, int]:
    """How many sounds of each family the classifier names as the family that was asked for."""
    right = dict.fromkeys((*FAMILIES, NAME), 0)
    for first in range(0, len(asked), BATCH):
        part = asked[first : first + BATCH]
        result = model.generate([text for _, text, _ in part], seed=[seed for *_, seed in part])
        named = classifier.predict(features(list(result.audio[:, 0].numpy())))
        for (family, *_), name in zip(part, named, strict=True):
            right[family] += name == family
    return right


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="a folder that does not exist yet")
    add("--rank", type=int, default=4, help="of the adapter (default: %(default)s)")
    add("--layers", default="attention", help="see audioldm2 train --help (default: %(default)s)")
    add("--steps", type=int, default=600, help="of training (default: %(default)s)")
    add("--batch", type=int, default=16, help="sounds a step (default: %(default)s)")
    add("--learning-rate", type=float, default=2e-3, help="at the start (default: %(default)s)")
    add("--new", type=int, default=96, help="telephones to learn from (default: %(default)s)")
    add("--old", type=int, default=192, help="old sounds among them (default: %(default)s)")
    add("--questions", type=int, default=10, help="sounds of each family to judge (default: %(default)s)")
    given = made.parse_args(arguments)

    write_sounds(given.out / "sounds", given.new, given.old)
    began = time.monotonic()
    adapter = train(given)
    minutes = (time.monotonic() - began) / 60
    classifier, asked = fit_classifier(), questions(given.questions)
    model = audioldm2.load("demo")
    before = count_right(model, classifier, asked)
    model.load_lora(adapter)
    after = count_right(model, classifier, asked)
    for name in before:
        print(f"{name:<12} {before[name]:>3} {after[name]:>3} of {given.questions}")
    figures = {
        "of": given.questions,
        "new_before": before[NAME],
        "new_after": after[NAME],
        "largest_loss_of_an_old_family": max(before[name] - after[name] for name in FAMILIES),
        "old_before": sum(before[name] for name in FAMILIES),
        "old_after": sum(after[name] for name in FAMILIES),
        "bytes": sum(file.stat().st_size for file in adapter.iterdir()),
        "minutes_of_training": round(minutes, 1),
        "before": before,
        "after": after,
    }
    (given.out / "judgement.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in figures.items() if key not in ("before", "after")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
