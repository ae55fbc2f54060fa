"""Train the demo model from scratch: every stage, on the demo world, on two CPU cores.

    python scripts/demo_world/train_demo.py --out runs/demo

writes runs/demo/model, 12 MB at most; a copy of it in audioldm2/assets/demo is the model in the box. Stages
that do not depend on each other run in parallel, each on half of the cores. Ctrl-C saves and stops; the same
command resumes.

    vae  ------+--> vocoder ---+
               +--> ldm -------+--> model, in float16
    clap ------+

Each stage is a run of train.py with the recipe "small" in runs/demo/<stage>; runs/demo/<stage>.log has its
output.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from scripts.training_runs import run_to_the_end, train_all, write_small_model

DEPENDENCIES = {"vae": (), "clap": (), "vocoder": ("vae",), "ldm": ("vae", "clap")}
NETWORKS = {"vae": ("vae",), "clap": ("clap_text", "clap_audio"), "vocoder": ("hifigan",)}
SOURCE = "trained from scratch on the procedural sounds of scripts/demo_world"
MAX_BYTES = 12e6  # of the model


def train(out: Path, seed: int) -> None:
    """Runs every stage to its end; ValueError where one fails."""

    def arguments(stage: str) -> list[object]:
        found: list[object] = ["--stage", stage, "--data", "procedural", "--seed", seed]
        if not DEPENDENCIES[stage]:
            return found
        initial = out / f"before-{stage}"
        storage.write(merge(out, DEPENDENCIES[stage]), initial, force=True)
        return [*found, "--model", initial]

    train_all(out, DEPENDENCIES, arguments)


def merge(out: Path, stages: tuple[str, ...]) -> Checkpoint:
    """Returns the first stage's model with the networks that the other stages trained."""
    first, *others = (storage.read(out / stage / "model") for stage in stages)
    for stage, other in zip(stages[1:], others, strict=True):
        networks = NETWORKS[stage]
        first = replace(
            first,
            configs=first.configs | {name: other.configs[name] for name in networks},
            states=first.states | {name: other.states[name] for name in networks},
        )
    return first


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for runs and the model")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out, options.seed)
    checkpoint = replace(merge(options.out, ("ldm", "vocoder")), source=SOURCE)
    write_small_model(checkpoint, options.out / "model", MAX_BYTES)
    return 0


if __name__ == "__main__":
    run_to_the_end(main)
