"""A request: options and prompts, resolved against one model."""

import math
import secrets
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import DEFAULT_SECONDS, MAX_SECONDS
from audioldm2.errors import ArgumentError, require_texts
from audioldm2.options import LARGEST_SEED, GenerationOptions, negatives, require_float_tensor
from audioldm2.sampling.schedule import NoiseSchedule


@dataclass(frozen=True)
class SoundShape:
    """How seconds become latent frames and samples in a model."""

    sample_rate: int  # Hz
    hop: int  # samples to one mel frame
    downsampling: int  # mel frames, and bands, to one latent frame or band
    latent_channels: int
    mels: int
    default_seconds: float = DEFAULT_SECONDS  # of a sound, where nobody says

    def latent_frames(self, seconds: float) -> int:
        """Whole mel frames in so many seconds, raised to whole latent frames; rounded as in the reference."""
        return math.ceil(int(seconds / (self.hop / self.sample_rate)) / self.downsampling)

    def samples(self, seconds: float) -> int:
        return int(seconds * self.sample_rate)

    def seconds(self, latent_frames: int) -> float:
        return latent_frames * self.downsampling * self.hop / self.sample_rate

    def latents(self, batch: int, latent_frames: int) -> tuple[int, int, int, int]:
        """(batch, channels, time, mel) of a batch of latents."""
        return (batch, self.latent_channels, latent_frames, self.mels // self.downsampling)

    def require_latents(self, latents: Any, prompts: int) -> Tensor:
        """Latents that `denoise` can start from, for so many encoded prompts; ArgumentError for others."""
        require_float_tensor("latents", latents)
        _, channels, _, mel = self.latents(1, 1)
        shape = tuple(latents.shape)
        if len(shape) != 4 or shape[1] != channels or shape[3] != mel or shape[2] < 1:
            wanted = f"have shape (batch, {channels}, time, {mel}) for this model"
            raise ArgumentError("latents", latents, wanted, given=f"has shape {shape}")
        if prompts < 1:
            raise ArgumentError("conditioning", prompts, "have one for each prompt", given="has no rows")
        if shape[0] < 1 or shape[0] % prompts:
            wanted = f"have a multiple of {prompts}, the rows of the conditioning"
            raise ArgumentError("latents", latents, wanted, given=f"has {shape[0]} rows")
        return latents


@dataclass(frozen=True, eq=False)
class Request:
    """A request that a model can meet; every default is filled in."""

    prompts: list[str]
    negative_prompts: list[str]  # one per prompt
    seconds: float
    latent_frames: int
    seeds: list[int]  # one per prompt; candidate i of a prompt is drawn from its seed + i
    options: GenerationOptions

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
        """
        prompts = require_texts("prompt", prompt)
        options.check_schedule(schedule)
        seconds = _length(options, sound)
        frames = sound.latent_frames(seconds)
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
        return options | {"audio_length_in_s": self.seconds, "starting_latents_given": given}


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
