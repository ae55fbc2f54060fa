"""How a training run begins and resumes: the recipe that suits the model, the data, the folder.

The file is a little long because beginning and resuming check the same settings, and are read side by side.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from audioldm2.adapters.writing import hash_of
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.hub import IN_PACKAGE
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.cli.streams import report
from audioldm2.errors import ArgumentError, require_choice
from audioldm2.training import STAGES, run_folder, sources
from audioldm2.training.cache_filling import count_clips
from audioldm2.training.conditioned import ConditionedRecipe
from audioldm2.training.data import AtTrainedLevel, Captioned
from audioldm2.training.distributed import ALONE, Ranks
from audioldm2.training.ldm import LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.metrics import require_tensorboard
from audioldm2.training.mixing import Mixed, parse_mix
from audioldm2.training.new_model import SIZES, configs_from, from_scratch
from audioldm2.training.recipe import Recipe, override
from audioldm2.training.settings import Settings, read_settings, write_settings
from audioldm2.training.sources import ClipSettings, DataOptions
from audioldm2.training.speech import require_spoken
from audioldm2.training.stage import Stage

# Opens data that is no folder, by its name for --data: (seconds of a clip, sample rate, seed) -> the data.
Worlds = Mapping[str, Callable[[float, int, int], Captioned]]


@dataclass(frozen=True)
class Run:
    """A run, ready to train."""

    stage: Stage
    data: Captioned
    validation: Captioned | None
    settings: Settings


# The recipe -------------------------------------------------------------------------------------------------


def is_new(model: str) -> bool:
    """Whether --model names sizes, from which a model is made, and no trained model."""
    return model in SIZES or model.endswith(".json")


def read_recipe(given: argparse.Namespace, checkpoint: Checkpoint | None) -> tuple[Recipe, str]:
    """Chooses the recipe: --config does, or else the model.

    Args:
        given: the flags.
        checkpoint: the trained model; None where --model names sizes.

    Returns:
        The recipe, with the fields of a JSON file and the flags in place of its own, and a sentence about it.
    """
    kind, name = STAGES[given.stage], given.config
    if is_new(given.model):
        usual, why = ("published" if given.model == "published" else "small"), "for a new model"
    else:
        assert checkpoint is not None
        usual, why = kind.usual_recipe(checkpoint), f"because {given.model} is a trained model"
        if usual != "finetune":
            why = f"for a network that {given.model} lacks"
    if name is not None and name not in kind.recipes and not Path(name).is_file():
        names = ", ".join(kind.recipes)
        raise ArgumentError("config", name, f"be one of {names}, or a JSON file with fields of a recipe")
    values = {} if name is None or name in kind.recipes else read_json(name)
    like = values.pop("like", usual) if name not in kind.recipes else name
    if like not in kind.recipes:
        raise ValueError(f"'like' in {name} is {like!r}; it has to be one of {', '.join(kind.recipes)}.")
    base = kind.recipe_for(checkpoint) if like == usual and checkpoint else kind.recipes[like]
    flags = {flag: getattr(given, flag) for flag in ("steps", "batch", "seconds")}
    flags |= {"rank": given.lora, "layers": given.lora_layers, "cache_gb": given.cache, "crops": given.crops}
    flags |= {"word": given.new_word, "like": given.like, "vectors": given.vectors}
    values |= {flag: value for flag, value in flags.items() if value is not None}
    recipe = override(base, values, f"the recipe {name or like}")
    if name is not None:
        why = f"from --config {name}"
    short = in_short(kind, recipe)
    return recipe, f"recipe {like}, {why}: {short}; --config chooses another, --show prints it all"


def fitted(
    given: argparse.Namespace, kind: type[Stage], checkpoint: Checkpoint, recipe: Recipe,
    device: torch.device, data: Captioned, ranks: Ranks,
) -> tuple[Recipe, list[str]]:  # fmt: skip
    """The recipe with settings that fit into --fit, and sentences about them."""
    if not (issubclass(kind, LDMStage) and isinstance(recipe, LDMRecipe)):
        raise ArgumentError(
            "fit", given.fit, f"be left out for the stage '{kind.name}', which has no such plan"
        )
    if given.shard:
        raise ArgumentError("fit", given.fit, "be left out with --shard, whose shares it does not know")
    from audioldm2.training import memory_plan  # it imports much of PyTorch that a run does not need

    clips = memory_plan.Clips.of(data, recipe)
    plan = memory_plan.fit(kind, checkpoint, recipe, given.fit, device, clips, ranks.count)
    fits = f"fits into {given.fit / 1e9:g} GB: {plan.peak}"
    return plan.recipe, [fits, *(f"  {reason}" for reason in plan.reasons)]


def in_short(kind: type[Stage], recipe: Recipe) -> str:
    """The numbers of a stage's recipe that matter most."""
    words = f"{recipe.steps} steps of {recipe.batch} clips of {recipe.seconds:g} s, learning rate "
    words += f"{recipe.learning_rate:g} ({recipe.schedule})"
    if kind.adapts or getattr(recipe, "gt_loa", 0) == 1:  # none of these networks learns
        return words
    learns = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name.startswith("train_")}
    return words + "".join(
        f", {name[6:].replace('t5', 'T5').replace('gpt2', 'GPT-2')} {'learns' if on else 'fixed'}"
        for name, on in learns.items()
    )


def read_json(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"{path} cannot be found.")
    return storage.read_json(Path(path))


# The data ---------------------------------------------------------------------------------------------------


def clips_of(settings: Settings, recipe: Recipe, rate: int, workers: int) -> ClipSettings:
    captioned = STAGES[settings.stage].reads_captions(recipe)
    return ClipSettings(
        recipe.seconds, rate, settings.seed, recipe.pad, recipe.normalize, captioned, recipe.crops, workers
    )


def open_data(
    settings: Settings, clips: ClipSettings, worlds: Worlds, ranks: Ranks = ALONE
) -> tuple[Captioned, Captioned | None]:
    """The clips to train on, old ones mixed in, and those to validate on."""
    with ranks.first_goes_first():
        return _open_all(settings, clips, worlds)


def _open_all(settings: Settings, clips: ClipSettings, worlds: Worlds) -> tuple[Captioned, Captioned | None]:
    name, options = settings.data, settings.data_options
    if name in worlds and (options.audio_column or options.caption_column):
        raise ValueError(f"{name} has no table; leave out --audio-column and --caption-column.")
    apart = replace(options, validation=None)
    # Other seeds, so that a world or a folder that is given twice draws other clips.
    of_folder = name not in worlds and settings.validation not in worlds
    data = _open(name, clips, options if of_folder else apart, worlds)
    if settings.mix is not None:
        old = _open(settings.mix, replace(clips, seed=clips.seed + 1), apart, worlds)
        data = Mixed(data, old, settings.mix_share)
    if not of_folder:
        validation = settings.validation
        clips = replace(clips, seed=clips.seed + 2)
        return data, None if validation is None else _open(validation, clips, apart, worlds)
    return data, sources.open_validation(Path(name), clips, options, report)


def _open(name: str, clips: ClipSettings, options: DataOptions, worlds: Worlds) -> Captioned:
    """A folder, a table, or a world."""
    if name not in worlds:
        return sources.open_data(Path(name), clips, options, report)
    world = worlds[name](clips.seconds, clips.sample_rate, clips.seed)
    return AtTrainedLevel(world) if clips.normalize else world


def placed(name: str, worlds: Worlds) -> str:
    """The absolute path of a folder or table, so that a run resumes from anywhere."""
    return name if name in worlds or not Path(name).exists() else str(Path(name).resolve())


# The run ----------------------------------------------------------------------------------------------------


@contextmanager
def begin(given: argparse.Namespace, ranks: Ranks, device: torch.device, worlds: Worlds) -> Iterator[Run]:
    """Start a run: write its folder, with the settings and the model that it begins with."""
    _require_ranks_to_shard(given, ranks)
    kind, out = STAGES[given.stage], given.out
    if out.exists() and not _is_free(out):
        raise ValueError(f"{out} is not empty; continue there with --resume, or choose another folder.")
    if given.prompts and not kind.generates:
        allowed = f"be left out: the samples of the stage '{given.stage}' follow no prompt"
        raise ArgumentError("prompts", given.prompts, allowed)
    if given.tensorboard:
        require_tensorboard()
    with TemporaryDirectory() as vocabularies:
        checkpoint = None if is_new(given.model) else open_checkpoint(given.model)
        recipe, sentence = read_recipe(given, checkpoint)
        settings = _settings(given, recipe, worlds)
        if checkpoint is None:
            configs = SIZES.get(given.model) or configs_from(read_json(given.model), given.model)
            rate = configs["hifigan"].sample_rate
            clips = clips_of(settings, recipe, rate, given.workers)
            data, validation = open_data(settings, clips, worlds, ranks)
            checkpoint = from_scratch(configs, data.captions(), Path(vocabularies), seed=given.seed)
        else:
            rate = checkpoint.configs["hifigan"].sample_rate
            clips = clips_of(settings, recipe, rate, given.workers)
            data, validation = open_data(settings, clips, worlds, ranks)
        if settings.patience and validation is None:
            allowed = "be 0 without --validation: no loss is measured"
            raise ArgumentError("patience", settings.patience, allowed)
        planned: list[str] = []
        if given.fit is not None:
            recipe, planned = fitted(given, kind, checkpoint, recipe, device, data, ranks)
            settings = replace(settings, recipe=asdict(recipe))
        # This raises what is wrong before anything is written.
        stage = kind(checkpoint, recipe, device, given.seed)
        if isinstance(recipe, ConditionedRecipe) and recipe.cache_gb:
            count_clips(data, recipe.pool, recipe.cache_gb)
        stage.require_captions(data.captions() if kind.reads_captions(recipe) else ())
        if isinstance(recipe, ConditionedRecipe) and validation is not None and kind.reads_captions(recipe):
            require_spoken(validation.captions(), "phonemes" in checkpoint.configs, checkpoint.source)
        if given.prompts and "phonemes" in checkpoint.configs:
            allowed = "be left out: samples of a model that speaks say what the data say"
            raise ArgumentError("prompts", given.prompts, allowed)
        stage.join(ranks, sharded=given.shard)
        if kind.adapts:
            base = _name_of_base(given.model)
            settings = replace(settings, base=base, base_sha256=hash_of(checkpoint.states, stage.trainable()))
        ranks.wait()  # all of them have found nothing wrong
        if ranks.is_first:
            out.mkdir(parents=True, exist_ok=True)
        with _opened(out, kind.product, ranks) as repaired:
            _report(repaired)
            if ranks.is_first:
                write_settings(settings, out)
                if not kind.adapts:
                    storage.write(checkpoint, out / "model", force=True, durable=True)
            ranks.wait()
            _report([sentence, *planned])
            stage = open_stage(settings, recipe, out, device)
            stage.join(ranks, sharded=given.shard)
            yield Run(stage, data, validation, settings)


@contextmanager
def resume(given: argparse.Namespace, ranks: Ranks, device: torch.device, worlds: Worlds) -> Iterator[Run]:
    """Open a run that was stopped, with its own settings, but for --steps."""
    _require_ranks_to_shard(given, ranks)
    settings = read_settings(given.out)
    file = given.out / "run.json"
    kind = STAGES[require_choice(f"'stage' in {file}", settings.stage, STAGES)]
    recipe = override(kind.recipes["small"], settings.recipe, f"'recipe' in {file}")
    with _opened(given.out, kind.product, ranks) as repaired:
        _report(repaired)
        if not kind.adapts and not (given.out / "model").exists():
            raise ValueError(
                f"{given.out} was left before its model was written; begin it again with the same command."
            )
        if given.steps is not None:
            recipe = replace(recipe, steps=given.steps)
            settings = replace(settings, recipe=asdict(recipe))
        stage = open_stage(settings, recipe, given.out, device)
        stage.join(ranks, sharded=given.shard)
        clips = clips_of(settings, recipe, stage.front_end.sample_rate, given.workers)
        data, validation = open_data(settings, clips, worlds, ranks)
        _report(run_folder.resume(stage, given.out, data))
        if given.steps is not None and ranks.is_first:
            write_settings(settings, given.out)
        yield Run(stage, data, validation, settings)


@contextmanager
def _opened(folder: Path, product: str, ranks: Ranks) -> Iterator[list[str]]:
    """Rank 0 locks and repairs the folder of a run; the others wait for it."""
    with ExitStack() as stack:
        repaired = stack.enter_context(run_folder.opened(folder, product)) if ranks.is_first else []
        ranks.wait()
        yield repaired


def _require_ranks_to_shard(given: argparse.Namespace, ranks: Ranks) -> None:
    if given.shard and ranks.count == 1:
        allowed = "be left out without torchrun: one process has nothing to share"
        raise ArgumentError("shard", True, allowed)


def open_stage(settings: Settings, recipe: Recipe, folder: Path, device: torch.device) -> Stage:
    """The stage of a run, on the model in its folder, or on the one that its adapter is for."""
    kind = STAGES[settings.stage]
    if not kind.adapts:
        return kind(storage.read(folder / "model"), recipe, device, settings.seed)
    if settings.base is None or settings.base_sha256 is None:
        raise ValueError(f"{folder / 'run.json'} does not say which model the adapter is for ('base').")
    checkpoint = open_checkpoint(settings.base)
    stage = kind(checkpoint, recipe, device, settings.seed)
    stage.base, stage.base_hash = settings.base, hash_of(checkpoint.states, stage.trainable())
    if stage.base_hash != settings.base_sha256:
        raise ValueError(
            f"{settings.base} has changed since this run began: its weights have the SHA-256 "
            f"{stage.base_hash}, and {folder / 'run.json'} says {settings.base_sha256}. "
            "Put the old model back."
        )
    return stage


def _name_of_base(model: str) -> str:
    """How a run finds the model again: by its absolute path, or by its name where it is not a path."""
    is_local = model not in IN_PACKAGE and Path(model).expanduser().exists()
    return str(Path(model).expanduser().resolve()) if is_local else model


def _settings(given: argparse.Namespace, recipe: Recipe, worlds: Worlds) -> Settings:
    mix, share = (None, 0.0) if given.mix is None else parse_mix(given.mix)
    return Settings(
        stage=given.stage, data=placed(given.data, worlds), recipe=asdict(recipe), seed=given.seed,
        save=given.save_every, sample=given.sample_every, validate=given.validate_every,
        validation=None if given.validation is None else placed(given.validation, worlds),
        audio_column=given.audio_column, caption_column=given.caption_column, skip_bad=given.skip_bad,
        mix=None if mix is None else placed(mix, worlds), mix_share=share,
        prompts=tuple(given.prompts or ()), keep_best=given.keep_best, keep_last=given.keep_last,
        patience=given.patience, on_full_disk=given.on_full_disk, tensorboard=given.tensorboard,
    )  # fmt: skip


def _is_free(out: Path) -> bool:
    """Whether a run can begin in a folder: it is empty, or a run was killed there before it had a model."""
    names = {path.name for path in out.iterdir() if not path.name.startswith(".audioldm2-")}
    if names == {"run.json"}:
        read_settings(out)  # raises if it is another program's
    return names <= {"run.json"}


def _report(sentences: list[str]) -> None:
    for sentence in sentences:
        report(sentence)
