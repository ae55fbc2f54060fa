"""Train one stage of AudioLDM 2 on your own sounds, from nothing or from a model that you have.

    python scripts/train.py --stage vae     --data sounds/ --out runs/vae
    python scripts/train.py --stage vocoder --data sounds/ --out runs/vocoder --model runs/vae/model
    python scripts/train.py --stage clap    --data sounds/ --out runs/clap    --model runs/vocoder/model
    python scripts/train.py --stage ldm     --data sounds/ --out runs/ldm     --model runs/clap/model
    audioldm2 "a dog barks" --model runs/ldm/model -o dog.wav

or, of a published model, the stage that you want:

    python scripts/train.py --stage ldm --data sounds/ --out runs/tuned --model ./base --config published

sounds/ holds sound files and one table: captions.csv with the columns file and caption, or captions.jsonl
with lines such as {"file": "dog.wav", "caption": "a dog barks"}. The stages vae and vocoder of a model that
has vocabularies need no table. "--data procedural" takes the endless procedural world of make_demo_data.py.

Ctrl-C saves and stops; --resume --out RUN goes on, on a CPU to the bit. RUN/model is the model as it is now,
at any time; RUN/metrics.jsonl says how each step went, and RUN/samples lets one hear.

Every number of a stage is in its recipe, of which there are two: "small" (for what --model small makes) and
"published". --config chooses one, or names a JSON file with the fields that differ, such as {"like":
"published", "learning_rate": 3e-5, "bf16": true}; where it does not say like which, it is like "small".
--show prints the recipe.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.audio import SAMPLE_RATE, resample
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint, resolve_device
from audioldm2.errors import WeightsError, some
from audioldm2.files import atomic_write
from audioldm2.training import STAGES, loop
from audioldm2.training.data import Captioned, Folder, clip
from audioldm2.training.randomness import rng
from audioldm2.training.recipe import Recipe, changed
from audioldm2.training.scratch import SIZES, configs_from, from_scratch
from audioldm2.training.stage import Stage
from scripts.make_demo_data import SECONDS, describe, imagine, sample

PROCEDURAL = "procedural"
SETTINGS = {"stage", "data", "recipe", "seed", "save", "sample"}  # what run.json keeps


class Procedural:
    """The endless procedural world, as clips; a short clip is a part of a sound of 2.56 s."""

    def __init__(self, seconds: float, sample_rate: int, seed: int):
        self.seconds, self.sample_rate, self.seed = seconds, sample_rate, seed

    def __repr__(self) -> str:
        return "<the procedural world, endless>"

    def captions(self) -> list[str]:
        chances = [rng("caption", self.seed, index) for index in range(2000)]
        scenes = [imagine(chance, SECONDS) for chance in chances]
        return [describe(chance, said, joint) for chance, (joint, said) in zip(chances, scenes, strict=True)]

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        waves, captions = [], []
        for place in range(size):
            sound = sample(self.seed, step * size + place, seconds=max(self.seconds, SECONDS))
            wave = resample(torch.from_numpy(sound.audio), SAMPLE_RATE, self.sample_rate)
            part = clip(wave, round(self.seconds * self.sample_rate), rng("crop", self.seed, step, place))
            waves.append(part)
            captions.append(sound.caption)
        return torch.stack(waves), captions


def begin(options: argparse.Namespace, device: torch.device) -> tuple[Stage, Captioned, loop.Cadence]:
    """A new run: its folder, with settings and the model that it begins with."""
    kind = STAGES[options.stage]
    recipe = read_recipe(options)
    cadence = loop.Cadence(options.save_every, options.sample_every)
    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty; go on there with --resume, or choose another folder.")
    with TemporaryDirectory() as vocabularies:
        if options.model in SIZES or options.model.endswith(".json"):
            configs = SIZES.get(options.model) or configs_from(read_json(options.model), options.model)
            rate = configs["hifigan"].sample_rate
            data = open_data(options.data, recipe, rate, options.seed, kind.captioned)
            checkpoint = from_scratch(configs, data.captions(), Path(vocabularies), seed=options.seed)
        else:
            checkpoint = open_checkpoint(options.model)
            rate = checkpoint.configs["hifigan"].sample_rate
            data = open_data(options.data, recipe, rate, options.seed, kind.captioned)
        kind(checkpoint, recipe, device, options.seed)  # what cannot be is told before anything is written
        options.out.mkdir(parents=True, exist_ok=True)
        storage.write(checkpoint, options.out / "model")
    where = options.data if options.data == PROCEDURAL else str(Path(options.data).resolve())
    settings = {"stage": options.stage, "data": where, "recipe": asdict(recipe), "seed": options.seed}
    write_settings(options.out, settings | asdict(cadence))
    return kind(storage.read(options.out / "model"), recipe, device, options.seed), data, cadence


def go_on(options: argparse.Namespace, device: torch.device) -> tuple[Stage, Captioned, loop.Cadence]:
    """A run that was stopped, with its own settings; --steps may be more, or fewer."""
    file = options.out / "run.json"
    if not file.is_file():
        raise ValueError(f"{options.out} holds no run to go on with; it has no run.json.")
    settings = read_json(file)
    if set(settings) != SETTINGS:
        raise ValueError(f"{file} has {some(sorted(settings))}; it has to have {some(sorted(SETTINGS), 9)}.")
    kind = STAGES[settings["stage"]]
    recipe = changed(kind.recipes["small"], settings["recipe"], f"'recipe' in {file}")
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
        settings["recipe"] = asdict(recipe)
        write_settings(options.out, settings)
    stage = kind(storage.read(options.out / "model"), recipe, device, settings["seed"])
    rate = stage.front_end.sample_rate
    data = open_data(settings["data"], recipe, rate, settings["seed"], kind.captioned)
    loop.resume(stage, options.out)
    return stage, data, loop.Cadence(settings["save"], settings["sample"])


def open_data(name: str, recipe: Recipe, rate: int, seed: int, captioned: bool) -> Captioned:
    if name == PROCEDURAL:
        return Procedural(recipe.seconds, rate, seed)
    return Folder(Path(name), recipe.seconds, rate, seed=seed, pad=recipe.pad, captioned=captioned)


def read_recipe(options: argparse.Namespace) -> Recipe:
    """One of the stage's recipes, a JSON file over it, the flags over that."""
    recipes, name = STAGES[options.stage].recipes, options.config
    values = {} if name in recipes else read_json(name)
    like = name if name in recipes else values.pop("like", "small")
    if like not in recipes:
        raise ValueError(f"'like' in {name} is {like!r}; it has to be one of {', '.join(recipes)}.")
    flags = {flag: getattr(options, flag) for flag in ("steps", "batch", "seconds")}
    values |= {flag: value for flag, value in flags.items() if value is not None}
    return changed(recipes[like], values, f"the recipe {name}")


def read_json(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"{path} cannot be found.")
    return storage.read_json(Path(path))


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    with atomic_write(folder / "run.json") as draft:
        draft.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# Command line -----------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    device = resolve_device(options.device)
    stage, data, cadence = go_on(options, device) if options.resume else begin(options, device)
    learning = sum(p.numel() for network in stage.trained.values() for p in network.parameters())
    say(
        f"{stage.name} on {device}: {', '.join(stage.trained)} learn, {learning / 1e6:.1f} million parameters"
    )
    say(f"{data!r}; batches of {stage.recipe.batch} clips of {stage.recipe.seconds:g} s")
    if stage.done >= stage.recipe.steps:
        say(f"{stage.done} steps are done already; --steps asks for more")
        return
    stop: list[int] = []  # filled by Ctrl-C, and read after each step, so that no step is cut in two

    def ask_to_stop(number: int, frame: object) -> None:
        stop.append(number)
        signal.signal(number, signal.default_int_handler)  # a second time stops at once
        say("stopping after this step; once more stops at once")

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        finished = loop.train(stage, data, options.out, cadence, say=say, stopped=lambda: bool(stop))
    finally:
        signal.signal(signal.SIGINT, before)
    if finished:
        say(f"done: {options.out / 'model'} is the model")
    else:
        say(f"saved at step {stage.done}; go on with: python scripts/train.py --resume --out {options.out}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stage", choices=STAGES, help="what to train")
    add("--data", metavar="FOLDER", help="sounds and captions, or 'procedural'")
    add("--out", type=Path, metavar="RUN", help="folder of the run; it must not exist yet, or be empty")
    add(
        "--model", default="small", metavar="START",
        help="what to begin with: a converted folder, a hub id, anything that 'audioldm2 --model' takes; or, "
        "from nothing, 'small' (6 million parameters), 'published' (1.1 billion), or a JSON file of sizes, "
        'such as {"unet": {"depth": 2}}, where what is not given is as in small (default: %(default)s)',
    )  # fmt: skip
    add(
        "--config", default="small", metavar="RECIPE", help="small, published, or JSON (default: %(default)s)"
    )
    add("--show", action="store_true", help="print the recipe of --stage and --config, and stop")
    add("--steps", type=int, metavar="N", help="how many steps to take in all")
    add("--batch", type=int, metavar="N", help="clips a step")
    add("--seconds", type=float, metavar="S", help="of each clip")
    add("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    add("--device", default="auto", help="'auto', 'cpu', 'cuda', ... (default: %(default)s)")
    add("--save-every", type=int, default=1000, metavar="N", help="steps (default: %(default)s)")
    add(
        "--sample-every", type=int, default=5000, metavar="N",
        help="steps between sounds to hear; 0: none (default: %(default)s)",
    )  # fmt: skip
    add("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    options = parser.parse_args(arguments)
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    if options.resume:
        odd = given - {"resume", "out", "steps", "device"}
        if "out" not in given or odd:
            parser.error(
                "--resume takes --out RUN, and besides only --steps and --device; the run has its settings"
            )
    else:
        needed = ("stage",) if options.show else ("stage", "data", "out")
        absent = [f"--{name}" for name in needed if name not in given]
        if absent:
            parser.error(f"{' and '.join(absent)} needed; --help explains")
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}; it has to be at least 0")
    options.prog = parser.prog
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.show:
            print(json.dumps(asdict(read_recipe(options)), indent=2))
        else:
            run(options)
    except (ValueError, WeightsError, OSError, FloatingPointError) as error:
        print(f"{options.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{options.prog}: stopped; what was saved before is as it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
