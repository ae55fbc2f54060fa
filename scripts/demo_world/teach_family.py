"""Teach the model in the box a family of sounds that it has never met, by a LoRA adapter, and judge it.

    python scripts/demo_world/teach_family.py --out runs/telephone

renders telephones and old sounds into runs/telephone; trains runs/telephone/run with
`audioldm2 train --lora`, where the targets for old sounds are the model's own predictions, so that it keeps
them; generates sounds of all families with and without the adapter; and has a classifier that knows no
captions name them (new_sounds.py). The figures go to runs/telephone/judgement.json too.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
import audioldm2
from audioldm2.cli.main import main as audioldm2_command
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import SECONDS
from scripts.demo_world.new_sounds import (
    TELEPHONE,
    answers,
    count_by_family,
    fit_judge,
    named_right,
    questions,
    write_old_sounds,
    write_sounds,
)


def train(given: argparse.Namespace) -> Path:
    """Train the adapter with the command, and return its folder."""
    pool = max(given.batch, round(given.old / given.mix))  # prepared once; every old sound is in it
    recipe = {
        "like": "small", "steps": given.steps, "batch": given.batch, "learning_rate": given.learning_rate,
        "prior_weight": given.prior, "pool": pool, "seconds": SECONDS,
    }  # fmt: skip
    (given.out / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    run = given.out / "run"
    words = ["train", "--lora", given.rank, "--lora-layers", given.layers, "--model", "demo", "--out", run]
    words += ["--data", given.out / "new", "--mix", f"{given.out / 'old'}:{given.mix}"]
    words += ["--config", given.out / "recipe.json", "--sample-every", 0]
    if audioldm2_command([str(word) for word in words]):
        raise SystemExit(2)
    return run / "adapter"


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="a folder that does not exist yet")
    add("--rank", type=int, default=4, help="of the adapter (default: %(default)s)")
    add("--layers", default="attention", help="see audioldm2 train --help (default: %(default)s)")
    add("--steps", type=int, default=800, help="of training (default: %(default)s)")
    add("--batch", type=int, default=16, help="sounds a step (default: %(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="at the start (default: %(default)s)")
    add("--new", type=int, default=192, help="telephones to learn from (default: %(default)s)")
    add("--old", type=int, default=736, help="old sounds, to keep them (default: %(default)s)")
    add("--prior", type=float, default=4.0, help="prior_weight of the recipe (default: %(default)s)")
    add("--mix", type=float, default=0.6667, help="share of old sounds in a batch (default: %(default)s)")
    add("--first-seed", type=int, default=0, help="of the questions (default: %(default)s)")
    add("--questions", type=int, default=10, help="sounds of each family to judge (default: %(default)s)")
    given = made.parse_args(arguments)

    write_sounds(given.out / "new", TELEPHONE, given.new)
    write_old_sounds(given.out / "old", given.old)
    began = time.monotonic()
    adapter = train(given)
    minutes = (time.monotonic() - began) / 60
    judge = fit_judge(TELEPHONE)
    asked = questions(TELEPHONE, range(given.first_seed, given.first_seed + given.questions))
    model = audioldm2.load("demo")
    before = count_by_family(asked, named_right(judge, asked, answers(model, asked)))
    model.load_lora(adapter)
    after = count_by_family(asked, named_right(judge, asked, answers(model, asked)))
    for name in before:
        print(f"{name:<12} {before[name]:>3} {after[name]:>3} of {given.questions}")
    figures = {
        "of": given.questions,
        "new_before": before[TELEPHONE.name],
        "new_after": after[TELEPHONE.name],
        "largest_loss_of_an_old_family": max(before[name] - after[name] for name in FAMILIES),
        "old_before": sum(before[name] for name in FAMILIES),
        "old_after": sum(after[name] for name in FAMILIES),
        "bytes": sum(file.stat().st_size for file in adapter.iterdir() if file.is_file()),
        "minutes_of_training": round(minutes, 1),
    }
    by_family = {"before": before, "after": after}
    judgement = json.dumps(figures | by_family, indent=2)
    (given.out / "judgement.json").write_text(judgement + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
