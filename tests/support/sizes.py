"""How often a test repeats what it tests: less in a run of everything than where the number is the point."""

import os


def full_or(full: int, usual: int) -> int:
    """`full` where AUDIOLDM2_TESTS=full is set, else `usual`."""
    return full if os.environ.get("AUDIOLDM2_TESTS") == "full" else usual
