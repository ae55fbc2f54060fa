"""What a caller asks for, checked and made explicit before any network runs."""

import math
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import LONGEST_SECONDS, USUAL_SECONDS
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule

LARGEST_SEED = 2**63 - 1


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class SoundShape:
    """How seconds become latent frames and samples in a model."""

    sample_rate: int  # Hz
    hop: int  # samples to one mel frame
    downsampling: int  # mel frames, and bands, to one latent frame or band
    latent_channels: int
    mels: int
    usual_seconds: float = USUAL_SECONDS  # of a sound, where nobody says

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


@dataclass(frozen=True)
class Request:
    """A valid request; every default is filled in."""

    prompts: list[str]
    negative_prompts: list[str]
    seconds: float
    latent_frames: int
    steps: int
    guidance_scale: float
    candidates: int  # sounds for each prompt
    sampler: str
    eta: float
    karras: bool
    guidance_interval: tuple[float, float] | None
    guidance_rescale: float
    seeds: list[int]  # one a prompt; candidate i of a prompt is drawn from its seed + i
    latents: Tensor | None  # starting noise, (prompts * candidates, channels, time, mel)

    @property
    def guided(self) -> bool:
        """Guidance is off at scales up to 1, as in the reference."""
        return self.guidance_scale > 1

    def generators(self) -> list[torch.Generator]:
        """All randomness of each sound: on the CPU, so that a seed means the same on every device."""
        return [
            torch.Generator().manual_seed((seed + candidate) % (LARGEST_SEED + 1))
            for seed in self.seeds
            for candidate in range(self.candidates)
        ]

    @staticmethod
    def check(
        shape: SoundShape,
        schedule: NoiseSchedule,
        *,
        prompt: Any,
        negative_prompt: Any,
        audio_length_in_s: Any,
        num_inference_steps: Any,
        guidance_scale: Any,
        num_waveforms_per_prompt: Any,
        sampler: Any,
        eta: Any,
        karras: Any,
        guidance_interval: Any,
        guidance_rescale: Any,
        seed: Any,
        latents: Any,
    ) -> "Request":
        """A Request from the arguments of `AudioLDM2.generate`.

        Raises ValueError: the name, the value, what is allowed.
        """
        prompts = texts("prompt", prompt)
        candidates = whole("num_waveforms_per_prompt", num_waveforms_per_prompt, 1)
        if latents is not None:
            _demand_noise(latents)
        seconds = _seconds(shape, audio_length_in_s, latents)
        frames = shape.latent_frames(seconds)
        if latents is not None:
            _check_latents(latents, shape.latents(len(prompts) * candidates, frames), seconds)
        check_denoising(
            schedule,
            num_inference_steps,
            sampler,
            eta,
            karras,
            guidance_scale,
            guidance_interval,
            guidance_rescale,
        )
        return Request(
            prompts=prompts,
            negative_prompts=negatives(negative_prompt, len(prompts)),
            seconds=seconds,
            latent_frames=frames,
            steps=int(num_inference_steps),
            guidance_scale=float(guidance_scale),
            candidates=candidates,
            sampler=sampler,
            eta=float(eta),
            karras=karras,
            guidance_interval=guidance_interval and _finite_interval(guidance_interval),
            guidance_rescale=float(guidance_rescale),
            seeds=_seeds(seed, len(prompts)),
            latents=latents,
        )


def check_denoising(
    schedule: NoiseSchedule,
    num_inference_steps: Any,
    sampler: Any,
    eta: Any,
    karras: Any,
    guidance_scale: Any,
    guidance_interval: Any,
    guidance_rescale: Any,
) -> None:
    """Raise ValueError unless these are arguments that `AudioLDM2.denoise` can meet."""
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise ValueError(
            f"sampler is {shown(sampler)}, which is not known; choose one of {', '.join(SAMPLERS)}."
        )
    least = SAMPLERS[sampler].min_steps
    steps = whole("num_inference_steps", num_inference_steps, least, schedule.steps)
    if not isinstance(karras, bool):
        raise ValueError(f"karras is {shown(karras)}; it has to be True or False.")
    SAMPLERS[sampler].check(schedule, steps, number("eta", eta), karras)
    number("guidance_scale", guidance_scale)
    if not 0 <= number("guidance_rescale", guidance_rescale) <= 1:
        raise ValueError(
            f"guidance_rescale is {shown(guidance_rescale)}; it has to be between 0 (off) and 1."
        )
    if guidance_interval is not None:
        pair = guidance_interval if isinstance(guidance_interval, (list, tuple)) else ()
        if len(pair) != 2 or not 0 <= number("guidance_interval[0]", pair[0]) < _maybe_infinite(pair[1]):
            raise ValueError(
                f"guidance_interval is {shown(guidance_interval)}; it has to be two numbers (lo, hi) "
                "with 0 <= lo < hi: the noise-to-signal ratios sigma between which guidance is on."
            )


def texts(name: str, value: Any) -> list[str]:
    """One text or a non-empty list of texts, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} is {shown(value)}; it has to be a text or a list of texts.")
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one text.")
    for place, text in enumerate(value):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{place}] is {shown(text)}; every entry has to be a text.")
    return list(value)


def negatives(value: Any, prompts: int) -> list[str]:
    """A negative prompt for each prompt: none means the empty text, and a single one serves all."""
    if value is None or isinstance(value, str):
        return [value or ""] * prompts
    found = texts("negative_prompt", value)
    if len(found) != prompts:
        raise ValueError(
            f"negative_prompt has {len(found)} entries and prompt has {prompts}; "
            "give one for each prompt, or a single text for all."
        )
    return found


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within bounds, Python's or NumPy's."""
    allowed = (
        f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    )
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or value < least
        or (most is not None and value > most)
    ):
        raise ValueError(f"{name} is {shown(value)}; it has to be {allowed}.")
    return int(value)


def number(name: str, value: Any) -> float:
    """A finite number, Python's or NumPy's, as a float."""
    found = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number beyond all floats
            found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{name} is {shown(value)}; it has to be a finite number.")
    return found


def shown(value: Any) -> str:
    """A value in a message: at most 80 characters."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} too long to show"


def _maybe_infinite(value: Any) -> float:
    return (
        math.inf if isinstance(value, Real) and value == math.inf else number("guidance_interval[1]", value)
    )


def _seconds(shape: SoundShape, value: Any, latents: Any) -> float:
    if value is None and latents is not None and latents.ndim == 4 and latents.shape[2] > 0:
        return shape.seconds(latents.shape[2])
    if value is None:
        return shape.usual_seconds
    seconds = number("audio_length_in_s", value)
    if not 0 < seconds <= LONGEST_SECONDS or shape.latent_frames(seconds) < 1:
        raise ValueError(
            f"audio_length_in_s is {shown(value)}; it has to be from {shape.hop / shape.sample_rate:g} "
            f"to {LONGEST_SECONDS:g} seconds."
        )
    return seconds


def _demand_noise(latents: Any) -> None:
    if not isinstance(latents, Tensor):
        raise ValueError(
            f"latents is a {type(latents).__name__}; it has to be a float tensor, "
            "(prompts * waveforms, channels, time, mel)."
        )
    if latents.dtype not in FLOATS:
        raise ValueError(f"latents has dtype {latents.dtype}; it has to be a float tensor.")
    if latents.layout != torch.strided or latents.is_nested or latents.is_meta:
        raise ValueError("latents is sparse, nested or without data; it has to be an ordinary float tensor.")


def _finite_interval(interval: Sequence[float]) -> tuple[float, float]:
    """An upper end of infinity as the largest number, so that a record of it is valid JSON."""
    return float(interval[0]), min(float(interval[1]), sys.float_info.max)


def check_noise(latents: Any, shape: SoundShape, rows: int) -> None:
    """Raise ValueError unless `AudioLDM2.denoise` can start from these latents, for `rows` prompts."""
    _demand_noise(latents)
    _, channels, _, mel = shape.latents(1, 1)
    if latents.ndim != 4 or latents.shape[1] != channels or latents.shape[3] != mel or latents.shape[2] < 1:
        raise ValueError(
            f"latents has shape {tuple(latents.shape)}; this model's are (batch, {channels}, time, {mel})."
        )
    if rows < 1:
        raise ValueError("conditioning has no rows; it has to have one for each prompt.")
    if latents.shape[0] < 1 or latents.shape[0] % rows:
        raise ValueError(
            f"latents has {latents.shape[0]} rows; a conditioning of {rows} needs a multiple of {rows}."
        )
    if not latents.isfinite().all():
        raise ValueError("latents holds values that are not finite.")


def _check_latents(latents: Tensor, shape: tuple[int, ...], seconds: float) -> None:
    if tuple(latents.shape) != shape:
        raise ValueError(
            f"latents has shape {tuple(latents.shape)}; "
            f"{seconds:g} seconds of these prompts and waveforms need {shape}, "
            "that is (prompts * waveforms, channels, time, mel)."
        )
    if not latents.isfinite().all():
        raise ValueError("latents holds values that are not finite.")


def _seeds(value: Any, prompts: int) -> list[int]:
    if value is None:
        return [secrets.randbelow(2**31)] * prompts
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if len(value) != prompts:
            raise ValueError(
                f"seed has {len(value)} entries and prompt has {prompts}; give one for each, or one for all."
            )
        return [whole(f"seed[{place}]", each, 0, LARGEST_SEED) for place, each in enumerate(value)]
    return [whole("seed", value, 0, LARGEST_SEED)] * prompts
