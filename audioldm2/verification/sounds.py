"""Checks that make sounds: one through VAE and vocoder, the recorded ones, and those that CLAP scores."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.audio import vae_front_end, vae_log_mel
from audioldm2.editing.input_sound import log_mels
from audioldm2.pipeline import AudioLDM2
from audioldm2.verification.facts import Slice
from audioldm2.verification.finding import (
    FAILED,
    MEASURED,
    PASSED,
    SEND,
    Finding,
    Inapplicable,
    Progress,
)
from audioldm2.verification.prompts import PHONEMES, PROMPTS
from audioldm2.verification.readings import Reading, readings_of
from audioldm2.verification.statistics import mean_and_interval
from audioldm2.verification.subject import Subject

TOLERANCE = 1e-3  # of a recorded slice; the reference's own
SECONDS = 2.56  # of the synthetic sound
RANGE = math.log(1000)  # of a log-mel: what lies more than 60 dB below its peak counts as silence
LEAST_EXPLAINED = 0.5  # share of the log-mel's variance that VAE and vocoder of a trained model bring back
ROUND_TRIP_TOLERANCE = 0.02  # of that share, from one machine to another
AT_ONCE = 4  # prompts in a batch


# round_trip -------------------------------------------------------------------------------------------------


def round_trip(subject: Subject) -> Finding:
    """Send a chirp with clicks through the VAE and the vocoder, and compare its log-mel with what returns."""
    subject.require_runnable()
    vae, both = explained(subject.model())
    figures = {"explained by VAE": vae, "explained by VAE and vocoder": both, "bound": LEAST_EXPLAINED}
    words = f"A chirp with clicks comes back through the VAE with {vae:.0%}, and through VAE and vocoder with"
    words = f"{words} {both:.0%}, of the variance of its log-mel"
    facts = subject.facts
    if facts is not None and facts.round_trip is not None:
        figures["facts"] = facts.round_trip
        right = abs(both - facts.round_trip) <= ROUND_TRIP_TOLERANCE
        words += f"; a right copy brings back {facts.round_trip:.0%}"
    elif facts is None:
        words += f". Trained networks reach {LEAST_EXPLAINED:.0%}"
        return Finding("round_trip", MEASURED, f"{words}; this model is not known.", figures)
    else:
        right = min(vae, both) >= LEAST_EXPLAINED
        words += f"; at least {LEAST_EXPLAINED:.0%} is required"
    if right:
        return Finding("round_trip", PASSED, f"{words}.", figures)
    part = "vae" if vae < LEAST_EXPLAINED else "hifigan"
    return Finding(
        "round_trip",
        FAILED,
        f"{words}.",
        figures,
        (f"The loss begins at '{part}'.",),
        "The VAE or the vocoder computes something else than what it was trained for: every sound suffers.",
        f"See the checks tensors, settings and slices. If they pass: {SEND}",
    )


def synthetic_sound(sample_rate: int) -> Tensor:
    """A chirp from 150 to 2500 Hz with a click every half second: float32 (samples,), no randomness."""
    t = torch.arange(round(SECONDS * sample_rate), device="cpu", dtype=torch.float64) / sample_rate
    sweep = (2500 - 150) / (2 * SECONDS)
    wave = 0.3 * torch.sin(2 * math.pi * (150 * t + sweep * t * t))
    for start in (0.25, 0.75, 1.25, 1.75, 2.25):
        since = t - start
        click = (2 * math.pi * 1900 * since).sin().sign() + (2 * math.pi * 3100 * since).sin().sign()
        wave = wave + torch.where(since >= 0, 0.3 * torch.exp(-since.clamp(min=0) / 0.005) * click, 0.0)
    return wave.float()


def explained(model: AudioLDM2) -> tuple[float, float]:
    """The share of the variance of the synthetic sound's log-mel that comes back: by the VAE, and by both.

    1 is a perfect copy, 0 a constant one, below 0 worse than that.
    """
    wave = synthetic_sound(model.sample_rate)
    try:
        front_end = vae_front_end(model.sample_rate, model.sound.hop, model.sound.mels)
    except ValueError as error:
        raise Inapplicable(str(error)) from error
    given = log_mels(wave, None, model.sound)[:, 0]  # (1, time, mels)
    decoded = model.decode(model.encode_audio(wave))
    vocoded = model.vocode(decoded).float().cpu()[:, : given.shape[1] * model.sound.hop]
    returned = vae_log_mel(vocoded, front_end)
    return _explained(decoded.float().cpu(), given), _explained(returned, given)


def _explained(found: Tensor, given: Tensor) -> float:
    frames, floor = min(found.shape[1], given.shape[1]), given.max() - RANGE
    found, given = (each[:, :frames].clamp(min=floor) for each in (found, given))
    return 1 - ((found - given).square().mean() / given.var(correction=0)).item()


# slices -----------------------------------------------------------------------------------------------------


def slices(subject: Subject) -> Finding:
    """Generate the sounds of recorded slices with each reading, and see which one agrees."""
    facts = subject.facts
    if facts is None or not facts.slices:
        raise Inapplicable(
            f"no sound of {facts.name if facts else 'this architecture'} was recorded; its key lists, "
            "settings and round trip are all that is known."
        )
    subject.require_runnable()
    possible = readings_of(subject.checkpoint.configs["unet"], facts.heads)
    distances: dict[str, dict[str, float]] = {}
    progress = Progress("slices, sounds", len(possible) * len(facts.slices), subject.report)
    for reading in possible:
        model = subject.model(reading)
        distances[reading.name] = {}
        for recorded in facts.slices:
            found = slice_of(model, reading, recorded)
            difference = max(abs(a - b) for a, b in zip(found, recorded.values, strict=True))
            distances[reading.name][f"{recorded.sampler} {recorded.steps}"] = difference
            progress.add()
    figures = {"tolerance": TOLERANCE, "distance": distances, "reading that loads": possible[0].name}
    agreeing = [reading for reading in possible if max(distances[reading.name].values()) <= TOLERANCE]
    words = "; ".join(
        f"{reading.name} ({reading.what}) is off by {max(distances[reading.name].values()):.2g}"
        for reading in possible
    )
    settled = facts.heads is not None  # then only the reading that loads can be right
    if agreeing and (not settled or possible[0] in agreeing):
        summary = f"The sounds of {facts.name} come out with the reading '{agreeing[0].name}': {words}."
        return Finding("slices", PASSED, summary, figures, _other_default(agreeing, possible))
    if agreeing:
        problem = (
            f"The heads are wrong: '{agreeing[0].name}' ({agreeing[0].what}) gives the recorded sounds, "
            f"'{possible[0].name}' is what loads."
        )
        meaning = "The weights are right and the denoiser reads them with the wrong number of heads."
        advice = f"Convert it again with other --heads. If the conversion chose them: {SEND}"
        return Finding("slices", FAILED, f"{problem} {words}.", figures, (problem,), meaning, advice)
    problems = [f"No reading gives the sounds that were recorded of {facts.name}."]
    if not subject.is_settled:
        problems.append(
            f"If this is {subject.candidates[1].name}, of which no sound was recorded, say so with --as."
        )
    return Finding(
        "slices",
        FAILED,
        f"{words}; the tolerance is {TOLERANCE:g}.",
        figures,
        tuple(problems),
        "Some weight, setting or operation differs: swapped norms, another revision, a fine-tuned network, "
        "or a fault of this project on this processor.",
        f"Run it again with --device cpu and with AUDIOLDM2_OPS=reference. If both fail: {SEND}",
    )


def _other_default(agreeing: list[Reading], possible: list[Reading]) -> tuple[str, ...]:
    if possible[0] in agreeing:
        return ()
    return (
        f"What loads without heads= is '{possible[0].name}'; '{agreeing[0].name}' is what the reference ran.",
    )


def slice_of(model: AudioLDM2, reading: Reading, recorded: Slice) -> list[float]:
    """The samples of a recorded slice as this machine computes them."""
    if recorded.latents != model.sound.latents(1, recorded.latents[2]):  # of another architecture
        return [math.inf] * len(recorded.values)
    wave = recorded_sound(model, reading, recorded)
    return wave[recorded.first : recorded.first + len(recorded.values)].tolist()


def recorded_sound(model: AudioLDM2, reading: Reading, recorded: Slice) -> Tensor:
    """The sound that a slice was cut from: float32 (samples,)."""
    noise = np.random.RandomState(0).standard_normal(recorded.latents)
    options: dict[str, Any] = dict(
        sampler=recorded.sampler, num_inference_steps=recorded.steps, guidance_scale=recorded.guidance
    )
    with exact_products():
        latents = torch.from_numpy(noise).float()
        options |= {"phonemes": _phonemes(model), **dict(reading.options)}
        result = model.generate(recorded.prompt, latents=latents, **options)
    return result.audio[0, 0]


def _phonemes(model: AudioLDM2) -> str | None:
    """What a speech model says; None for another."""
    return PHONEMES if model.speaks else None


@contextmanager
def exact_products() -> Iterator[None]:
    """Convolutions on CUDA in float32, not in the shorter TF32 that cuDNN takes by default."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


# heads ------------------------------------------------------------------------------------------------------


def heads(subject: Subject) -> Finding:
    """Score the same prompts and seeds with each reading of the heads; the paired difference decides."""
    if subject.given is not None and subject.given.heads is not None:
        raise Inapplicable("the facts settle the heads; the check settings compares them.")
    subject.require("clap_text", "clap_audio")
    subject.require_runnable()
    possible = readings_of(subject.checkpoint.configs["unet"])
    if len(possible) < 2:
        raise Inapplicable(f"only one reading is possible: {possible[0].name}, {possible[0].what}.")
    effort = subject.effort
    prompts, seeds = PROMPTS[: effort.prompts], range(effort.seeds)
    count = len(prompts) * len(seeds)
    subject.report(f"heads: {len(possible) * count} sounds of {effort.steps} steps; the first show the time")
    progress = Progress("heads, sounds", len(possible) * count, subject.report)
    scores = {reading.name: _scores(subject, reading, prompts, seeds, progress) for reading in possible}
    means = {name: each.mean().item() for name, each in scores.items()}
    differences, answers = {}, []
    for other in possible[1:]:
        # Over seeds the mean counts: another seed is no new prompt.
        by_prompt = (scores[other.name] - scores[possible[0].name]).mean(dim=1)  # (prompts,)
        mean, low, high = mean_and_interval(by_prompt.tolist())
        name = f"{other.name} - {possible[0].name}"
        differences[name] = {"mean": mean, "95 % interval": [low, high]}
        answers.append(
            f"{name} is {mean:+.4f} [{low:+.4f}, {high:+.4f}]: {_answer(low, high, possible[0], other)}"
        )
    figures = {
        "prompts": len(prompts),
        "seeds": len(seeds),
        "steps": effort.steps,
        "CLAP score": means,
        "differences": differences,
        "scores": {name: each.tolist() for name, each in scores.items()},
    }
    words = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    if any(math.isnan(value) for value in means.values()):
        summary = f"Some sounds have no CLAP score: {words}."
        meaning = "A sound, or CLAP's vector of it, is not finite."
        return Finding(
            "heads", FAILED, summary, figures, meaning=meaning, advice=f"See contents and half. {SEND}"
        )
    summary = f"CLAP score of {count} sounds: {words}; {'; '.join(answers)}."
    return Finding("heads", MEASURED, summary, figures, advice=f"{SEND} This figure is wanted.")


def _answer(low: float, high: float, first: Reading, other: Reading) -> str:
    if low <= 0 <= high or math.isnan(low):
        return "they cannot be told apart; more prompts or seeds would narrow the interval"
    better = other if low > 0 else first
    return f"'{better.name}' ({better.what}) fits prompts better"


def _score(model: AudioLDM2, texts: list[str], audio: Tensor) -> Tensor:
    """CLAP's cosine of each sound and its text, NaN for a sound that is not finite: (sounds,)."""
    assert model.clap_tokenizer is not None, "require_runnable has seen to it"
    networks, rate = model.networks, model.sample_rate
    return clap_score.score_sounds(networks, model.clap_tokenizer, model.clap_mel, texts, audio, rate)[0]


def _scores(
    subject: Subject, reading: Reading, prompts: tuple[str, ...], seeds: range, progress: Progress
) -> Tensor:
    """CLAP scores of one reading: (prompts, seeds)."""
    model, columns = subject.model(reading, dtype="auto"), []
    for seed in seeds:
        column = []
        for first in range(0, len(prompts), AT_ONCE):
            texts = list(prompts[first : first + AT_ONCE])
            result = model.generate(
                texts,
                seed=seed,
                phonemes=_phonemes(model),
                sampler="ddim",
                num_inference_steps=subject.effort.steps,
                **dict(reading.options),
            )
            column.append(_score(model, texts, result.audio[:, 0]))
            progress.add(len(texts))
        columns.append(torch.cat(column))
    return torch.stack(columns, dim=1)
