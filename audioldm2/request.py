"""A request: options and prompts, resolved against one model."""

import secrets
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import MAX_SECONDS
from audioldm2.edit_options import EditOptions
from audioldm2.editing.edit import EDITING_OPTIONS, Edit
from audioldm2.editing.text_edit import TextEdit
from audioldm2.errors import ArgumentError, require_texts
from audioldm2.options import (
    LARGEST_SEED,
    SOUND_PROMPT_OPTIONS,
    SPEECH_OPTIONS,
    GenerationOptions,
    for_each,
    negatives,
)
from audioldm2.prompt.timeline import Span, Timeline, described, read_timelines, shares
from audioldm2.prompt.timeline import seconds as end_of
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sampling.windows import Windows
from audioldm2.sound_prompt import SoundPrompt, read_sound_prompts, texts_beside
from audioldm2.sound_shape import SoundShape


@dataclass(frozen=True, eq=False)
class Request:
    """A request that a model can meet; every default is filled in."""

    prompts: list[str]  # one per sound; of a timeline, a description
    negative_prompts: list[str]  # one per prompt
    seconds: float
    latent_frames: int
    seeds: list[int]  # one per prompt; candidate i of a prompt is drawn from its seed + i
    options: GenerationOptions
    transcriptions: list[str] | None = None  # one per prompt, where those were given
    phonemes: list[str] | None = None  # one per prompt, of a speech model
    pronounced_by: list[str] | None = None  # the same, of transcriptions: "table", or espeak with its version
    edit: Edit | TextEdit | None = None  # what happens to a given sound
    timelines: list[Timeline] | None = None  # one per sound, where those were asked for
    sound_prompts: list[SoundPrompt] | None = None  # one per prompt, where those were given
    windows: Windows | None = None  # in which sounds are denoised; None: whole, each by one prompt

    @property
    def candidates(self) -> int:
        """Sounds per prompt."""
        return self.options.num_waveforms_per_prompt

    @property
    def sounds(self) -> int:
        """Sounds of all prompts."""
        return len(self.prompts) * self.candidates

    @property
    def denoises(self) -> bool:
        """Whether the denoiser runs; it does not where a given sound keeps all of itself."""
        return self.edit is None or self.edit.denoises

    @property
    def heard_sounds(self) -> list[SoundPrompt] | None:
        """The sound prompts; None where not one vector of theirs counts."""
        return None if self.options.heard == 0 else self.sound_prompts

    def texts(self, negative: bool = False) -> list[str]:
        """The texts of all timelines, or for each of them the negative prompt of its sound."""
        pairs = zip(self.spans, self.negative_prompts, strict=True)
        return [against if negative else span.text for timeline, against in pairs for span in timeline]

    def shares(self, sound: SoundShape) -> list[Tensor]:
        """Per sound, how much each of its texts counts at each latent frame: (texts, frames)."""
        return [
            shares(timeline, self.latent_frames, sound.seconds(1), self.options.loop)
            for timeline in self.spans
        ]

    @property
    def spans(self) -> list[Timeline]:
        """The timeline of each sound; a plain prompt lasts from the start to the end."""
        return self.timelines or [(Span(text, 0.0, self.seconds),) for text in self.prompts]

    @staticmethod
    def resolve(
        prompt: Any, options: GenerationOptions, sound: SoundShape, schedule: NoiseSchedule
    ) -> "Request":
        """Fill in what depends on the model and the number of prompts.

        Raises:
            ArgumentError: the model cannot meet these options.
            OSError: the file of `audio`, or of a sound prompt, cannot be opened.
        """
        prompt = texts_beside(options) if prompt is None else prompt
        timelines = read_timelines(prompt, sound.seconds(1), MAX_SECONDS)
        prompts = [described(each) for each in timelines] if timelines else require_texts("prompt", prompt)
        options.check_schedule(schedule)
        edit = Edit.resolve(options, sound, schedule, len(prompts) * options.num_waveforms_per_prompt)
        if edit is not None:
            _check_edit(options, prompt, timelines)
        seconds = edit.seconds if edit else _length(options, sound, timelines)
        frames = edit.frames if edit else sound.latent_frames(seconds)
        if options.loop:
            seconds = sound.seconds(frames)
        windows = sound.windows(options, frames)
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
            transcriptions=for_each("transcription", options.transcription, len(prompts)),
            phonemes=for_each("phonemes", options.phonemes, len(prompts)),
            edit=edit,
            timelines=timelines,
            sound_prompts=read_sound_prompts(options, len(prompts), sound.sample_rate),
            windows=None if timelines is None and windows.whole else windows,
        )

    @staticmethod
    def resolve_edit(
        audio: Any, prompt: Any, options: EditOptions, sound: SoundShape, schedule: NoiseSchedule
    ) -> "Request":
        """The same for an edit by text; see `TextEdit.resolve`."""
        prompts = require_texts("prompt", prompt)
        target = options.target()
        edit = TextEdit.resolve(audio, options, sound, schedule)
        windows = sound.windows(target, edit.frames)
        return Request(
            prompts=prompts,
            negative_prompts=negatives(target.negative_prompt, len(prompts)),
            seconds=edit.seconds,
            latent_frames=edit.frames,
            seeds=_seeds(target, len(prompts)),
            options=target,
            edit=edit,
            windows=None if windows.whole else windows,
        )

    def generators(self) -> list[torch.Generator]:
        """One generator per sound, on the CPU, so that a seed means the same on every device."""
        return [
            torch.Generator("cpu").manual_seed((seed + candidate) % (LARGEST_SEED + 1))
            for seed in self.seeds
            for candidate in range(self.candidates)
        ]

    def prompt_record(self, prompt: int) -> str | list[list[Any]]:
        """A text, or the entries of a timeline, for JSON."""
        return self.prompts[prompt] if self.timelines is None else list(map(list, self.timelines[prompt]))

    def speech_record(self, prompt: int) -> dict[str, str | None]:
        """What is spoken for a prompt, for JSON; nothing of a model that cannot speak."""
        if self.phonemes is None:
            return {}
        given = self.transcriptions[prompt] if self.transcriptions else None
        by = self.pronounced_by[prompt] if self.pronounced_by else None
        return {"transcription": given, "phonemes": self.phonemes[prompt], "pronounced_by": by}

    def sound_prompt_record(self, prompt: int) -> dict[str, Any]:
        """The sound prompt of a prompt, for JSON; nothing without one."""
        if self.sound_prompts is None:
            return {}
        return {"audio_prompt": self.sound_prompts[prompt].record, "heard": self.options.heard}

    def record(self) -> dict[str, Any]:
        """The options as plain values, for JSON; what was resolved replaces what was asked."""
        options = {each.name: getattr(self.options, each.name) for each in fields(self.options)}
        given = options.pop("latents") is not None
        options |= {"audio_length_in_s": self.seconds, "starting_latents_given": given}
        for name in (*EDITING_OPTIONS, *SPEECH_OPTIONS, *SOUND_PROMPT_OPTIONS):
            del options[name]
        if self.windows is not None:
            options["windows"] = len(self.windows.starts)
        return options | (self.edit.record() if self.edit else {})


def _check_edit(options: GenerationOptions, prompt: Any, timelines: list[Timeline] | None) -> None:
    """What cannot begin with a sound."""
    if options.loop:
        raise ArgumentError("loop", True, "be left out with audio, whose start and end do not join")
    if timelines is not None:
        raise ArgumentError("prompt", prompt, "be a text or texts with audio", given="is a timeline")


def _length(options: GenerationOptions, sound: SoundShape, timelines: list[Timeline] | None) -> float:
    """Seconds: those of a timeline, else as asked, else those of the given latents, else the model's own."""
    seconds, latents = options.audio_length_in_s, options.latents
    if timelines is not None:
        end = end_of(timelines[0])
        looped = sound.seconds(sound.latent_frames(end)) if options.loop else end  # what its record says
        if seconds not in (None, end, looped):
            raise ArgumentError(
                "audio_length_in_s", seconds, f"be left out, or {end:g} as the timeline's end"
            )
        return end
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
        return [drawn_seed()] * prompts
    if not isinstance(seed, list):
        return [seed] * prompts
    if len(seed) != prompts:
        given = f"has {len(seed)} entries for {prompts} prompts"
        raise ArgumentError("seed", seed, "have one for each prompt, or be one for all", given=given)
    return seed


def drawn_seed() -> int:
    """A seed that nobody knows before."""
    return secrets.randbelow(2**31)
