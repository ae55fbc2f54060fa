"""What a request computes once: the keys and values that the denoiser makes of the prompts.

They are the same at every step. Each is kept beside the very tensor that it was made of, so whatever else is
asked is computed, and results are equal to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from audioldm2.models.unet import GPT2, T5, Layer

KEPT = 2  # contexts: with guidance, and without it where that is off for some of the steps


class Remembered:
    """A function of one tensor that knows what it made of the last few."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function
        self.made: list[tuple[Tensor, int, Tensor]] = []  # input, its version, output

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.function(x)
        for seen, version, made in self.made:
            if seen is x and version == x._version:  # the same tensor, not written to since
                return made
        made = self.function(x)
        self.made = [(x, x._version, made), *self.made[: KEPT - 1]]
        return made


@contextmanager
def remembering(unet: nn.Module) -> Iterator[None]:
    """While the block lasts, the denoiser makes keys and values of each context once."""
    layers = list(_of_prompts(unet))
    for layer in layers:
        layer.forward = Remembered(layer.forward)  # in place of the class's, for this one layer
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _of_prompts(unet: nn.Module) -> Iterator[nn.Module]:
    for layer in unet.modules():
        if isinstance(layer, Layer):
            for role in {GPT2, T5}.intersection(layer.roles):
                for block in getattr(layer, role).blocks:
                    yield from (block.context_attn.key, block.context_attn.value)
