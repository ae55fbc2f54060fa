"""How often a test repeats what it tests: less in a run of everything than where the number is the point."""

import os
from typing import TypeVar

T = TypeVar("T")


def full_or(full: T, usual: T) -> T:
    """`full` where AUDIOLDM2_TESTS=full is set, else `usual`."""
    return full if os.environ.get("AUDIOLDM2_TESTS") == "full" else usual
