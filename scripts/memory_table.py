"""Print which settings let each stage train on GPUs of some sizes, as `audioldm2 train --fit` chooses them.

    python scripts/memory_table.py --model ./base

Nothing is measured on a GPU: the figures are computed (audioldm2/training/memory_plan.py). It takes a minute
or a few, and no weight is read.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.training import STAGES
from audioldm2.training.ldm import LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.memory_plan import GB, Clips, fit
from audioldm2.training.rehearsal import Rehearsal, rehearse

CARDS = (8, 12, 16, 24, 80)  # GB
STAGE_NAMES = ("word", "lora", "ldm")
RESERVE = 0.07  # of a card, which its driver and the screen take
CAPTION = "a dog barks in the distance while rain falls on a tin roof and a man speaks"
CLIPS = Clips(CAPTION, captions=500, count=500, sound_bytes=0)


def rows(checkpoint: Checkpoint, name: str, batch: int) -> list[str]:
    """The table's lines of a stage, one a card."""
    kind = STAGES[name]
    assert issubclass(kind, LDMStage)
    recipe = kind.recipe_for(checkpoint)
    assert isinstance(recipe, LDMRecipe)
    recipe = replace(recipe, batch=batch, seconds=10.24, **({"word": "<new>"} if name == "word" else {}))
    found: dict[tuple[bool, ...], Rehearsal] = {}

    def measure(kind: type[LDMStage], checkpoint: Checkpoint, recipe: LDMRecipe, caption: str) -> Rehearsal:
        key = (recipe.recompute, recipe.bf16, recipe.frozen_bf16)
        if key not in found:
            found[key] = rehearse(kind, checkpoint, recipe, caption)
        return found[key]

    lines = []
    for card in CARDS:
        try:
            limit = card * GB * (1 - RESERVE)
            plan = fit(kind, checkpoint, recipe, limit, torch.device("cuda"), CLIPS, measure=measure)
        except ArgumentError as error:
            lines.append(f"| {name} | {card} GB | none: {error.allowed.split(' for ')[0]} | |")
            continue
        words = ", ".join(reason.split(":")[0] for reason in plan.reasons) or "as the recipe is"
        lines.append(f"| {name} | {card} GB | {words} | {plan.peak.bytes / GB:.1f} GB |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="demo", help="whose sizes count (default: %(default)s)")
    made.add_argument("--stages", nargs="+", choices=STAGE_NAMES, default=STAGE_NAMES)
    made.add_argument("--batch", type=int, default=4, help="clips of 10.24 s a step (default: %(default)s)")
    given = made.parse_args(arguments)
    checkpoint = open_checkpoint(given.model)
    print(f"| stage, batch {given.batch} | card | settings | computed peak |\n|---|---|---|---|")
    for name in given.stages:
        print(*rows(checkpoint, name, given.batch), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
