"""Train the small model that speaks: every stage, on a corpus from flite, on two CPU cores.

    python scripts/speech_demo/make_speech_data.py sounds/
    python scripts/speech_demo/train_speech.py --sounds sounds/ --out runs/speech

writes runs/speech/model, 12 MB at most; a copy of it in audioldm2/assets/speech is the model in the box. The
VAE, the vocoder and CLAP begin as those of the other model in the box, which knows no speech.
Stages that do not depend on each other run in parallel, each on half of the cores. Ctrl-C saves and stops;
the same command resumes.

    vae  --+--> vocoder -----------+
           +--> text --> denoiser -+--> model, in float16
    clap --+

"text" and "denoiser" are both runs of the stage `ldm`: first GPT-2 and the phoneme encoder learn to predict
the latents (the auxiliary loss alone), then the denoiser learns to follow GPT-2's vectors.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.hub import DEMO_FOLDER
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import WeightsError
from audioldm2.training.folders import list_items
from audioldm2.training.new_model import SMALL_SPEECH, from_scratch
from audioldm2.training.spoken import Spoken
from scripts.speech_demo.make_speech_data import SECONDS

TRAIN = Path(__file__).parents[1] / "train.py"
SOURCE = "trained on voices of flite by scripts/speech_demo"
MAX_BYTES = 12e6  # of the model
KEPT = ("vae", "hifigan", "clap_text", "clap_audio")  # networks that begin as those of the other model

# run -> the runs whose networks it begins with, its stage, and what differs from the recipe "small"
RUNS: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "vae": ((), "vae", {"batch": 8, "steps": 1000, "learning_rate": 1e-3}),
    "clap": (
        (), "clap",
        {"batch": 32, "steps": 600, "learning_rate": 7e-4, "warmup": 30, "noise": 0.5, "pool": 1536},
    ),
    "text": (
        ("vae", "clap"), "ldm",
        {
            "batch": 24, "steps": 3600, "optimizer": "muon", "learning_rate": 2e-3, "warmup": 50, "ema": 0.98,
            "pool": 6960, "train_t5": False, "unconditional": "trained",
            "auxiliary_weight": 1.0, "auxiliary_steps": 3600,
        },
    ),
    "denoiser": (
        ("text",), "ldm",
        {
            "batch": 24, "steps": 4000, "optimizer": "muon", "learning_rate": 1.5e-3, "warmup": 100,
            "ema": 0.998, "pool": 6960, "train_t5": False, "train_gpt2": False, "latent_noise": False,
            "unconditional": "trained",
        },
    ),
    "vocoder": (
        ("vae",), "vocoder",
        {
            "like": "finetune", "batch": 8, "window": 0.4, "pool": 256, "steps": 1200, "optimizer": "muon",
            "learning_rate": 4e-4, "schedule": "cosine", "warmup": 20, "ema": 0.99,
            "stft_weights": [0.33, 0.33, 0.33],
        },
    ),
}  # fmt: skip
NETWORKS = {"vae": ("vae",), "clap": ("clap_text", "clap_audio"), "vocoder": ("hifigan",)}


def train(sounds: Path, out: Path, seed: int) -> None:
    """Runs every stage to its end, each as soon as those before it are finished.

    Raises:
        ValueError: a stage failed.
    """
    running: dict[str, subprocess.Popen] = {}
    finished = {run for run in RUNS if is_finished(out / run)}
    try:
        while len(finished) < len(RUNS):
            for run, (needed, _, _) in RUNS.items():
                begun = run in finished or run in running
                if not begun and finished.issuperset(needed) and len(running) < 2:
                    running[run] = start(run, sounds, out, seed)
                    report(f"{run} started; see {out / run}.log")
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode or not is_finished(out / run):
                    raise ValueError(f"{run} stopped; see {out / run}.log. The same command resumes.")
                finished.add(run)
                report(f"{run} finished")
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)  # saves and stops
        for process in running.values():
            process.wait()


def start(run: str, sounds: Path, out: Path, seed: int) -> subprocess.Popen:
    """Starts a run in its own process, or resumes it if it exists."""
    needed, stage, values = RUNS[run]
    arguments: list[object] = ["--out", out / run, "--resume"]
    if not (out / run / "run.json").exists():
        first, recipe = out / f"before-{run}", out / f"{run}.json"
        storage.write(merged(needed, sounds, out, seed), first, force=True)
        recipe.write_text(json.dumps({"like": "small", "seconds": SECONDS, "normalize": True} | values))
        arguments = ["--stage", stage, "--data", sounds, "--out", out / run, "--model", first]
        arguments += ["--config", recipe, "--seed", seed, "--sample-every", 0]
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    with open(f"{out / run}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, TRAIN, *map(str, arguments)],
            stdout=log, stderr=log, start_new_session=True,  # so that only `train` passes Ctrl-C on
            env=os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip


def is_finished(run: Path) -> bool:
    """Whether a run has logged its last step."""
    if not (run / "metrics.jsonl").exists():
        return False
    steps = storage.read_json(run / "run.json")["recipe"]["steps"]
    with open(run / "metrics.jsonl", encoding="utf-8") as log:
        return sum(1 for _ in log) >= steps


def merged(runs: tuple[str, ...], sounds: Path, out: Path, seed: int) -> Checkpoint:
    """Returns a new model, or what a run of the stage `ldm` made, with the networks that runs trained."""
    ldm = [run for run in runs if run not in NETWORKS]
    checkpoint = storage.read(out / ldm[0] / "model") if ldm else new_model(sounds, out, seed)
    for run in set(runs) - set(ldm):
        other, networks = storage.read(out / run / "model"), NETWORKS[run]
        checkpoint = replace(
            checkpoint,
            configs=checkpoint.configs | {name: other.configs[name] for name in networks},
            states=checkpoint.states | {name: other.states[name] for name in networks},
        )
    return checkpoint


def new_model(sounds: Path, out: Path, seed: int) -> Checkpoint:
    """Returns the model that training begins with; it knows how to pronounce the words of the corpus."""
    captions = [caption for item in list_items(sounds) for caption in item.captions]
    vocabularies = Path(tempfile.mkdtemp(dir=out))
    new, demo = from_scratch(SMALL_SPEECH, captions, vocabularies, seed=seed), storage.read(DEMO_FOLDER)
    vae = replace(demo.configs["vae"], scaling_factor=1.0)
    said = [caption for caption in captions if isinstance(caption, Spoken)]
    return replace(
        new,
        configs=new.configs | {name: demo.configs[name] for name in KEPT} | {"vae": vae},
        states=new.states | {name: demo.states[name] for name in KEPT},
        tokenizers={"clap_tokenizer": demo.tokenizers["clap_tokenizer"]},
        pronunciations={each.transcription: each.phonemes for each in said if " " not in each.transcription},
    )


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sounds", type=Path, required=True, metavar="FOLDER", help="of make_speech_data.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for runs and the model")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    train(options.sounds, options.out, options.seed)
    model = options.out / "model"
    checkpoint = replace(
        merged(("denoiser", "vocoder"), options.sounds, options.out, options.seed), source=SOURCE
    )
    for networks in (checkpoint.configs, checkpoint.states):
        del networks["clap_audio"]  # it would only rank candidates, and makes the model 12.8 MB
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
