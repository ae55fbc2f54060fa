"""The sounds of a request, with their latents, spectrograms and scores; their record and their files."""

import os
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioldm2.audio import write_wav
from audioldm2.clap_score import best_first
from audioldm2.options import LARGEST_SEED
from audioldm2.request import Request


@dataclass(frozen=True, repr=False)
class Result:
    """The sounds of one request."""

    audio: Tensor  # float32 (prompts, waveforms, samples) on the CPU, best candidate first
    sample_rate: int  # Hz
    scores: Tensor | None  # (prompts, waveforms), CLAP's cosine of sound and prompt; None: not ranked
    seeds: list[list[int]]  # (prompts, waveforms); each, with one waveform, reproduces its sound
    latents: Tensor  # (prompts * waveforms, channels, time, mel), clean, in the order of `audio`
    mel: Tensor  # (prompts * waveforms, time, mels), log-mel spectrograms, in the order of `audio`
    request: Request
    model: dict[str, Any]  # `AudioLDM2.describe` of the model

    @classmethod
    def ranked(
        cls,
        audio: Tensor,
        latents: Tensor,
        mel: Tensor,
        scores: Tensor | None,
        sample_rate: int,
        request: Request,
        model: dict[str, Any],
    ) -> "Result":
        """Order the sounds of each prompt by score.

        Args:
            audio, latents, mel: (prompts * waveforms, ...), in the order of generation.
            scores: (prompts * waveforms,); None keeps that order.
            sample_rate: Hz.
            request: what was asked for.
            model: `AudioLDM2.describe`.
        """
        prompts, waveforms = len(request.prompts), request.candidates
        order = torch.arange(waveforms, device=audio.device).repeat(prompts, 1)  # (prompts, waveforms)
        if scores is not None:
            scores = scores.unflatten(0, (prompts, waveforms))
            order = best_first(scores)
            scores = scores.gather(1, order)
        rows = (order + torch.arange(prompts, device=audio.device)[:, None] * waveforms).flatten()
        return cls(
            audio=audio[rows].unflatten(0, (prompts, waveforms)),
            sample_rate=sample_rate,
            scores=scores,
            seeds=[  # after the largest comes 0, as in `Request.generators`
                [(seed + place) % (LARGEST_SEED + 1) for place in places]
                for seed, places in zip(request.seeds, order.tolist(), strict=True)
            ],
            latents=latents[rows.to(latents.device)],
            mel=mel[rows.to(mel.device)],
            request=request,
            model=model,
        )

    def __repr__(self) -> str:
        prompts, waveforms, samples = self.audio.shape
        length = f"{samples / self.sample_rate:g} s at {self.sample_rate} Hz"
        return f"<Result: {prompts} x {waveforms} sounds of {length}, seeds {self.seeds}>"

    def of_prompt(self, prompt: int) -> "Result":
        """Select the sounds of one prompt, as a result of its own."""
        rows = slice(prompt * self.request.candidates, (prompt + 1) * self.request.candidates)
        one, timelines = slice(prompt, prompt + 1), self.request.timelines
        return replace(
            self,
            audio=self.audio[one],
            scores=None if self.scores is None else self.scores[one],
            seeds=self.seeds[one],
            latents=self.latents[rows],
            mel=self.mel[rows],
            request=replace(
                self.request,
                prompts=self.request.prompts[one],
                negative_prompts=self.request.negative_prompts[one],
                seeds=self.request.seeds[one],
                timelines=timelines and timelines[one],
                transcriptions=self.request.transcriptions and self.request.transcriptions[one],
                phonemes=self.request.phonemes and self.request.phonemes[one],
                pronounced_by=self.request.pronounced_by and self.request.pronounced_by[one],
                sound_prompts=self.request.sound_prompts and self.request.sound_prompts[one],
            ),
        )

    def save(self, path: str | os.PathLike) -> list[Path]:
        """Write the best sound of each prompt, each completely or not at all.

        Args:
            path: a file that ends in .wav, .flac or .ogg; existing files are replaced. Several prompts give
                `name-1.wav`, `name-2.wav`, ...

        Returns:
            The files written.

        Raises:
            ValueError: another ending.
            OSError: from the system, unchanged.
        """
        path = Path(path)
        count = len(self.audio)
        paths = [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]
        for place, target in zip(range(count), paths, strict=True):
            write_wav(target, self.audio[place, 0], self.sample_rate)
        return paths

    def record(self, prompt: int = 0) -> dict[str, Any]:
        """Every setting of the sounds of one prompt, as plain values for a JSON file.

        "seed" is that of the best sound: with one waveform per prompt and the other settings it gives this
        sound again.
        """
        request, seeds = self.request, self.seeds[prompt]
        scores = [None] * len(seeds) if self.scores is None else list(map(_rounded, self.scores[prompt]))
        candidates = [{"seed": seed, "score": score} for seed, score in zip(seeds, scores, strict=True)]
        return {
            **settings_of(request, self.model, self.sample_rate, prompt),
            **candidates[0],
            "other_candidates": candidates[1:],
        }


def settings_of(request: Request, model: dict[str, Any], sample_rate: int, prompt: int = 0) -> dict[str, Any]:
    """The record of a prompt's sounds but for the seed and the score of each; known before they are."""
    return {
        "audioldm2": package_version(),
        **model,
        "prompt": request.prompt_record(prompt),
        **request.speech_record(prompt),
        **request.sound_prompt_record(prompt),
        **request.record(),
        "negative_prompt": request.negative_prompts[prompt],
        "sample_rate": sample_rate,
    }


def _rounded(score: Tensor) -> float | None:
    """JSON has no NaN."""
    return round(score.item(), 6) if score.isfinite() else None


def package_version() -> str:
    try:
        return version("audioldm2")
    except PackageNotFoundError:  # run from a clone that is not installed
        return "unknown"
