"""The sounds of an evaluation: what is planned, what is there, and this process's share of the rest."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile

from audioldm2.audio import write_wav
from audioldm2.errors import ArgumentError
from audioldm2.evaluation.clap import Prompt, weights_digest
from audioldm2.files import atomic_write, safe_name
from audioldm2.options import GenerationOptions
from audioldm2.pipeline import AudioLDM2

AT_ONCE = 16  # prompts in a batch


@dataclass(frozen=True)
class Job:
    """A sound to generate."""

    prompt: Prompt
    group: int  # the prompt's place in the list
    seed: int
    file: Path


def plan(prompts: Sequence[Prompt], seeds: Sequence[int], folder: Path) -> list[Job]:
    """The sounds of an evaluation, seed by seed, in files FOLDER/SEED/PLACE-PROMPT.wav."""
    return [
        Job(prompt, place, seed, folder / str(seed) / f"{place:04d}-{safe_name(prompt.text, 60)}.wav")
        for seed in seeds
        for place, prompt in enumerate(prompts)
    ]


def rank_and_world(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number and the number of processes, as `torchrun` sets RANK and WORLD_SIZE.

    Raises:
        ArgumentError: they are not whole numbers with 0 <= RANK < WORLD_SIZE.
    """
    rank, world = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        given = f"is {rank!r} with WORLD_SIZE {world!r}"
        raise ArgumentError("RANK", rank, "be a whole number below WORLD_SIZE", given=given)
    return int(rank), int(world)


def settings_of(model: AudioLDM2, prompts: Sequence[Prompt], options: GenerationOptions) -> dict[str, Any]:
    """What decides how the sounds of an evaluation come out, for `require_same`."""
    names = sorted(model.networks.configs)
    return {
        "model": model.source,
        "weights": weights_digest(model.networks, names),
        "options": {
            name: value
            for name, value in asdict(options).items()
            if isinstance(value, (str, int, float, type(None)))
        },
        "prompts": [prompt.text for prompt in prompts],
    }


def require_same(file: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run, or raise ValueError where the file holds other ones.

    Sounds that are kept from an earlier run then belong to the same model, options and prompts.
    """
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found == json.loads(text):
            return
        differ = [
            name for name in settings if not isinstance(found, dict) or found.get(name) != settings[name]
        ]
        raise ValueError(
            f"{file.parent} holds the sounds of a run with other {' and '.join(differ) or 'settings'}; "
            "choose another folder for --out."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as draft:
        draft.write_text(text, encoding="utf-8")


def is_whole(file: Path, samples: int, within: int = 0) -> bool:
    """Whether a file is a sound of `samples` samples, give or take `within`."""
    try:
        return abs(soundfile.info(file).frames - samples) <= within
    except (soundfile.LibsndfileError, OSError):
        return False


def generate(
    model: AudioLDM2,
    jobs: Sequence[Job],
    options: GenerationOptions,
    report: Callable[[str], object],
    *,
    rank: int = 0,
    world: int = 1,
) -> list[Job]:
    """Generate the sounds that are not there yet, and of those every `world`th, from the `rank`th on.

    The share of a rank is decided by the place in the list, so that no sound is generated twice whatever is
    there already. Each file appears whole or not at all.

    Returns:
        The jobs whose sounds are missing afterwards: other ranks' work.
    """
    samples = model.sound.samples(options.audio_length_in_s or model.sound.default_seconds)
    share = [job for job in jobs[rank::world] if not is_whole(job.file, samples)]
    kept = len(jobs[rank::world]) - len(share)
    if kept:
        report(f"{kept} of {len(jobs[rank::world])} sounds are there already")
    for first in range(0, len(share), AT_ONCE):
        batch = share[first : first + AT_ONCE]
        result = model.generate(
            [job.prompt.text for job in batch], options=options, seed=[job.seed for job in batch]
        )
        for job, wave in zip(batch, result.audio[:, 0], strict=True):
            job.file.parent.mkdir(parents=True, exist_ok=True)
            write_wav(job.file, wave, model.sample_rate)
        report(f"generated {first + len(batch)} of {len(share)} sounds")
    return [job for job in jobs if not is_whole(job.file, samples)] if world > 1 else []
