"""A request: options and prompts, resolved against one model."""

import secrets
from dataclasses import dataclass, fields
from typing import Any

import torch

from audioldm2.audio import MAX_SECONDS
from audioldm2.edit_options import EditOptions
from audioldm2.editing.edit import EDITING_OPTIONS, Edit
from audioldm2.editing.text_edit import TextEdit
from audioldm2.errors import ArgumentError, require_texts
from audioldm2.options import LARGEST_SEED, GenerationOptions, negatives
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape


@dataclass(frozen=True, eq=False)
class Request:
    """A request that a model can meet; every default is filled in."""

    prompts: list[str]
    negative_prompts: list[str]  # one per prompt
    seconds: float
    latent_frames: int
    seeds: list[int]  # one per prompt; candidate i of a prompt is drawn from its seed + i
    options: GenerationOptions
    edit: Edit | TextEdit | None = None  # what happens to a given sound

    @property
    def candidates(self) -> int:
        """Sounds per prompt."""
        return self.options.num_waveforms_per_prompt

    @staticmethod
    def resolve(
        prompt: Any, options: GenerationOptions, sound: SoundShape, schedule: NoiseSchedule
    ) -> "Request":
        """Fill in what depends on the model and the number of prompts.

        Raises:
            ArgumentError: the model cannot meet these options.
            OSError: the file of `audio` cannot be opened.
        """
        prompts = require_texts("prompt", prompt)
        options.check_schedule(schedule)
        edit = Edit.resolve(options, sound, schedule, len(prompts) * options.num_waveforms_per_prompt)
        seconds = edit.seconds if edit else _length(options, sound)
        frames = edit.frames if edit else sound.latent_frames(seconds)
        if options.latents is not None:
            given = tuple(options.latents.shape)
            shape = sound.latents(len(prompts) * options.num_waveforms_per_prompt, frames)
            if given != shape:
                wanted = f"have shape {shape} for {seconds:g} seconds of these prompts and waveforms"
                raise ArgumentError("latents", options.latents, wanted, given=f"has shape {given}")
        return Request(
            prompts=prompts,
            negative_prompts=negatives(options.negative_prompt, len(prompts)),
            seconds=seconds,
            latent_frames=frames,
            seeds=_seeds(options, len(prompts)),
            options=options,
            edit=edit,
        )

    @staticmethod
    def resolve_edit(
        audio: Any, prompt: Any, options: EditOptions, sound: SoundShape, schedule: NoiseSchedule
    ) -> "Request":
        """The same for an edit by text; see `TextEdit.resolve`."""
        prompts = require_texts("prompt", prompt)
        target = options.target()
        edit = TextEdit.resolve(audio, options, sound, schedule)
        return Request(
            prompts=prompts,
            negative_prompts=negatives(target.negative_prompt, len(prompts)),
            seconds=edit.seconds,
            latent_frames=edit.frames,
            seeds=_seeds(target, len(prompts)),
            options=target,
            edit=edit,
        )

    def generators(self) -> list[torch.Generator]:
        """One generator per sound, on the CPU, so that a seed means the same on every device."""
        return [
            torch.Generator("cpu").manual_seed((seed + candidate) % (LARGEST_SEED + 1))
            for seed in self.seeds
            for candidate in range(self.candidates)
        ]

    def record(self) -> dict[str, Any]:
        """The options as plain values, for JSON; what was resolved replaces what was asked."""
        options = {each.name: getattr(self.options, each.name) for each in fields(self.options)}
        given = options.pop("latents") is not None
        options |= {"audio_length_in_s": self.seconds, "starting_latents_given": given}
        for name in EDITING_OPTIONS:
            del options[name]
        return options | (self.edit.record() if self.edit else {})


def _length(options: GenerationOptions, sound: SoundShape) -> float:
    """Seconds: as asked, else those of the given latents, else the model's own."""
    seconds, latents = options.audio_length_in_s, options.latents
    if seconds is None:
        if latents is not None and latents.ndim == 4 and latents.shape[2] > 0:
            return sound.seconds(latents.shape[2])
        return sound.default_seconds
    if sound.latent_frames(seconds) < 1:
        least = sound.hop / sound.sample_rate
        raise ArgumentError("audio_length_in_s", seconds, f"be from {least:g} to {MAX_SECONDS:g} seconds")
    return seconds


def _seeds(options: GenerationOptions, prompts: int) -> list[int]:
    """One per prompt."""
    seed = options.seed
    if seed is None:
        return [secrets.randbelow(2**31)] * prompts
    if not isinstance(seed, list):
        return [seed] * prompts
    if len(seed) != prompts:
        given = f"has {len(seed)} entries for {prompts} prompts"
        raise ArgumentError("seed", seed, "have one for each prompt, or be one for all", given=given)
    return seed
