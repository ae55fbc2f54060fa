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
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.hub import DEMO_FOLDER
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.training.folders import list_items
from audioldm2.training.new_model import SMALL_SPEECH, from_scratch
from audioldm2.training.spoken import Spoken
from scripts.speech_demo.make_speech_data import SECONDS
from scripts.training_runs import run_to_the_end, train_all, write_small_model

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
    """Runs every stage to its end; ValueError where one fails."""

    def arguments(run: str) -> list[object]:
        needed, stage, values = RUNS[run]
        first, recipe = out / f"before-{run}", out / f"{run}.json"
        storage.write(merged(needed, sounds, out, seed), first, force=True)
        recipe.write_text(json.dumps({"like": "small", "seconds": SECONDS, "normalize": True} | values))
        found: list[object] = ["--stage", stage, "--data", sounds, "--model", first, "--config", recipe]
        return [*found, "--seed", seed, "--sample-every", 0]

    train_all(out, {run: needed for run, (needed, _, _) in RUNS.items()}, arguments)


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
    train(options.sounds, options.out, options.seed)
    checkpoint = replace(
        merged(("denoiser", "vocoder"), options.sounds, options.out, options.seed), source=SOURCE
    )
    for networks in (checkpoint.configs, checkpoint.states):
        del networks["clap_audio"]  # it would only rank candidates, and makes the model 12.8 MB
    write_small_model(checkpoint, options.out / "model", MAX_BYTES)
    return 0


if __name__ == "__main__":
    run_to_the_end(main)
