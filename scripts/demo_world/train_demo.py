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
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError

TRAIN = Path(__file__).parents[1] / "train.py"
DEPENDENCIES = {"vae": (), "clap": (), "vocoder": ("vae",), "ldm": ("vae", "clap")}
NETWORKS = {"vae": ("vae",), "clap": ("clap_text", "clap_audio"), "vocoder": ("hifigan",)}
SOURCE = "trained from scratch on the procedural sounds of scripts/demo_world"
MAX_BYTES = 12e6  # of the model


def train(out: Path, seed: int) -> None:
    """Runs every stage to its end, each as soon as its dependencies are finished.

    Raises:
        ValueError: a stage failed.
    """
    running: dict[str, subprocess.Popen] = {}
    finished: set[str] = set()
    try:
        while len(finished) < len(DEPENDENCIES):
            for stage, needed in DEPENDENCIES.items():
                begun = stage in finished or stage in running
                if not begun and finished.issuperset(needed) and len(running) < 2:
                    running[stage] = start(stage, out, seed)
                    report(f"{stage} started; see {out / stage}.log")
            for stage, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[stage]
                if process.returncode or not is_finished(out / stage):
                    raise ValueError(f"{stage} stopped; see {out / stage}.log. The same command resumes.")
                finished.add(stage)
                report(f"{stage} finished")
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)  # saves and stops
        for process in running.values():
            process.wait()


def start(stage: str, out: Path, seed: int) -> subprocess.Popen:
    """Starts a stage in its own process, or resumes it if its run exists."""
    arguments: list[object] = ["--out", out / stage, "--resume"]
    if not (out / stage / "run.json").exists():
        arguments = ["--stage", stage, "--data", "procedural", "--out", out / stage, "--seed", seed]
        if DEPENDENCIES[stage]:
            initial = out / f"before-{stage}"
            storage.write(merge(out, DEPENDENCIES[stage]), initial, force=True)
            arguments += ["--model", initial]
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    with open(f"{out / stage}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, TRAIN, *map(str, arguments)],
            stdout=log, stderr=log, start_new_session=True,  # so that only `train` passes Ctrl-C on
            env=os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip


def is_finished(run: Path) -> bool:
    """Whether a run has logged its last step."""
    steps = storage.read_json(run / "run.json")["recipe"]["steps"]
    with open(run / "metrics.jsonl", encoding="utf-8") as log:
        return sum(1 for _ in log) >= steps


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
    began = time.monotonic()
    train(options.out, options.seed)
    model = options.out / "model"
    checkpoint = replace(merge(options.out, ("ldm", "vocoder")), source=SOURCE)
    storage.write(checkpoint, model, dtype=torch.float16, force=True)
    size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    report(f"{model}: {size / 1e6:.1f} MB, after {(time.monotonic() - began) / 60:.0f} minutes")
    if size > MAX_BYTES:
        raise ValueError(f"the model has {size / 1e6:.1f} MB; it has to stay below {MAX_BYTES / 1e6:g} MB.")
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
