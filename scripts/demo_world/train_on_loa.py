"""Train the denoiser of the model in the box again, in the paper's order and on text alone, to compare them.

    python scripts/demo_world/train_on_loa.py --out runs/loa

starts from the demo model with a new denoiser, GPT-2, projection and T5, and trains two models on the demo
world, each on one core, with as many steps of the denoiser:

    audiomae --> pretrained --> loa --> joint      text

- audiomae: a masked autoencoder of sounds, without captions.
- pretrained: the denoiser on the language of audio (LOA) that AudioMAE finds, without captions.
- loa: GPT-2 predicts LOA from captions.
- joint: all three, a quarter of the clips on their true LOA.
- text: the denoiser and GPT-2 on captions from the start, for as many steps as pretrained and joint together.

Each is a run of train.py in runs/loa/<name>; runs/loa/<name>.log has its output. Ctrl-C saves and stops; the
same command resumes. judge_loa.py judges the models.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.training.weight_init import initialize
from scripts.training_runs import run_to_the_end, train_all

NEW = ("unet", "gpt2", "projection", "t5")
BEFORE = {  # the run whose model each begins with
    "audiomae": (), "pretrained": ("audiomae",), "loa": ("pretrained",), "joint": ("loa",), "text": (),
}  # fmt: skip
MUON = {"optimizer": "muon", "learning_rate": 1.5e-3, "warmup": 100, "pool": 4096}


def recipes(steps: int) -> dict[str, dict[str, Any]]:
    """Returns stage and recipe of each run.

    Args:
        steps: of the denoiser in `pretrained` and in `joint`.
    """
    small = {"like": "small"} | MUON
    denoiser = small | {"unconditional": "trained", "ema": 0.995}
    loa = {"gt_loa": 0.25, "loa_weight": 2.0}
    return {
        "audiomae": {"stage": "audiomae"} | small | {"steps": steps},
        "pretrained": {"stage": "ldm"} | denoiser | {"gt_loa": 1.0, "steps": steps},
        "loa": {"stage": "loa"} | small | {"steps": steps},
        "joint": {"stage": "ldm"} | denoiser | loa | {"steps": steps},
        "text": {"stage": "ldm"} | denoiser | {"steps": 2 * steps},
    }


def train(out: Path, steps: int, seed: int) -> None:
    """Runs both branches to their ends; ValueError where a run fails."""
    wanted = recipes(steps)

    def arguments(name: str) -> list[object]:
        own = dict(wanted[name])
        stage, recipe = own.pop("stage"), out / f"{name}.json"
        recipe.write_text(json.dumps(own), encoding="utf-8")
        model = out.joinpath(*BEFORE[name], "model") if BEFORE[name] else out / "start"
        found: list[object] = ["--stage", stage, "--model", model, "--config", recipe, "--seed", seed]
        found += ["--data", "procedural", "--sample-every", 0]
        return [*found, "--validation", "procedural", "--validate-every", 500, "--keep-best", 0]

    train_all(out, BEFORE, arguments)


def write_start(folder: Path, seed: int) -> None:
    """Writes the demo model with new networks."""
    if (folder / "config.json").is_file():
        return
    demo = open_checkpoint("demo")
    new = {name: initialize(name, demo.configs[name], seed).state_dict for name in NEW}
    storage.write(replace(demo, states=demo.states | new, source="the demo, to be trained again"), folder)


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for runs and models")
    add("--steps", type=int, default=1500, help="of each run, twice for text (default: %(default)s)")
    add("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    given = made.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    write_start(given.out / "start", given.seed)
    train(given.out, given.steps, given.seed)
    return 0


if __name__ == "__main__":
    run_to_the_end(main)
