"""Readings: what a checkpoint does not say and a sound depends on. The checks compare them with each other.

To add one, add a line to `readings_of`: its heads, and the options of `generate` that it needs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from audioldm2.models.unet import UNetConfig

TRAINED_WIDTH = 32  # of a head, in upstream's training
CONFIG_HEADS = 8  # of every level, as the reference reads the published config


@dataclass(frozen=True)
class Reading:
    """One way to run a checkpoint."""

    name: str
    heads: tuple[int, ...]  # of the UNet, per level
    what: str  # in words
    options: Mapping[str, Any] = field(default_factory=dict)  # of `generate`, where the reading has some


def readings_of(unet: UNetConfig, right: tuple[int, ...] | None = None) -> list[Reading]:
    """The readings of a denoiser, each with other heads; the first is what `load` gives without `heads`.

    Heads that are neither 8 at every level nor 32 wide were chosen by who trained the model: no other
    reading is likely.

    right: the heads of a copy that is right, where they are known.
    """
    trained = tuple(math.ceil(width / TRAINED_WIDTH) for width in unet.channels)
    config = (CONFIG_HEADS,) * len(unet.channels)
    possible = [
        Reading("config", config, "8 heads at every level, as the config reads"),
        Reading("trained", trained, "heads 32 wide, as upstream trained"),
        # A further reading, such as one with other `options`, has a line here.
    ]
    own = next((reading for reading in possible if reading.heads == unet.heads), None)
    if own is None:
        found = [Reading("as loaded", unet.heads, "heads as the checkpoint has them")]
    else:
        others = [reading for reading in possible if reading is not own and _divides(unet, reading.heads)]
        found = [own, *others]
    if right is not None and right not in {reading.heads for reading in found}:
        found.append(Reading("recorded", right, "heads of the right copy"))
    return found


def _divides(unet: UNetConfig, heads: tuple[int, ...]) -> bool:
    """Whether every level that attends is a multiple of its number of heads."""
    levels = zip(unet.channels, heads, unet.transformers, strict=True)
    return all(width % count == 0 for width, count, roles in levels if roles)
