"""Families of sounds and the attributes that shape them: what a family is, and the table of all families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from audioldm2.audio import SAMPLE_RATE as RATE
from audioldm2.errors import ArgumentError, require_number
from scripts.demo_world.synthesis import Wave, draw_between, finish, reverberate

SHORTEST, LONGEST = 0.64, 60.0  # s; less leaves no room for an event and its end

# attribute: {word: (lowest, highest)}. Far apart, so that a model's sounds can be told apart.
ATTRIBUTES: dict[str, dict[str, tuple[float, float]]] = {
    "pitch": {"low": (120, 220), "middle": (400, 700), "high": (1400, 2600)},  # Hz; a melody's centre
    "tempo": {"slow": (1.0, 1.8), "fast": (4.5, 7.0)},  # events per second
    "level": {"quiet": (-40, -35), "loud": (-14, -11)},  # dB to full scale, of the loudest 50 ms
    "length": {"short": (0.3, 0.5), "long": (0.92, 1.0)},  # short: seconds; long: fraction of the clip
    "room": {"dry": (0, 0), "reverberant": (1.2, 2.0)},  # s until the reverberation has decayed by 60 dB
}
# Ranges of attributes that the caption does not mention: any pitch; tempo, level and length in between; dry.
UNSPECIFIED = {
    "pitch": (120, 2600),
    "tempo": (2.2, 3.6),
    "level": (-23, -18),
    "length": (0.6, 1.0),
    "room": (0, 0),
}


@dataclass(frozen=True)
class Voice:
    """The attributes of one sound as numbers."""

    pitch: float  # Hz
    tempo: float  # events per second
    length: float  # seconds of sound from the start of the clip; silence follows


@dataclass(frozen=True)
class Family:
    """A kind of sound and the attributes that it can have."""

    draw: Callable[[np.random.Generator, int, Voice], Wave]
    takes: tuple[str, ...]

    def __call__(
        self, rng: np.random.Generator, seconds: float, attributes: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """Renders one sound of this family.

        Args:
            rng: provides all randomness.
            seconds: length of the clip, 0.64 to 60.
            attributes: {attribute: word}, as in ATTRIBUTES.

        Returns:
            float32 (seconds * 16,000,).

        Raises:
            ArgumentError: the family does not have the attribute, or `seconds` is out of range.
        """
        attributes = attributes or {}
        for name, word in attributes.items():
            if name not in self.takes or word not in ATTRIBUTES[name]:
                known = ", ".join(f"{name} ({'/'.join(ATTRIBUTES[name])})" for name in self.takes)
                raise ArgumentError(f"attribute '{name}'", word, f"be one that this family has: {known}")
        require_number("seconds", seconds, SHORTEST, LONGEST)
        value = {
            name: draw_between(rng, *(words[attributes[name]] if name in attributes else UNSPECIFIED[name]))
            for name, words in ATTRIBUTES.items()
        }
        is_short = attributes.get("length") == "short"
        length = min(value["length"], 0.4 * seconds) if is_short else value["length"] * seconds
        n = round(seconds * RATE)
        wave = self.draw(rng, n, Voice(value["pitch"], value["tempo"], length))
        if value["room"]:
            wave = reverberate(rng, wave, value["room"])
        return finish(wave, value["level"])


FAMILIES: dict[str, Family] = {}


def family(*takes: str) -> Callable[[Callable], Callable]:
    """Registers a function (rng, samples, voice) -> wave in FAMILIES under its own name.

    Args:
        takes: the attributes that the family can have besides "level".
    """

    def register(draw: Callable) -> Callable:
        FAMILIES[draw.__name__] = Family(draw, (*takes, "level"))
        return draw

    return register
