"""`audioldm2 train`: train one stage on a folder of sounds, from nothing or from a model."""

import argparse
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from audioldm2.adapters.lora import LAYER_SETS
from audioldm2.adapters.writing import hash_of
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.hub import DEMO
from audioldm2.checkpoints.load import open_checkpoint, resolve_device
from audioldm2.cli.arguments import Parser, new_parser, number, whole_number
from audioldm2.cli.failures import naming_full_disk
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import ArgumentError, require_choice, require_whole, some
from audioldm2.files import atomic_write
from audioldm2.training import STAGES, loop
from audioldm2.training.data import Captioned, Folder
from audioldm2.training.new_model import SIZES, configs_from, from_scratch
from audioldm2.training.recipe import Recipe, override
from audioldm2.training.stage import Stage

# Opens data that is no folder, by its name for --data: (seconds of a clip, sample rate, seed) -> the data.
Worlds = Mapping[str, Callable[[float, int, int], Captioned]]

OUT_OF_MEMORY = "Try fewer clips a step (--batch) or shorter ones (--seconds)."
SETTINGS = {"stage", "data", "recipe", "seed", "save", "sample"}  # the keys of run.json
OF_BASE = {"base", "base_sha256"}  # further keys of a run that makes an adapter
OF_RESUME = {"resume", "out", "steps", "device"}  # the flags that --resume allows

DESCRIPTION = """\
Train one stage of AudioLDM 2 on your own sounds, from nothing or from a model.

  audioldm2 train --stage vae     --data sounds/ --out runs/vae
  audioldm2 train --stage vocoder --data sounds/ --out runs/vocoder --model runs/vae/model
  audioldm2 train --stage clap    --data sounds/ --out runs/clap    --model runs/vocoder/model
  audioldm2 train --stage ldm     --data sounds/ --out runs/ldm     --model runs/clap/model
  audioldm2 "a dog barks" --model runs/ldm/model -o dog.wav

or one stage of a published model:

  audioldm2 train --stage ldm --data sounds/ --out runs/tuned --model ./base --config published

or an adapter of a few megabytes (LoRA) for a model that stays as it is:

  audioldm2 train --lora 8 --data sounds/ --out runs/oud --model ./base --config published
  audioldm2 "an oud" --model ./base --lora runs/oud/adapter -o oud.wav

sounds/ holds sound files and one table: captions.csv with the columns file and caption, or captions.jsonl
with lines such as {"file": "dog.wav", "caption": "a dog barks"}. The stages vae and vocoder of a model that
has vocabularies need no table.

Ctrl-C saves and stops; --resume --out RUN continues, on a CPU to the bit. RUN/model is the current model at
any time, RUN/metrics.jsonl has a line a step, and RUN/samples holds sounds to listen to."""

EPILOG = """\
The recipe of a stage holds all its numbers. There are two, "small" (for what --model small creates) and
"published". --config chooses one, or names a JSON file with the fields that differ, such as {"like":
"published", "learning_rate": 3e-5, "bf16": true}; without "like" the others are those of small. --show prints
the recipe.
"""


def parser(prog: str = "audioldm2 train") -> Parser:
    made = new_parser(prog, DESCRIPTION, epilog=EPILOG)
    # fmt: off
    add = made.add_argument_group("common options").add_argument
    add("--stage", choices=STAGES, help="what to train")
    add("--data", metavar="FOLDER", help="sounds and captions")
    add("--out", type=Path, metavar="RUN", help="folder of the run; it must not exist yet, or be empty")
    add("--model", default="small", metavar="START",
        help="what to begin with: a converted folder, a hub id, anything that 'audioldm2 --model' takes; or, "
        "from nothing, 'small' (6 million parameters), 'published' (1.1 billion), or a JSON file of sizes, "
        'such as {"unet": {"depth": 2}}, the others being those of small (default: %(default)s)')
    add("--config", default="small", metavar="RECIPE",
        help="small, published, or a JSON file (default: %(default)s)")
    add("--lora", type=whole_number, metavar="RANK",
        help="train only an adapter of this rank for --model (the stage is then lora)")
    add("--resume", action="store_true", help="continue the run in --out, with its own settings")
    add = made.add_argument_group("more").add_argument
    add("--show", action="store_true", help="print the recipe of --stage and --config, and stop")
    add("--lora-layers", choices=LAYER_SETS,
        help="what --lora adapts in the denoiser (default: the recipe's, attention)")
    add("--steps", type=whole_number, metavar="N", help="steps in all (default: the recipe's)")
    add("--batch", type=whole_number, metavar="N", help="clips a step (default: the recipe's)")
    add("--seconds", type=number, metavar="S", help="length of each clip (default: the recipe's)")
    add("--seed", type=whole_number, default=0, metavar="N", help="of all randomness (default: %(default)s)")
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add("--save-every", type=whole_number, default=1000, metavar="N",
        help="steps between savings (default: %(default)s)")
    add("--sample-every", type=whole_number, default=5000, metavar="N",
        help="steps between sounds to listen to; 0: none (default: %(default)s)")
    # fmt: on
    return made


def run(arguments: Sequence[str], *, prog: str = "audioldm2 train", worlds: Worlds | None = None) -> int:
    """Train, resume, or show a recipe.

    Args:
        arguments: of the command line.
        prog: how the program is called, for messages.
        worlds: data that --data knows by name, beside folders.
    """
    given = parse(arguments, prog)
    if given.show:
        print_result(json.dumps(asdict(read_recipe(given)), indent=2))
        return 0
    device = resolve_device(given.device)
    worlds = worlds or {}
    stage, data, intervals = resume(given, device, worlds) if given.resume else begin(given, device, worlds)
    parameters = sum(p.numel() for network in stage.trained.values() for p in network.parameters())
    networks = f"{', '.join(stage.trained)}, {parameters / 1e6:.1f} million parameters"
    report(f"{stage.name} on {device}: trains {networks}")
    report(f"{data!r}; batches of {stage.recipe.batch} clips of {stage.recipe.seconds:g} s")
    if stage.done >= stage.recipe.steps:
        report(f"{stage.done} steps are done already; --steps asks for more")
    elif train_until_interrupted(stage, data, given.out, intervals):
        report(f"done: {stage.outcome(given.out)}")
    else:
        report(f"saved at step {stage.done}; continue with: {prog} --resume --out {given.out}")
    return 0


def parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    made = parser(prog)
    given = made.parse_args(arguments)
    _choose_adapter(given)
    named = {name for name, value in vars(given).items() if value != made.get_default(name)}
    if given.resume:
        if "out" not in named or named - OF_RESUME:
            raise ValueError("--resume takes --out RUN, and besides only --steps and --device.")
    else:
        needed = ("stage",) if given.show else ("stage", "data", "out")
        absent = [f"--{name}" for name in needed if name not in named]
        if absent:
            raise ValueError(
                f"{prog} needs {' and '.join(absent)}; see {prog} --help. For the sound of that word: "
                'audioldm2 generate "train".'
            )
        if (
            STAGES[given.stage].adapts
            and not given.show
            and (given.model in SIZES or given.model.endswith(".json"))
        ):
            allowed = "be a trained model, such as --model demo: an adapter changes what a model has learnt"
            raise ArgumentError("model", given.model, allowed)
    for name in ("steps", "batch"):  # before the recipe does, under the names of the flags
        if getattr(given, name) is not None:
            require_whole(name, getattr(given, name), 1)
    require_whole("seed", given.seed, 0)
    require_whole("save_every", given.save_every, 1)
    require_whole("sample_every", given.sample_every, 0)
    return given


def _choose_adapter(given: argparse.Namespace) -> None:
    """--lora RANK names the stage too."""
    if given.lora is None and given.lora_layers is None:
        return
    if given.stage not in (None, "ldm", "lora"):
        raise ArgumentError("stage", given.stage, "be lora, or left out, with --lora and --lora-layers")
    given.stage = "lora"


def train_until_interrupted(stage: Stage, data: Captioned, folder: Path, intervals: loop.Intervals) -> bool:
    """Train to the last step, or until Ctrl-C, which ends after the current step; whether it was the last."""
    stop: list[int] = []  # filled by Ctrl-C, and read after each step, so that no step is cut in two

    def ask_to_stop(number: int, frame: object) -> None:
        stop.append(number)
        signal.signal(number, signal.default_int_handler)  # a second Ctrl-C stops at once
        report("stopping after this step; once more stops at once")

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        with naming_full_disk(folder):
            return loop.train(stage, data, folder, intervals, report=report, should_stop=lambda: bool(stop))
    finally:
        signal.signal(signal.SIGINT, before)


def begin(
    given: argparse.Namespace, device: torch.device, worlds: Worlds
) -> tuple[Stage, Captioned, loop.Intervals]:
    """Start a run: write its folder, with the settings and the model that it begins with."""
    kind = STAGES[given.stage]
    recipe = read_recipe(given)
    intervals = loop.Intervals(given.save_every, given.sample_every)
    if given.out.exists() and any(given.out.iterdir()):
        raise ValueError(f"{given.out} is not empty; continue there with --resume, or choose another folder.")
    with TemporaryDirectory() as vocabularies:
        if given.model in SIZES or given.model.endswith(".json"):
            configs = SIZES.get(given.model) or configs_from(read_json(given.model), given.model)
            rate = configs["hifigan"].sample_rate
            data = open_data(given.data, recipe, rate, given.seed, kind.captioned, worlds)
            checkpoint = from_scratch(configs, data.captions(), Path(vocabularies), seed=given.seed)
        else:
            checkpoint = open_checkpoint(given.model)
            rate = checkpoint.configs["hifigan"].sample_rate
            data = open_data(given.data, recipe, rate, given.seed, kind.captioned, worlds)
        stage = kind(
            checkpoint, recipe, device, given.seed
        )  # raises what is wrong before anything is written
        given.out.mkdir(parents=True, exist_ok=True)
        if not kind.adapts:
            storage.write(checkpoint, given.out / "model")
    where = given.data if given.data in worlds else str(Path(given.data).resolve())
    settings = {"stage": given.stage, "data": where, "recipe": asdict(recipe), "seed": given.seed}
    settings |= asdict(intervals)
    if kind.adapts:
        is_local = given.model != DEMO and Path(given.model).expanduser().exists()
        base = str(Path(given.model).expanduser().resolve()) if is_local else given.model
        settings |= {"base": base, "base_sha256": hash_of(checkpoint.states, stage.trainable())}
    write_settings(given.out, settings)
    return open_stage(given.out, settings, recipe, device), data, intervals


def resume(
    given: argparse.Namespace, device: torch.device, worlds: Worlds
) -> tuple[Stage, Captioned, loop.Intervals]:
    """Open a run that was stopped, with its own settings, but for --steps."""
    file = given.out / "run.json"
    if not file.is_file():
        raise ValueError(f"{given.out} holds no run to continue; it has no run.json.")
    settings = read_json(file)
    if set(settings) - OF_BASE != SETTINGS:
        raise ValueError(f"{file} has {some(sorted(settings))}; it has to have {some(sorted(SETTINGS), 9)}.")
    kind = STAGES[require_choice(f"'stage' in {file}", settings["stage"], STAGES)]
    recipe = override(kind.recipes["small"], settings["recipe"], f"'recipe' in {file}")
    if given.steps is not None:
        recipe = replace(recipe, steps=given.steps)
        settings["recipe"] = asdict(recipe)
        write_settings(given.out, settings)
    stage = open_stage(given.out, settings, recipe, device)
    rate = stage.front_end.sample_rate
    data = open_data(settings["data"], recipe, rate, settings["seed"], kind.captioned, worlds)
    loop.resume(stage, given.out)
    return stage, data, loop.Intervals(settings["save"], settings["sample"])


def open_stage(folder: Path, settings: dict[str, Any], recipe: Recipe, device: torch.device) -> Stage:
    """The stage of a run, on the model in its folder, or on the one that its adapter is for."""
    kind = STAGES[settings["stage"]]
    if not kind.adapts:
        return kind(storage.read(folder / "model"), recipe, device, settings["seed"])
    checkpoint = open_checkpoint(settings["base"])
    stage = kind(checkpoint, recipe, device, settings["seed"])
    stage.base, stage.base_hash = settings["base"], settings["base_sha256"]
    found = hash_of(checkpoint.states, stage.trainable())
    if found != settings["base_sha256"]:
        raise ValueError(
            f"{settings['base']} has changed since this run began: its weights have the SHA-256 {found}, and "
            f"{folder / 'run.json'} says {settings['base_sha256']}. Put the old model back."
        )
    return stage


def open_data(name: str, recipe: Recipe, rate: int, seed: int, captioned: bool, worlds: Worlds) -> Captioned:
    if name in worlds:
        return worlds[name](recipe.seconds, rate, seed)
    return Folder(Path(name), recipe.seconds, rate, seed=seed, pad=recipe.pad, captioned=captioned)


def read_recipe(given: argparse.Namespace) -> Recipe:
    """A recipe of the stage; the fields of a JSON file replace its own, and the flags replace those."""
    recipes, name = STAGES[given.stage].recipes, given.config
    values = {} if name in recipes else read_json(name)
    like = name if name in recipes else values.pop("like", "small")
    if like not in recipes:
        raise ValueError(f"'like' in {name} is {like!r}; it has to be one of {', '.join(recipes)}.")
    flags = {flag: getattr(given, flag) for flag in ("steps", "batch", "seconds")}
    flags |= {"rank": given.lora, "layers": given.lora_layers}
    values |= {flag: value for flag, value in flags.items() if value is not None}
    return override(recipes[like], values, f"the recipe {name}")


def read_json(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"{path} cannot be found.")
    return storage.read_json(Path(path))


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    with atomic_write(folder / "run.json") as draft:
        draft.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
