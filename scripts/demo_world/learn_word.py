"""Teach the model in the box a new word by fine-tuning all of its denoiser, and judge what it has forgotten.

    python scripts/demo_world/learn_word.py --out runs/zorp --mix 0.5

renders eight zorps; trains runs/zorp/run with `audioldm2 train --stage ldm` and the recipe "finetune";
measures how far the log-mels of generated zorps are from true ones; and has a classifier that knows no
captions name sounds of the old families, before and after (new_sounds.py). The figures go to
runs/zorp/judgement.json too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2.audio import VAE_MEL, vae_log_mel
from scripts.demo_world.new_sounds import (
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


def train(given: argparse.Namespace) -> Path:
    """Fine-tune with the command, and return the model's folder."""
    recipe = {"like": given.recipe, "steps": given.steps, "batch": 8, "learning_rate": given.learning_rate}
    recipe = {name: value for name, value in recipe.items() if value is not None} | {"pool": 0}
    (given.out / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    run = given.out / "run"
    words = ["--stage", "ldm", "--model", "demo", "--out", run, "--data", given.out / "new"]
    words += ["--config", given.out / "recipe.json", "--sample-every", 0]
    words += ["--validation", "procedural", "--validate-every", given.steps]
    if given.mix:
        words += ["--mix", f"procedural:{given.mix}"]
    if train_command([str(word) for word in words]):
        raise SystemExit(2)
    return run / "model"


def distance(sounds: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """The mean distance of log-mels, in nepers, over cells and over all pairs of a sound and a true one."""
    mels = [vae_log_mel(torch.from_numpy(np.stack(each)), VAE_MEL) for each in (sounds, true)]
    return float((mels[0][:, None] - mels[1][None]).abs().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="a folder that does not exist yet")
    add("--recipe", default="finetune", help="see audioldm2 train --help (default: %(default)s)")
    add("--learning-rate", type=float, help="(default: the recipe's)")
    add("--steps", type=int, default=160, help="of training (default: %(default)s)")
    add("--mix", type=float, default=0.0, help="share of old sounds in a batch (default: %(default)s)")
    add("--first-seed", type=int, default=0, help="of the questions (default: %(default)s)")
    add("--questions", type=int, default=10, help="sounds of each family to judge (default: %(default)s)")
    given = made.parse_args(arguments)

    write_sounds(given.out / "new", ZORP, CLIPS)
    taught = train(given)
    judge, true = fit_judge(ZORP), true_sounds(ZORP, TRUE)
    asked = questions(ZORP, range(given.first_seed, given.first_seed + given.questions))
    old = [place for place, each in enumerate(asked) if each.family != ZORP.name]
    figures: dict[str, float] = {"of": len(old)}
    right: dict[str, list[bool]] = {}
    for when, name in (("before", "demo"), ("after", taught)):
        sounds = answers(audioldm2.load(name), asked)
        right[when] = named_right(judge, asked, sounds)
        zorps = [sound for each, sound in zip(asked, sounds, strict=True) if each.family == ZORP.name]
        figures[f"distance_{when}"] = round(distance(zorps, true), 2)
        figures[f"zorps_named_{when}"] = sum(right[when]) - sum(right[when][place] for place in old)
        figures[f"old_named_{when}"] = sum(right[when][place] for place in old)
    both = sum(right["before"][place] and right["after"][place] for place in old)
    figures["still_named"] = round(both / figures["old_named_before"], 3)
    figures["distance_of_true_sounds"] = round(distance(true_sounds(ZORP, 2 * TRUE)[TRUE:], true), 2)
    (given.out / "judgement.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
