"""For the tests of the demo world: sounds and attributes by family and seed."""

import numpy as np

from scripts.demo_world.families import FAMILIES
from scripts.demo_world.registry import ATTRIBUTES


def make(
    family: str, seed: int, attributes: dict[str, str] | None = None, seconds: float = 2.56
) -> np.ndarray:
    """One sound of a family."""
    return FAMILIES[family](np.random.default_rng(seed), seconds, attributes)


def random_attributes(rng: np.random.Generator, family: str) -> dict[str, str]:
    """Some of the attributes that a family can have."""
    return {
        name: str(rng.choice(list(ATTRIBUTES[name]))) for name in FAMILIES[family].takes if rng.random() < 0.4
    }
