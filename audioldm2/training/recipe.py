"""Recipes: every number and choice of a stage's training."""

import math
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from audioldm2.checkpoints import validate
from audioldm2.errors import ArgumentError, some
from audioldm2.training.data import PADDINGS

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine")  # of the learning rate after the warmup
# Old field names, which run.json files and recipes of version 0.1 contain.
RENAMED = {
    "optimiser": "optimizer",
    "clip": "max_grad_norm",
    "adversary_from": "adversary_start",
    "lines_until": "partials_until",
}


@dataclass(frozen=True)
class Recipe:
    """The settings that all stages share. Each stage has its own defaults and adds fields."""

    batch: int = 16  # clips per step
    seconds: float = 10.24  # length of each clip
    pad: str = "silence"  # what fills up a shorter sound: "silence", or "repeat"
    normalize: bool = False  # bring each clip to a peak of 0.5 and no mean; draw silent crops again
    pool: int = 0  # train on this many clips only, prepared once and kept in memory; 0: always fresh ones
    crops: int = 0  # of each sound longer than a clip, drawn once for the run; 0: a new one every time
    steps: int = 100_000
    optimizer: str = "adamw"  # or "muon" for matrices and convolutions (muon.py)
    learning_rate: float = 1e-4
    warmup: int = 0  # steps over which the learning rate rises from 0; at most a tenth of all steps
    schedule: str = "constant"  # then it stays, or decays to 0: "linear", or along half a "cosine"
    betas: tuple[float, ...] = (0.9, 0.999)  # of AdamW
    weight_decay: float = 0.0  # of matrices and convolutions; vectors have none
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    ema: float = 0.0  # decay of the averaged weights; 0: no average, the last weights are saved
    bf16: bool = False  # run the networks under PyTorch's bfloat16 autocast
    fp16: bool = False  # the same in float16, with a scaled loss: for NVIDIA's cards without bfloat16

    def __post_init__(self) -> None:
        self.require(
            batch=(self.batch >= 1, "be at least 1"),
            seconds=(self.seconds > 0, "be above 0"),
            pad=(self.pad in PADDINGS, f"be one of {', '.join(PADDINGS)}"),
            pool=(self.pool == 0 or self.pool >= self.batch, "be 0, or at least the batch size"),
            crops=(self.crops >= 0, "be at least 0"),
            steps=(self.steps >= 1, "be at least 1"),
            optimizer=(self.optimizer in OPTIMIZERS, f"be one of {', '.join(OPTIMIZERS)}"),
            learning_rate=(self.learning_rate > 0, "be above 0"),
            warmup=(self.warmup >= 0, "be at least 0"),
            schedule=(self.schedule in SCHEDULES, f"be one of {', '.join(SCHEDULES)}"),
            betas=(
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "be two numbers from 0 to below 1",
            ),
            max_grad_norm=(self.max_grad_norm > 0, "be above 0"),
            fp16=(not (self.fp16 and self.bf16), "be false with bf16"),
            ema=(0 <= self.ema < 1, "be at least 0 and below 1"),
        )

    @property
    def precision(self) -> torch.dtype:
        """The dtype in which autocast runs the networks; float32 is no autocast."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    def require(self, **rules: tuple[bool, str]) -> None:
        """Raises ArgumentError for the first field whose rule fails.

        Args:
            rules: for each field, whether its value is allowed and how "it has to ..." ends.
        """
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ArgumentError(name, getattr(self, name), allowed)

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate at a step, counted from 0."""
        return self.warmup_and_decay(step, self.learning_rate, self.steps)

    def warmup_and_decay(self, step: int, peak: float, steps: int) -> float:
        """Returns the learning rate at a step of `steps`: a linear warmup, then the schedule."""
        warmup = min(self.warmup, steps // 10)
        peak *= min(1.0, (step + 1) / max(1, warmup))
        if self.schedule == "constant" or step < warmup:
            return peak
        left = 1 - min((step - warmup) / (steps - warmup), 1.0)
        return peak * (left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)


def override(recipe: SomeRecipe, values: dict[str, Any], where: str) -> SomeRecipe:
    """Replaces fields of a recipe by the values of a JSON object.

    Args:
        recipe: stays unchanged.
        values: {field: value}; the names of earlier versions are accepted too.
        where: the object's name in messages.

    Raises:
        ValueError: a field is unknown.
        WeightsError: a value is not allowed.
    """
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    if isinstance(values.get("cosine"), bool):  # the field of version 0.2 and before
        values["schedule"] = "cosine" if values.pop("cosine") else "constant"
    known = [field.name for field in fields(recipe)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{where} has {some(unknown)}; the fields of this recipe are {', '.join(known)}.")
    return validate.build(type(recipe), values, where, default=recipe)
