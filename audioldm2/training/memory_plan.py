"""Settings with which a stage fits into some memory: `audioldm2 train --fit 8GB`.

`peak` computes what a recipe takes, from a rehearsal of the stage (rehearsal.py) and a few rules for what a
rehearsal does not show. `fit` tries the settings that save memory, the cheapest first, and takes the first
that fit; it never undoes what the recipe wants:

1. `cache_gb`: frozen networks are freed once the cache holds what they compute. Costs disk space.
2. `accumulate`: a batch in 2, 4, 8 ... parts. Costs little time where one clip keeps the device busy.
3. `recompute`: each layer of the denoiser runs twice. Costs about a third more time.
4. `bf16` (or `fp16`, where the device has no bfloat16): half of the activations. Rounds.
5. `frozen_bf16`: half of the frozen weights. Rounds them.

With each of 3 to 5, the batch is divided into as few parts as fit.

The figures are meant as an upper bound: on a GPU of its memory, on a CPU of the resident memory of the
process. Samples (`--sample-every`) are left out: they load the saved model beside the one in training.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError
from audioldm2.training.cache import SUFFIX, training_cache
from audioldm2.training.conditioned import CACHED
from audioldm2.training.data import Captioned, decoded_bytes, distinct
from audioldm2.training.ldm import LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe
from audioldm2.training.rehearsal import Rehearsal, rehearse

GB = 1e9
RUNTIME = {"cpu": 0.5 * GB, "cuda": 0.8 * GB}  # Python and PyTorch; on a GPU its context and libraries
# What allocators and kernels take over what is alive: gaps, copies in other layouts. On a CPU it is measured.
LOOSE = {"cpu": 1.5, "cuda": 1.15}
SPARE = 1.1  # of the cache, for what is estimated

Measure = Callable[[type[LDMStage], Checkpoint, LDMRecipe, str], Rehearsal]


@dataclass(frozen=True)
class Clips:
    """What a plan has to know of the data."""

    caption: str  # the longest
    captions: int  # different ones
    count: int | None  # of clips before they repeat; None: every clip is a new one
    sound_bytes: int  # decoded sounds, which stay in the computer's memory

    @classmethod
    def of(cls, data: Captioned, recipe: LDMRecipe) -> "Clips":
        """Describes the clips of a run."""
        captions = set(data.captions())
        return cls(
            max(captions, key=len, default=""),
            len(captions),
            recipe.pool or distinct(data),
            decoded_bytes(data),
        )


@dataclass(frozen=True)
class Peak:
    """The memory that a run takes, in bytes, by purpose."""

    start: dict[str, int]  # before the first step, with a cache while it is filled
    steps: dict[str, int]

    @property
    def bytes(self) -> int:
        """The peak."""
        return max(sum(self.start.values()), sum(self.steps.values()))

    def __str__(self) -> str:
        largest = max(self.start, self.steps, key=lambda parts: sum(parts.values()))
        when = "before the first step" if largest is self.start else "in a step"
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in largest.items() if size >= 0.005 * GB)
        return f"{self.bytes / GB:.2f} GB {when} ({parts or 'next to nothing'})"


@dataclass(frozen=True)
class Plan:
    """The settings that fit."""

    recipe: LDMRecipe
    peak: Peak
    reasons: tuple[str, ...]  # what was chosen, or could not be, and why


def peak(
    measured: Rehearsal, kind: type[LDMStage], recipe: LDMRecipe, device: torch.device, clips: Clips,
    share: int = 1,
) -> Peak:  # fmt: skip
    """Computes the memory that a recipe takes.

    Args:
        measured: the stage's rehearsal with this recipe's `recompute`, precision and `frozen_bf16`.
        kind: the stage.
        recipe: of the stage.
        device: what it trains on.
        clips: what to know of the data.
        share: processes that share each batch.
    """
    on_cpu, cached = device.type == "cpu", bool(recipe.cache_gb)
    batch = recipe.batch // share
    rows = ceil(batch / recipe.accumulate)
    weights = measured.weights
    freed = set(CACHED) - set(measured.trainable) if cached else set()
    numbers = measured.learning // 4
    second_moment = 4 if recipe.optimizer == "muon" else 8  # bytes of state for each number
    # While no activations are alive: on GPUs, AdamW updates all parameters at once, with a copy of them; on
    # a CPU, safetensors copies the network that it writes.
    saving = 0 if kind.adapts else max(weights.values())
    between = saving if on_cpu else measured.learning
    kind_of_device = "cpu" if on_cpu else "cuda"
    loose = LOOSE[kind_of_device]
    encoding = round(loose * rows * measured.encoding)
    always = {
        "Python and PyTorch": round(RUNTIME[kind_of_device]),
        "sounds": clips.sound_bytes if on_cpu else 0,
    }
    # The hash of a network opens its file once more.
    start = always | {
        "weights": sum(weights.values()),
        "averages": measured.averages,
        "files": max(weights.values()) if on_cpu else 0,
        "encoding": encoding,
    }
    steps = always | {
        "weights": sum(size for name, size in weights.items() if name not in freed),
        "averages": measured.averages,
        "prepared clips": measured.latent * (recipe.pool or 2 * batch),
        "gradients": measured.learning,
        "optimizer": numbers * second_moment,
        "activations": max(
            round(loose * measured.step.of(rows)), round(loose * rows * measured.validation), between
        ),
        "encoding": 0 if cached else encoding,  # of the next batch, meanwhile
    }
    return Peak(start, steps)


def fit(
    kind: type[LDMStage], checkpoint: Checkpoint, recipe: LDMRecipe, limit: float, device: torch.device,
    clips: Clips, share: int = 1, measure: Measure | None = None,
) -> Plan:  # fmt: skip
    """Chooses settings with which a stage fits into `limit` bytes.

    Args:
        kind: the stage, a subclass of `LDMStage`.
        checkpoint: the model; no weight is read.
        recipe: what to begin with.
        limit: in bytes.
        device: what it trains on.
        clips: what to know of the data.
        share: processes that share each batch.
        measure: in place of `rehearse`, for callers that keep what it found.

    Raises:
        ArgumentError: nothing fits.
    """
    least: Peak | None = None
    for extras in _extras(recipe, device):
        tried = replace(recipe, **extras)
        measured = (measure or rehearse)(kind, checkpoint, tried, clips.caption)
        for settings in _settings(tried, measured, clips, share):
            found = peak(measured, kind, settings, device, clips, share)
            if found.bytes <= limit:
                return Plan(settings, found, tuple(_reasons(recipe, settings, clips)))
            least = found if least is None or found.bytes < least.bytes else least
    assert least is not None
    allowed = f"be at least {ceil(least.bytes / GB * 10) / 10:g}GB for the stage '{kind.name}' with clips of "
    allowed += f"{recipe.seconds:g} s, which takes {least}. Shorter clips (--seconds) take less"
    allowed += ", --lora takes less" if kind.name == "ldm" else ""
    raise ArgumentError("fit", f"{limit / GB:g}GB", allowed)


def _extras(recipe: LDMRecipe, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields what to change of a recipe beside its cache and parts, one thing more each time."""
    extras: dict[str, Any] = {}
    yield extras
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    dtype = "fp16" if on_gpu and not torch.cuda.is_bf16_supported() else "bf16"
    half = {} if recipe.bf16 or recipe.fp16 else {dtype: True}
    for more in ({"recompute": True}, half, {"frozen_bf16": True}):
        if any(getattr(recipe, name) != value for name, value in more.items()):
            extras = extras | more
            yield extras


def _settings(recipe: LDMRecipe, measured: Rehearsal, clips: Clips, share: int) -> Iterator[LDMRecipe]:
    """Yields a recipe as it is, then with a cache, then in more and more parts."""
    yield recipe
    if clips.count is not None and not recipe.cache_gb:
        entries = clips.count * measured.latent + (clips.captions + 1) * measured.text
        there = sum(path.stat().st_size for path in training_cache().glob(f"*{SUFFIX}"))
        recipe = replace(recipe, cache_gb=ceil((there + SPARE * entries) / GB * 10) / 10)
        yield recipe
    parts = recipe.accumulate
    while parts < recipe.batch // share:
        parts = min(2 * parts, recipe.batch // share)
        yield replace(recipe, accumulate=parts)


REASONS = {
    "cache_gb": "latents and text vectors are computed once, on disk; then their networks are freed",
    "accumulate": "parts of a batch, one after the other, with the gradient of the whole batch",
    "recompute": "the denoiser's layers run once more on the way back",
    "bf16": "networks run in bfloat16",
    "fp16": "networks run in float16, for want of bfloat16",
    "frozen_bf16": "weights that do not learn are held in bfloat16",
}


def _reasons(before: LDMRecipe, after: LDMRecipe, clips: Clips) -> Iterator[str]:
    for name, reason in REASONS.items():
        value = getattr(after, name)
        if value != getattr(before, name):
            yield f"{name} {'on' if value is True else value}: {reason}"
    if clips.count is None and after != before:
        yield "no cache: every clip is a new crop; --crops or a pool would allow one"
