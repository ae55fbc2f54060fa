"""Readings: what a checkpoint does not say and a sound depends on. The checks compare them with each other.

To add one, add an entry to `readings_of`, with the options that it needs, and, where it changes a config, the
change in `Subject.model`.
"""

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
    levels = [width for width, roles in zip(unet.channels, unet.transformers, strict=True) if roles]
    trained = tuple(max(width // TRAINED_WIDTH, 1) for width in unet.channels)
    all_readings = [
        Reading(
            "config", (CONFIG_HEADS,) * len(unet.channels), "8 heads at every level, as the config reads"
        ),
        Reading("trained", trained, "heads 32 wide, as upstream trained"),
        # A further reading, such as one of the unconditional context, has a line here.
    ]
    possible = [
        reading
        for reading in all_readings
        if (reading.name != "trained" or all(width % TRAINED_WIDTH == 0 for width in levels))
        and all(
            width % heads == 0
            for width, heads, roles in zip(unet.channels, reading.heads, unet.transformers, strict=True)
            if roles
        )
    ]
    own = [reading for reading in possible if reading.heads == unet.heads][:1]
    others = [reading for reading in possible if reading.heads != unet.heads]
    found = own + others if own else [Reading("as loaded", unet.heads, "heads as the checkpoint has them")]
    if right is not None and right not in {reading.heads for reading in found}:
        found.append(Reading("recorded", right, "heads of the right copy"))
    return found
