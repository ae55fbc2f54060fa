"""Rules that several network configs share; each raises ArgumentError, which names the field.

A config applies them in `__post_init__`, so an impossible network is refused before anything is built.
"""

from typing import Any

from audioldm2.errors import ArgumentError, require_number, require_whole

LARGEST_SIZE = 1_000_000  # of any width, vocabulary or length; the largest published one is 50,265
MOST_BLOCKS = 100  # of anything counted in blocks, so that a wrong digit cannot build for hours


def require_sizes(config: Any, *fields: str, least: int = 1, most: int = LARGEST_SIZE) -> None:
    """Require that each of these fields is a whole number within bounds."""
    for field in fields:
        require_whole(field, getattr(config, field), least, most)


def require_size_tuples(config: Any, *fields: str, most: int = LARGEST_SIZE) -> None:
    """Require that each of these fields is a tuple of whole numbers from 1 to `most`."""
    for field in fields:
        require_entries(field, getattr(config, field), most)


def require_entries(field: str, value: Any, most: int = LARGEST_SIZE) -> None:
    """Require a tuple of whole numbers from 1 to `most`; it may be empty."""
    if not isinstance(value, tuple):
        raise ArgumentError(field, value, "be a tuple of whole numbers")
    for index, entry in enumerate(value):
        require_whole(f"{field}[{index}]", entry, 1, most)


def require_same_length(config: Any, *fields: str, each: str) -> None:
    """Require that these tuples have one entry for each level, stage or branch: at least 1, at most 100."""
    lengths = tuple(len(getattr(config, field)) for field in fields)
    if len(set(lengths)) > 1 or not 1 <= lengths[0] <= MOST_BLOCKS:
        counts = " and ".join(map(str, lengths))
        allowed = f"have one entry for each {each}, from 1 to {MOST_BLOCKS}"
        raise ArgumentError(", ".join(fields), lengths, allowed, given=f"has {counts} entries")


def require_positive(config: Any, *fields: str) -> None:
    """Require that each of these fields is a number above 0, and no larger than any size."""
    for field in fields:
        if require_number(field, getattr(config, field), 0, LARGEST_SIZE) == 0:
            raise ArgumentError(field, getattr(config, field), f"be above 0 and at most {LARGEST_SIZE}")


def require_eps(config: Any) -> None:
    """Require that `eps`, which a norm adds to the variance, is a small number; 0 is allowed."""
    require_number("eps", config.eps, 0, 1)


def require_multiple(field: str, value: int | tuple[int, ...], divisor_field: str, divisor: int) -> None:
    """Require that a field, or every entry of it, is a multiple of another field."""
    entries = value if isinstance(value, tuple) else (value,)
    if any(entry % divisor for entry in entries):
        what = "hold multiples" if isinstance(value, tuple) else "be a multiple"
        raise ArgumentError(field, value, f"{what} of {divisor_field} ({divisor})")
