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
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.errors import WeightsError
from audioldm2.training.weight_init import initialize

TRAIN = Path(__file__).parents[1] / "train.py"
NEW = ("unet", "gpt2", "projection", "t5")
BRANCHES = (("audiomae", "pretrained", "loa", "joint"), ("text",))
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
    running: dict[str, subprocess.Popen] = {}
    try:
        while True:
            for branch in BRANCHES:
                left = [name for name in branch if not is_finished(out / name)]
                if not left:
                    continue
                name = left[0]
                process = running.get(name)
                if process is None:
                    before = branch.index(name) - 1
                    model = out / branch[before] / "model" if before >= 0 else out / "start"
                    running[name] = start(name, wanted[name], model, out, seed)
                    report(f"{name} started; see {out / name}.log")
                elif process.poll() is not None:
                    raise ValueError(f"{name} stopped; see {out / name}.log. The same command resumes.")
            if all(is_finished(out / name) for branch in BRANCHES for name in branch):
                break
            time.sleep(0.5)
    finally:
        for process in running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # saves and stops
        for process in running.values():
            process.wait()


def start(name: str, recipe: dict[str, Any], model: Path, out: Path, seed: int) -> subprocess.Popen:
    """Starts a run in its own process, or resumes it if it exists."""
    arguments: list[object] = ["--out", out / name, "--resume"]
    if not (out / name / "run.json").exists():
        own = dict(recipe)
        stage, file = own.pop("stage"), out / f"{name}.json"
        file.write_text(json.dumps(own), encoding="utf-8")
        arguments = ["--stage", stage, "--model", model, "--config", file, "--data", "procedural"]
        arguments += ["--out", out / name, "--seed", seed, "--sample-every", 0]
        arguments += ["--validation", "procedural", "--validate-every", 500, "--keep-best", 0]
    with open(f"{out / name}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, TRAIN, *map(str, arguments)],
            stdout=log, stderr=log, start_new_session=True,  # so that only `train` passes Ctrl-C on
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def is_finished(run: Path) -> bool:
    """Whether a run has saved its last step."""
    if not (run / "run.json").is_file() or not (run / "model" / "training.json").is_file():
        return False
    steps = storage.read_json(run / "run.json")["recipe"]["steps"]
    return storage.read_json(run / "model" / "training.json")["step"] >= steps


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


def report(line: str) -> None:
    """Prints a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")
    except (ValueError, OSError, WeightsError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
