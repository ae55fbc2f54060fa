"""Train a small model from nothing: every stage, on the procedural world, on two CPU cores.

    python scripts/train_demo.py --out runs/demo

writes runs/demo/model, 12 MB at most; as audioldm2/assets/demo it is the model in the box. The stages
that do not need each other run at the same time, each on half of the cores. Ctrl-C saves and stops; the same
command goes on where it was stopped.

    vae  ------+--> vocoder ---+
               +--> ldm -------+--> model, in float16
    clap ------+

Each is a run of train.py with its recipe "small", in runs/demo/<stage>, with its log and what it says.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError

TRAIN = Path(__file__).with_name("train.py")
NEEDS = {"vae": (), "clap": (), "vocoder": ("vae",), "ldm": ("vae", "clap")}  # stage -> those before it
MAKES = {"vae": ("vae",), "clap": ("clap_text", "clap_audio"), "vocoder": ("hifigan",)}
SOURCE = "trained from nothing on the procedural world of scripts/make_demo_data.py"
MOST = 12e6  # bytes of the model


def train(out: Path, seed: int) -> None:
    """Run every stage to its end, as soon as those that it needs are done."""
    running: dict[str, subprocess.Popen] = {}
    done: set[str] = set()
    try:
        while len(done) < len(NEEDS):
            for stage, needed in NEEDS.items():
                if stage not in done | running.keys() and done.issuperset(needed) and len(running) < 2:
                    running[stage] = start(stage, out, seed)
                    say(f"{stage} begins; {out / stage}.log tells how it goes")
            for stage, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[stage]
                if process.returncode or not is_done(out / stage):
                    raise ValueError(
                        f"{stage} stopped; {out / stage}.log says why. The same command goes on."
                    )
                done.add(stage)
                say(f"{stage} is done")
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)  # it saves, and stops
        for process in running.values():
            process.wait()


def start(stage: str, out: Path, seed: int) -> subprocess.Popen:
    """One stage in a process of its own: from its beginning, or from where it was stopped."""
    arguments = ["--out", out / stage, "--resume"]
    if not (out / stage / "run.json").exists():
        arguments = ["--stage", stage, "--data", "procedural", "--out", out / stage, "--seed", seed]
        if NEEDS[stage]:
            begin = out / f"before-{stage}"
            storage.write(together(out, NEEDS[stage]), begin, force=True)
            arguments += ["--model", begin]
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    with open(f"{out / stage}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, TRAIN, *map(str, arguments)],
            stdout=log, stderr=log, start_new_session=True,  # Ctrl-C reaches it through us, once
            env=os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip


def is_done(run: Path) -> bool:
    steps = storage.read_json(run / "run.json")["recipe"]["steps"]
    return sum(1 for _ in open(run / "metrics.jsonl", encoding="utf-8")) >= steps


def together(out: Path, stages: tuple[str, ...]) -> Checkpoint:
    """The model of the first stage with the networks that the others have trained."""
    first, *others = (storage.read(out / stage / "model") for stage in stages)
    for stage, other in zip(stages[1:], others, strict=True):
        made = MAKES[stage]
        first = replace(
            first,
            configs=first.configs | {name: other.configs[name] for name in made},
            states=first.states | {name: other.states[name] for name in made},
        )
    return first


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    train(options.out, options.seed)
    model = options.out / "model"
    checkpoint = replace(together(options.out, ("ldm", "vocoder")), source=SOURCE)
    storage.write(checkpoint, model, dtype=torch.float16, force=True)
    size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    say(f"{model}: {size / 1e6:.1f} MB, after {(time.monotonic() - begun) / 60:.0f} minutes")
    if size > MOST:
        raise ValueError(f"the model has {size / 1e6:.1f} MB; {MOST / 1e6:g} are what it may have.")
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    except (ValueError, OSError, WeightsError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
