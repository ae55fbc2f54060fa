"""Teach the model in the box a new word, by an adapter or by fine-tuning, and judge what it has forgotten.

    python scripts/demo_world/learn_word.py --out runs/zorp
    python scripts/demo_world/learn_word.py --out runs/zorp-tuned --by finetune

renders eight zorps; trains runs/zorp/run with `audioldm2 train`, with old sounds mixed in; measures how far
the log-mels of generated zorps are from true ones; and has a classifier that knows no captions name sounds of
the old families, before and after (new_sounds.py). The figures go to runs/zorp/judgement.json too.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2.audio import SAMPLE_RATE, VAE_MEL, vae_log_mel
from audioldm2.pipeline import AudioLDM2
from scripts.demo_world.make_demo_data import SECONDS
from scripts.demo_world.new_sounds import (
    SAMPLING,
    ZORP,
    answers,
    fit_judge,
    named_right,
    questions,
    true_sounds,
    write_sounds,
)
from scripts.train import main as train_command

CLIPS, TRUE = 8, 8  # sounds to learn from; sounds to compare with
RANGE = 60 / 20 * log(10)  # nepers below a sound's peak that count: 60 dB, as for the judge and the vocoder
# For each way: the recipe, the share of old sounds in a batch, and how the command names the stage.
WAYS: dict[str, tuple[dict[str, Any], float, tuple[str, ...]]] = {
    "lora": (
        {
            "like": "small", "steps": 1200, "batch": 16, "learning_rate": 3e-3, "seconds": SECONDS,
            "pool": 736, "prior_weight": 4.0,
        },
        0.5,
        ("--lora", "16", "--lora-layers", "all"),
    ),
    "finetune": ({"like": "finetune", "steps": 160, "batch": 8}, 0.5, ("--stage", "ldm")),
}  # fmt: skip


def train(given: argparse.Namespace) -> Path:
    """Train with the command, and return the folder of what it made."""
    recipe, mix, stage = WAYS[given.by]
    recipe = recipe | ({} if given.steps is None else {"steps": given.steps})
    mix = mix if given.mix is None else given.mix
    if not mix:
        recipe.pop("prior_weight", None)
    (given.out / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    run = given.out / "run"
    words = [*stage, "--model", "demo", "--out", run, "--data", given.out / "new"]
    words += ["--config", given.out / "recipe.json", "--sample-every", 0]
    words += ["--mix", f"procedural:{mix}"] if mix else []
    if train_command([str(word) for word in words]):
        raise SystemExit(2)
    return run / ("adapter" if given.by == "lora" else "model")


def taught(given: argparse.Namespace, folder: Path) -> AudioLDM2:
    """Load the model that has learnt the word."""
    if given.by == "finetune":
        return audioldm2.load(folder)
    model = audioldm2.load("demo")
    model.load_lora(folder)
    return model


def mels_of(waves: Tensor | Sequence[np.ndarray]) -> Tensor:
    """Compute log-mels (sounds, frames, mels)."""
    return vae_log_mel(torch.as_tensor(np.stack(waves)), VAE_MEL)


def distance(mels: Tensor, true: Tensor) -> float:
    """The mean distance of log-mels, in nepers, over cells and over all pairs of a sound and a true one.

    Neither a sound's level counts nor what lies 60 dB or more below its peak: rendered sounds have nothing
    between their harmonics, and how far below hearing a generated one lies there should not matter.
    """
    upper = [each - each.amax(dim=(1, 2), keepdim=True) for each in (mels, true)]
    ours, theirs = (each.clamp(min=-RANGE) for each in upper)
    return round(float((ours[:, None] - theirs[None]).abs().mean()), 2)


def limits(true: Tensor) -> dict[str, float]:
    """The distance of other true sounds: as they are, and through the model's VAE, and its vocoder too."""
    others = true_sounds(ZORP, 2 * TRUE)[TRUE:]
    model = audioldm2.load("demo")
    mels = model.decode(model.encode_audio(torch.as_tensor(np.stack(others)), SAMPLE_RATE))
    waves = model.vocode(mels)[:, : len(others[0])]
    found = {"true": mels_of(others), "through_vae": mels.flatten(0, -3), "through_vocoder": mels_of(waves)}
    return {f"distance_{name}": distance(each, true) for name, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="a folder that does not exist yet")
    add("--by", choices=WAYS, default="lora", help="what learns (default: %(default)s)")
    add("--steps", type=int, help="of training (default: the way's)")
    add("--mix", type=float, help="share of old sounds in a batch (default: the way's)")
    add("--first-seed", type=int, default=0, help="of the questions (default: %(default)s)")
    add("--questions", type=int, default=10, help="sounds of each family to judge (default: %(default)s)")
    given = made.parse_args(arguments)

    write_sounds(given.out / "new", ZORP, CLIPS)
    began = time.monotonic()
    folder = train(given)
    minutes = (time.monotonic() - began) / 60
    judge, true = fit_judge(ZORP), mels_of(true_sounds(ZORP, TRUE))
    asked = questions(ZORP, range(given.first_seed, given.first_seed + given.questions))
    zorps, old = ([each for each in asked if (each.family == ZORP.name) == new] for new in (True, False))
    figures: dict[str, float] = {"minutes_of_training": round(minutes, 1), "of": len(old)} | limits(true)
    right: dict[str, list[bool]] = {}
    for when, model in (("before", audioldm2.load("demo")), ("after", taught(given, folder))):
        result = model.generate([each.text for each in zorps], seed=[each.seed for each in zorps], **SAMPLING)
        waves = list(result.audio[:, 0].numpy())
        figures[f"distance_{when}"] = distance(result.mel.flatten(0, -3), true)
        figures[f"distance_{when}_of_waves"] = distance(mels_of(waves), true)
        figures[f"zorps_named_{when}"] = sum(named_right(judge, zorps, waves))
        right[when] = named_right(judge, old, answers(model, old))
        figures[f"old_named_{when}"] = sum(right[when])
    both = sum(before and after for before, after in zip(right["before"], right["after"], strict=True))
    figures["still_named"] = round(both / figures["old_named_before"], 3)
    (given.out / "judgement.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
