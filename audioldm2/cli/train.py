"""`audioldm2 train`: train one stage on a folder of sounds, from scratch or from a model."""

import argparse
import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from audioldm2.adapters.lora import LAYER_SETS
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.cli.arguments import Parser, memory, new_parser, nonempty, number, whole_number
from audioldm2.cli.ranks import first_rank_speaks
from audioldm2.cli.streams import print_result, report
from audioldm2.cli.train_run import Run, Worlds, begin, is_new, read_recipe, resume
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.training import STAGES, distributed, loop
from audioldm2.training.distributed import Ranks
from audioldm2.training.full_disk import ON_FULL_DISK
from audioldm2.training.lora import LARGEST_RANK

OUT_OF_MEMORY = "Try fewer clips a step (--batch) or shorter ones (--seconds)."
# What ends a run in order: Ctrl-C; a scheduler, Docker or kill; a terminal that closes (not on Windows).
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
OF_RESUME = {"resume", "out", "steps", "device", "workers", "shard"}  # the flags that --resume allows

DESCRIPTION = """\
Train one stage of AudioLDM 2 on your own sounds, from scratch or from a model.

  audioldm2 train --stage vae     --data sounds/ --out runs/vae
  audioldm2 train --stage vocoder --data sounds/ --out runs/vocoder --model runs/vae/model
  audioldm2 train --stage clap    --data sounds/ --out runs/clap    --model runs/vocoder/model
  audioldm2 train --stage ldm     --data sounds/ --out runs/ldm     --model runs/clap/model
  audioldm2 "a dog barks" --model runs/ldm/model -o dog.wav

or one stage of a trained model, with gentle settings (recipe "finetune"), judged on sounds kept aside:

  audioldm2 train --stage ldm --data sounds/ --out runs/tuned --model ./base --mix old-sounds/:0.25 \\
                  --validation held-out/ --prompt "an oud, slowly" --patience 5

or an adapter of a few megabytes (LoRA) for a model that stays as it is:

  audioldm2 train --lora 8 --data sounds/ --out runs/oud --model ./base
  audioldm2 "an oud" --model ./base --lora runs/oud/adapter -o oud.wav

or on the GPUs of a machine, each of which takes its share of every batch:

  torchrun --nproc-per-node 4 -m audioldm2 train --stage ldm --data sounds/ --out runs/ldm --model ./base

sounds/ holds sound files and their captions: one table, such as captions.csv with the columns file and
caption, or captions.jsonl with lines such as {"file": "dog.wav", "caption": "a dog barks"}; or a dog.txt
beside each dog.wav. The tables of AudioCaps, Clotho, Hugging Face's audiofolder and upstream's JSON are read
as they are. Sounds to validate on come from a column "split", from validation.csv beside train.csv, or from
--validation. The stages vae, vocoder and audiomae, and ldm with gt_loa 1, need no captions where the model
has vocabularies. Every sound is decoded once before training starts.

Ctrl-C and SIGTERM save and stop (exit codes 130 and 143), and an error saves first; --resume --out RUN
continues, on a CPU to the bit, and repairs what a kill left. RUN/model is the current model at any time,
RUN/best holds the one with the lowest validation loss, RUN/samples sounds to listen to; RUN/metrics.jsonl has
a line a step, RUN/validation.jsonl a line a validation."""

EPILOG = """\
The recipe of a stage holds all its numbers. There are three: "small" (for what --model small creates),
"published" (for --model published) and "finetune" (for a trained model). The model chooses, and a line says
which. --config chooses another, or names a JSON file with the fields that differ, such as {"learning_rate":
3e-5, "schedule": "cosine", "bf16": true}; a field "like" names the recipe that it changes. --show prints the
recipe.
"""


def parser(prog: str = "audioldm2 train") -> Parser:
    made = new_parser(prog, DESCRIPTION, epilog=EPILOG)
    # fmt: off
    add = made.add_argument_group("common options").add_argument
    add("--stage", choices=STAGES, help="what to train")
    add("--data", type=nonempty, metavar="SOUNDS", help="a folder of sounds and captions, or a table of them")
    add("--out", type=Path, metavar="RUN", help="folder of the run; it must not exist yet, or be empty")
    add("--model", default="small", type=nonempty, metavar="START",
        help="what to begin with: a converted folder, a hub id, anything that 'audioldm2 --model' takes; or, "
        "from scratch, 'small' (6 million parameters), 'published' (1.1 billion), or a JSON file of sizes, "
        'such as {"unet": {"depth": 2}}, the others being those of small (default: %(default)s)')
    add("--config", type=nonempty, metavar="RECIPE",
        help="small, published, finetune, or a JSON file (default: what suits --model)")
    add("--lora", type=whole_number, metavar="RANK",
        help="train only an adapter of this rank for --model (the stage is then lora)")
    add("--resume", action="store_true", help="continue the run in --out, with its own settings")
    add = made.add_argument_group("more").add_argument
    add("--show", action="store_true", help="print the recipe of --stage and --config, and stop")
    add("--lora-layers", choices=LAYER_SETS,
        help="what --lora adapts in the denoiser (default: the recipe's, attention)")
    add("--new-word", metavar="WORD",
        help="learn only the vectors of a new word, such as '<zorp>', which captions contain (the stage is "
        "then word)")
    add("--vectors", type=whole_number, metavar="N", help="of --new-word (default: the recipe's, 1)")
    add("--like", metavar="TEXT",
        help="what --new-word begins as, and what CLAP reads in its place (default: 'a sound')")
    add("--steps", type=whole_number, metavar="N", help="steps in all (default: the recipe's)")
    add("--batch", type=whole_number, metavar="N", help="clips a step (default: the recipe's)")
    add("--seconds", type=number, metavar="S", help="length of each clip (default: the recipe's)")
    add("--crops", type=whole_number, metavar="N",
        help="crops of each longer sound; 0: a new one every time (default: the recipe's)")
    add("--cache", type=number, metavar="GB",
        help="keep latents and text vectors on disk, up to this size, and free what computes them "
        "(default: the recipe's, 0)")
    add("--fit", type=memory, metavar="SIZE",
        help="choose settings that fit into this much memory, such as 8GB, and say which: cache, parts of a "
        "batch, recomputed layers, bfloat16 (stages ldm, lora and word)")
    add("--audio-column", metavar="NAME",
        help="the table's column of sound files (default: file, file_name, filename, audio, wav or path)")
    add("--caption-column", metavar="NAME",
        help="its column of captions (default: caption, text, captions, or caption_1, caption_2, ...)")
    add("--skip-bad", action="store_true",
        help="leave out sounds that cannot be used, instead of refusing to start")
    add("--workers", type=whole_number, default=min(4, os.cpu_count() or 1), metavar="N",
        help="threads that read sounds; the batches do not depend on it (default: %(default)s)")
    add("--seed", type=whole_number, default=0, metavar="N", help="of all randomness (default: %(default)s)")
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add("--shard", action="store_true",
        help="under torchrun: each GPU keeps a share of the denoiser's weights and optimizer states (FSDP2)")
    add("--save-every", type=whole_number, default=1000, metavar="N",
        help="steps between savings (default: %(default)s)")
    add("--sample-every", type=whole_number, default=5000, metavar="N",
        help="steps between sounds to listen to; 0: none (default: %(default)s)")
    add("--prompt", dest="prompts", action="append", metavar="TEXT",
        help="a prompt for these sounds; may be repeated (default: captions of the data)")
    add("--on-full-disk", choices=ON_FULL_DISK, default="wait",
        help="wait for space with all steps in memory, or stop with the last save (default: %(default)s)")
    add("--tensorboard", action="store_true",
        help="write curves to RUN/tensorboard too; needs pip install tensorboard")
    add = made.add_argument_group("old sounds, validation").add_argument
    add("--mix", type=nonempty, metavar="FOLDER[:SHARE]",
        help="old sounds and captions, which make up a share of the clips, so that the model keeps what it "
        "knew (default share: 0.25)")
    add("--validation", type=nonempty, metavar="SOUNDS",
        help="sounds that are not trained on, to judge by: a table, a folder, or a fraction of the sounds of "
        "--data, such as 0.05 (default: those that the data names)")
    add("--validate-every", type=whole_number, default=500, metavar="N",
        help="steps between validations (default: %(default)s)")
    add("--keep-best", type=whole_number, default=1, metavar="K",
        help="models to keep in RUN/best, by validation loss (default: %(default)s)")
    add("--keep-last", type=whole_number, default=1, metavar="K",
        help="last saved models to keep; above 1, in RUN/last (default: %(default)s)")
    add("--patience", type=whole_number, default=0, metavar="K",
        help="end after K validations without a lower loss; 0: never (default: %(default)s)")
    # fmt: on
    return made


def run(arguments: Sequence[str], *, prog: str = "audioldm2 train", worlds: Worlds | None = None) -> int:
    """Train, resume, or show a recipe.

    Args:
        arguments: of the command line.
        prog: how the program is called, for messages.
        worlds: data that --data knows by name, beside folders.

    Returns:
        0 where the run is complete; 128 and the signal's number where a signal ended it, saved.
    """
    with first_rank_speaks(parser(prog)):
        given = parse(arguments, prog)
        if given.show:
            recipe, _ = read_recipe(given, None if is_new(given.model) else open_checkpoint(given.model))
            print_result(json.dumps(asdict(recipe), indent=2))
            return 0
        with distributed.joined(given.device) as (ranks, device):
            return train(given, ranks, device, prog, worlds or {})


def train(given: argparse.Namespace, ranks: Ranks, device: torch.device, prog: str, worlds: Worlds) -> int:
    """Begin or resume a run on this rank, and train; returns the exit code."""
    opened = resume if given.resume else begin
    with opened(given, ranks, device, worlds) as run:
        stage = run.stage
        parameters = sum(p.numel() for network in stage.trained.values() for p in network.parameters())
        networks = f"{', '.join(stage.trained)}, {parameters / 1e6:.1f} million parameters"
        where = device if ranks.count == 1 else f"{ranks.count} processes, this one on {device}"
        report(f"{stage.name} on {where}: trains {networks}")
        if run.validation is not None:
            report(repr(run.validation))
        report(f"{run.data!r}; batches of {stage.recipe.batch} clips of {stage.recipe.seconds:g} s")
        for warning in [] if given.resume else stage.warnings():
            report(f"note: {warning}")
        if stage.done >= stage.recipe.steps:
            report(f"{stage.done} steps are done already; --steps asks for more")
            return 0
        signals = train_until_signal(run, given.out)
        if not signals:
            report(f"done: {stage.outcome(given.out)}")
            return 0
        report(f"saved at step {stage.done}; continue with: {prog} --resume --out {given.out}")
        return 128 + signals[0]


def parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    made = parser(prog)
    given = made.parse_args(arguments)
    _choose_adapter(given)
    _choose_word(given)
    named = {name for name, value in vars(given).items() if value != made.get_default(name)}
    if given.resume:
        if "out" not in named or named - OF_RESUME:
            raise ValueError(
                "--resume takes --out RUN, and besides only --steps, --device, --workers and --shard."
            )
    else:
        needed = ("stage",) if given.show else ("stage", "data", "out")
        absent = [f"--{name}" for name in needed if name not in named]
        if absent:
            raise ValueError(
                f"{prog} needs {' and '.join(absent)}; see {prog} --help. For the sound of that word: "
                'audioldm2 generate "train".'
            )
        if STAGES[given.stage].adapts and not given.show and is_new(given.model):
            allowed = "be a trained model, such as --model demo: an adapter changes what a model has learnt"
            raise ArgumentError("model", given.model, allowed)
    for name in ("steps", "batch", "lora"):  # before the recipe does, under the names of the flags
        if getattr(given, name) is not None:
            require_whole(name, getattr(given, name), 1, LARGEST_RANK if name == "lora" else None)
    if given.seconds is not None and not 0 < given.seconds < math.inf:
        raise ArgumentError("seconds", given.seconds, "be a finite number above 0")
    require_whole("seed", given.seed, 0)
    require_whole("workers", given.workers, 1)
    require_whole("save_every", given.save_every, 1)
    require_whole("sample_every", given.sample_every, 0)
    require_whole("validate_every", given.validate_every, 1)
    return given


def _choose_adapter(given: argparse.Namespace) -> None:
    """--lora RANK names the stage too."""
    if given.lora is None and given.lora_layers is None:
        return
    if given.stage not in (None, "ldm", "lora"):
        raise ArgumentError("stage", given.stage, "be lora, or left out, with --lora and --lora-layers")
    given.stage = "lora"


def _choose_word(given: argparse.Namespace) -> None:
    """--new-word WORD names the stage too."""
    if given.new_word is None:
        for name in ("vectors", "like"):
            if getattr(given, name) is not None:
                raise ArgumentError(name, getattr(given, name), "be left out without --new-word")
        return
    if given.stage not in (None, "ldm", "word"):
        raise ArgumentError("stage", given.stage, "be word, or left out, with --new-word")
    given.stage = "word"


def train_until_signal(run: Run, folder: Path) -> list[int]:
    """Train to the end, or until a signal, which ends the run after the current step; the signals so far."""
    signals: list[int] = []  # read after each step, so that no step is cut in two

    def ask_to_stop(number: int, frame: object) -> None:
        # Under torchrun, a Ctrl-C arrives twice: from the terminal and from torchrun.
        can_interrupt = number == signal.SIGINT and run.stage.ranks.count == 1
        if number in signals and can_interrupt:
            raise KeyboardInterrupt  # the second Ctrl-C
        if number in signals:
            return
        signals.append(number)
        once_more = "; once more stops at once" if can_interrupt else ""
        report(f"{signal.Signals(number).name}: stopping after this step{once_more}")

    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    for each, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup asks for SIGHUP
            signal.signal(each, ask_to_stop)
    settings = run.settings
    try:
        complete = loop.train(
            run.stage, run.data, folder, settings.intervals, validation=run.validation,
            judging=settings.judging, on_full_disk=settings.on_full_disk, tensorboard=settings.tensorboard,
            report=report, should_stop=lambda: bool(signals),
        )  # fmt: skip
        return [] if complete else signals or [signal.SIGTERM]  # which another rank got
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
