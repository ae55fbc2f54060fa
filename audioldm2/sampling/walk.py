"""What all samplers share: their types, the noise they draw, and where a walk starts and stops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audioldm2.errors import ArgumentError, require_number

Denoiser = Callable[[Tensor, float], Tensor]  # (x of unit variance, time) -> the predicted noise eps
Noise = Callable[[Tensor, int], Tensor]  # (mean of the step, step number) -> standard normal noise like it
OnStep = Callable[[int, float, Tensor], object]  # (step number, time, x0); False stops the walk
Generators = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True)
class GeneratorNoise:
    """The `Noise` that `generator_noise` returns."""

    generator: Generators

    def __call__(self, x: Tensor, step: int) -> Tensor:
        self.require_one_per_row(x)
        if isinstance(self.generator, torch.Generator):
            return _draw(x, self.generator)
        return torch.stack([_draw(row, generator) for row, generator in zip(x, self.generator, strict=True)])

    def require_one_per_row(self, x: Tensor) -> None:
        """Raises ArgumentError if these are several generators, but not one for each row of x."""
        if not isinstance(self.generator, torch.Generator) and len(self.generator) != len(x):
            given = f"has {len(self.generator)} entries for {len(x)} rows"
            raise ArgumentError("generator", self.generator, "hold one generator per row", given=given)


def _draw(x: Tensor, generator: torch.Generator) -> Tensor:
    # On the generator's device and in float32, so that a seed gives the same noise for every x.
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=torch.float32).to(x)


def generator_noise(generator: Generators) -> GeneratorNoise:
    """Returns the noise callable that draws from one generator, or from one generator per row.

    Args:
        generator: one `torch.Generator` for the whole batch, or a sequence with one per row: then a row's
            noise does not depend on the rest of the batch.

    Raises:
        ArgumentError: `generator` is something else; when noise is drawn: its length is not the batch size.
    """
    if not isinstance(generator, torch.Generator):
        sequence = isinstance(generator, Sequence)
        if not sequence or not all(isinstance(entry, torch.Generator) for entry in generator):
            raise ArgumentError("generator", generator, "be a torch.Generator or a list of them")
    return GeneratorNoise(generator)


def fresh_noise() -> GeneratorNoise:
    """Returns noise from a new, randomly seeded generator; the global random state stays untouched."""
    generator = torch.Generator()
    generator.seed()
    return generator_noise(generator)


def first_step(times: Sequence[float], t_start: float | None) -> int:
    """Returns the index of the first step to take: the first one whose time is at most `t_start`.

    Args:
        times: falling, one per step.
        t_start: where to start; None, or at or above the first time, for the whole walk.

    Raises:
        ArgumentError: `t_start` is not a number, or lies below the last time.
    """
    if t_start is None:
        return 0
    t_start = require_number("t_start", t_start, finite=False)
    if t_start < times[-1]:
        raise ArgumentError("t_start", t_start, f"be at least {float(times[-1])}, the time of the last step")
    return next(i for i, t in enumerate(times) if t <= t_start)


def stops(on_step: OnStep | None, step: int, t: float, x0: Tensor) -> bool:
    """Reports a step to `on_step`, and returns whether it asks to stop by returning exactly False."""
    return on_step is not None and on_step(step, t, x0) is False
