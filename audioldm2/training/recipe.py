"""The recipe of a stage: everything about its training that is a number or a choice."""

import math
from dataclasses import dataclass, fields
from typing import Any

from audioldm2.checkpoints import validate
from audioldm2.errors import some
from audioldm2.training.data import PADDINGS

OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class Recipe:
    """What every stage has to be told. Each stage has its own defaults, and more fields."""

    batch: int = 16  # clips a step
    seconds: float = 10.24  # of each clip
    pad: str = "silence"  # what follows a sound that is shorter: "silence", or "repeat"
    pool: int = 0  # learn from so many clips only, kept in memory, ready for learning; 0: fresh ones always
    steps: int = 100_000
    optimiser: str = "adamw"  # or "muon" for matrices and convolutions (`training.muon`)
    learning_rate: float = 1e-4
    warmup: int = 0  # steps over which the learning rate rises from 0; at most a tenth of all
    cosine: bool = False  # let it fall to 0 along half a cosine until the last step; else it stays
    betas: tuple[float, ...] = (0.9, 0.999)  # of AdamW: memory of the gradient, and of its square
    weight_decay: float = 0.0  # of matrices and convolutions; vectors have none
    clip: float = 1.0  # the largest norm that a gradient may have; a longer one is shortened to it
    ema: float = 0.0  # how much of the averaged weights stays at each step; 0: the last weights are written
    bf16: bool = False  # let networks compute in bfloat16 where PyTorch's autocast holds it safe

    def __post_init__(self) -> None:
        demands = {
            "batch": (self.batch >= 1, "at least 1"),
            "seconds": (self.seconds > 0, "above 0"),
            "pad": (self.pad in PADDINGS, f"one of {', '.join(PADDINGS)}"),
            "pool": (self.pool == 0 or self.pool >= self.batch, "0, or at least the batch"),
            "steps": (self.steps >= 1, "at least 1"),
            "optimiser": (self.optimiser in OPTIMISERS, f"one of {', '.join(OPTIMISERS)}"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "betas": (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two below 1"),
            "clip": (self.clip > 0, "above 0"),
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
        }
        for name, (holds, allowed) in demands.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it has to be {allowed}.")

    def learning_rate_at(self, step: int) -> float:
        """At a step, from 0 on."""
        return self.rise_and_fall(step, self.learning_rate, self.steps)

    def rise_and_fall(self, step: int, rate: float, steps: int) -> float:
        """At a step of so many: a linear rise to `rate`, then that, or half a cosine to 0 after the last."""
        warmup = min(self.warmup, steps // 10)
        rate *= min(1.0, (step + 1) / max(1, warmup))
        if not self.cosine or step < warmup:
            return rate
        part = (step - warmup) / (steps - warmup)
        return rate * (1 + math.cos(math.pi * min(part, 1.0))) / 2


def changed(recipe: Recipe, values: dict[str, Any], where: str) -> Recipe:
    """A recipe, some of whose fields are overruled by a JSON object.

    Raises ValueError, or WeightsError, a sentence that calls the object `where`, for what cannot be.
    """
    known = [field.name for field in fields(recipe)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{where} has {some(unknown)}; this stage knows {', '.join(known)}.")
    return validate.build(type(recipe), values, where, default=recipe)
